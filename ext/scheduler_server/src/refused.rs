//! Refusals as gRPC carries them: a status, its text, and the whole error as trailing metadata.
//! It must never invent a status; which code has which is Python's one tree of errors.

use std::borrow::Cow;
use std::collections::HashMap;

use scheduler_core::messages::Refusal;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// As `ERROR_METADATA` in `rpc/server.py`.
const ERROR_METADATA: &str = "inferx-error";
const MESSAGE_CHARS_MAX: usize = 16 << 10;
const DETAILS_CHARS_MAX: usize = 1000;
const METADATA_BYTES_MAX: usize = 32 << 10;

/// Why a call gets no answer: a machine-readable code and a message for people.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Refused {
    pub code: Cow<'static, str>,
    pub message: String,
    pub retry_after_ms: Option<u64>,
}

impl Refused {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Refused {
        Refused {
            code: Cow::Borrowed(code),
            message: message.into(),
            retry_after_ms: None,
        }
    }

    /// Somebody else may answer, or this process a moment later.
    pub(crate) fn for_now(message: &str) -> Refused {
        Refused {
            retry_after_ms: Some(100),
            ..Refused::new("unavailable", message)
        }
    }

    pub(crate) fn stopping() -> Refused {
        Refused::new("unavailable", "this scheduler is stopping")
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused {
            code: Cow::Borrowed(refusal.code),
            message: refusal.message,
            retry_after_ms: refusal.retry_after_ms,
        }
    }
}

/// The gRPC status of each code, by number.
#[derive(Clone, Debug, Default)]
pub struct Statuses(pub HashMap<String, i32>);

impl Statuses {
    /// What the caller gets.
    pub(crate) fn render(&self, refused: &Refused) -> Status {
        let known = self.0.get(refused.code.as_ref()).copied();
        let code = known.map_or(Code::Internal, Code::from_i32);
        let mut metadata = MetadataMap::new();
        // JSON in ASCII is a legal value; if it ever were not, the status says the same in short.
        if let Ok(value) = MetadataValue::try_from(body(refused)) {
            metadata.insert(ERROR_METADATA, value);
        }
        Status::with_metadata(code, cut(&refused.message, DETAILS_CHARS_MAX), metadata)
    }
}

/// The error as JSON; cut so that it fits what peers accept as headers.
fn body(refused: &Refused) -> String {
    let with_message = |message: String| {
        let mut body = serde_json::Map::new();
        body.insert("code".into(), refused.code.as_ref().into());
        body.insert("message".into(), message.into());
        if let Some(ms) = refused.retry_after_ms {
            body.insert("retry_after_ms".into(), ms.into());
        }
        ascii(&serde_json::Value::Object(body).to_string())
    };
    let whole = with_message(cut(&refused.message, MESSAGE_CHARS_MAX));
    if whole.len() <= METADATA_BYTES_MAX {
        return whole;
    }
    with_message(cut(&refused.message, DETAILS_CHARS_MAX))
}

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

/// The same JSON with everything beyond ASCII escaped.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for char in json.chars() {
        if char.is_ascii() && !char.is_ascii_control() {
            out.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_travels_whole_in_ascii() {
        let refused = Refused {
            retry_after_ms: Some(7),
            ..Refused::new("queue_full", "voll: \u{1f600}\u{7f} \"ü\"\n")
        };
        let statuses = Statuses(HashMap::from([("queue_full".to_owned(), 8)]));
        let status = statuses.render(&refused);
        assert_eq!(status.code(), Code::ResourceExhausted);
        let value = status.metadata().get(ERROR_METADATA).expect("attached");
        let value = value.to_str().expect("ASCII");
        let read: serde_json::Value = serde_json::from_str(value).expect("JSON");
        assert_eq!(read["message"], "voll: \u{1f600}\u{7f} \"ü\"\n");
        assert_eq!(read["retry_after_ms"], 7);
    }

    #[test]
    fn a_long_error_is_cut() {
        let refused = Refused::new("start_failed", "ß".repeat(100_000));
        assert!(body(&refused).len() < METADATA_BYTES_MAX);
        assert_eq!(Statuses::default().render(&refused).code(), Code::Internal);
    }
}
