//! Finds the top-level `model` of a JSON request while it streams in, and replaces its value.
//! Must never re-serialise a request: only the bytes of that one value change.

use std::ops::Range;

/// What the scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The model's name and where its JSON string stands, quotes included.
    Model { name: String, at: Range<usize> },
    /// The object ended without a `model`.
    Absent,
    /// `model` is there but is not a string, or the body is not a JSON object.
    Wrong(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    KeyOrEnd,
    Key { escaped: bool },
    Colon,
    Value,
    Model { escaped: bool },
    String { escaped: bool },
    Scalar,
    Nested { depth: u32 },
    NestedString { depth: u32, escaped: bool },
    AfterValue,
}

const KEY_BYTES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 1024;
const DEPTH_MAX: u32 = 512;

/// A scan that can be fed the body in pieces.
#[derive(Debug)]
pub(crate) struct ModelScan {
    state: State,
    offset: usize,
    start: usize,
    text: Vec<u8>,
    is_model: bool,
}

impl ModelScan {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Start,
            offset: 0,
            start: 0,
            text: Vec::new(),
            is_model: false,
        }
    }

    /// Reads on; None means that more is needed.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Option<Found> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.skip(&bytes[at..]);
            let Some(&byte) = bytes.get(at) else { break };
            if let Some(found) = self.step(byte, self.offset + at) {
                return Some(found);
            }
            at += 1;
        }
        self.offset += bytes.len();
        None
    }

    /// Bytes that cannot change the state: the inside of values of no interest.
    fn skip(&self, bytes: &[u8]) -> usize {
        match self.state {
            State::String { escaped: false } | State::NestedString { escaped: false, .. } => {
                memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len())
            }
            _ => 0,
        }
    }

    fn step(&mut self, byte: u8, at: usize) -> Option<Found> {
        let space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        self.state = match (self.state, byte) {
            (
                State::Start | State::KeyOrEnd | State::Colon | State::Value | State::AfterValue,
                _,
            ) if space => {
                return None;
            }
            (State::Start, b'{') => State::KeyOrEnd,
            (State::Start, _) => return Some(Found::Wrong("the body is not a JSON object")),
            (State::KeyOrEnd, b'"') => {
                self.text.clear();
                State::Key { escaped: false }
            }
            (State::KeyOrEnd | State::AfterValue, b'}') => return Some(Found::Absent),
            (State::Key { escaped: false }, b'"') => {
                self.is_model = decode(&self.text).is_some_and(|key| key == "model");
                State::Colon
            }
            (State::Key { escaped }, _) => {
                if self.text.len() < KEY_BYTES_MAX {
                    self.text.push(byte);
                }
                State::Key {
                    escaped: !escaped && byte == b'\\',
                }
            }
            (State::Colon, b':') => State::Value,
            (State::Value, b'"') if self.is_model => {
                self.text.clear();
                self.start = at;
                State::Model { escaped: false }
            }
            (State::Value, _) if self.is_model => {
                return Some(Found::Wrong("`model` is not a string"));
            }
            (State::Value, b'"') => State::String { escaped: false },
            (State::Value, b'{' | b'[') => State::Nested { depth: 1 },
            (State::Value, _) => State::Scalar,
            (State::Model { escaped: false }, b'"') => return Some(self.found(at)),
            (State::Model { escaped }, _) => {
                if self.text.len() == NAME_BYTES_MAX {
                    return Some(Found::Wrong("`model` is too long"));
                }
                self.text.push(byte);
                State::Model {
                    escaped: !escaped && byte == b'\\',
                }
            }
            (State::String { escaped: false }, b'"') => State::AfterValue,
            (State::String { escaped }, _) => State::String {
                escaped: !escaped && byte == b'\\',
            },
            (State::Scalar | State::AfterValue, b',') => State::KeyOrEnd,
            (State::Scalar, b'}') => return Some(Found::Absent),
            (State::Scalar, _) => State::Scalar,
            (State::Nested { depth }, _) => return self.nested(depth, byte),
            (
                State::NestedString {
                    depth,
                    escaped: false,
                },
                b'"',
            ) => State::Nested { depth },
            (State::NestedString { depth, escaped }, _) => State::NestedString {
                depth,
                escaped: !escaped && byte == b'\\',
            },
            _ => return Some(Found::Wrong("the body is not valid JSON")),
        };
        None
    }

    fn nested(&mut self, depth: u32, byte: u8) -> Option<Found> {
        self.state = match byte {
            b'"' => State::NestedString {
                depth,
                escaped: false,
            },
            b'{' | b'[' if depth == DEPTH_MAX => {
                return Some(Found::Wrong("the body is nested too deeply"));
            }
            b'{' | b'[' => State::Nested { depth: depth + 1 },
            b'}' | b']' if depth == 1 => State::AfterValue,
            b'}' | b']' => State::Nested { depth: depth - 1 },
            _ => State::Nested { depth },
        };
        None
    }

    fn found(&self, end: usize) -> Found {
        match decode(&self.text) {
            Some(name) => Found::Model {
                name,
                at: self.start..end + 1,
            },
            None => Found::Wrong("`model` is not a valid string"),
        }
    }
}

/// The text between two quotes of a JSON document.
fn decode(text: &[u8]) -> Option<String> {
    let quoted = [b"\"", text, b"\""].concat();
    serde_json::from_slice(&quoted).ok()
}

/// Replaces the value at `at` by `name`; every other byte stays as it is.
pub(crate) fn splice(mut body: Vec<u8>, at: &Range<usize>, name: &str) -> Vec<u8> {
    let value = serde_json::Value::from(name).to_string();
    body.splice(at.clone(), value.into_bytes());
    body
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(body: &[u8], pieces: usize) -> Option<Found> {
        let mut scan = ModelScan::new();
        body.chunks(pieces.max(1))
            .find_map(|piece| scan.feed(piece))
    }

    fn model(name: &str, at: Range<usize>) -> Option<Found> {
        Some(Found::Model {
            name: name.to_owned(),
            at,
        })
    }

    #[test]
    fn the_model_is_found_wherever_it_stands() {
        for pieces in [1, 2, 3, 1000] {
            assert_eq!(scan(br#"{"model":"a/b"}"#, pieces), model("a/b", 9..14));
            assert_eq!(
                scan(br#" { "x" : 1 , "model" : "m" }"#, pieces),
                model("m", 23..26)
            );
            let nested = br#"{"a":{"model":"no"},"b":["}",{"model":1}],"model":"yes"}"#;
            assert_eq!(scan(nested, pieces), model("yes", 50..55));
            let escaped = br#"{"s":"\\\"model\":\"no\"","mo\u0064el":"a\/\u00e9"}"#;
            assert!(matches!(scan(escaped, pieces),
                Some(Found::Model { name, .. }) if name == "a/\u{e9}"));
            assert_eq!(scan(br#"{"a":1,"b":true}"#, pieces), Some(Found::Absent));
            assert_eq!(scan(b"{}", pieces), Some(Found::Absent));
            assert_eq!(scan(br#"{"model": "cut"#, pieces), None);
        }
    }

    #[test]
    fn what_is_not_a_model_is_named() {
        for body in [
            "[1]",
            "\"x\"",
            "{x",
            r#"{"model":3}"#,
            r#"{"model":null}"#,
            r#"{"a" 1}"#,
        ] {
            assert!(
                matches!(scan(body.as_bytes(), 1000), Some(Found::Wrong(_))),
                "{body}"
            );
        }
        let deep = format!("{{\"a\":{}", "[".repeat(1000));
        assert!(matches!(scan(deep.as_bytes(), 1000), Some(Found::Wrong(_))));
    }

    #[test]
    fn a_splice_changes_only_the_value() {
        let body = br#"{"a":1,"model":"old","b":2}"#;
        for pieces in 1..body.len() {
            let Some(Found::Model { at, .. }) = scan(body, pieces) else {
                panic!("no model")
            };
            let out = splice(body.to_vec(), &at, "n\"w");
            assert_eq!(out, br#"{"a":1,"model":"n\"w","b":2}"#);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let whole = scan(&body, 1000);
            prop_assert_eq!(whole, scan(&body, 1));
        }

        #[test]
        fn agrees_with_serde(key in "[a-z\"\\\\]{0,8}", value in ".{0,20}", name in ".{0,20}") {
            let text = serde_json::json!({ key: value, "model": name }).to_string();
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
            match scan(text.as_bytes(), 7) {
                Some(Found::Model { name, at }) => {
                    prop_assert_eq!(Some(name.as_str()), parsed["model"].as_str());
                    let quoted: String = serde_json::from_str(&text[at]).unwrap();
                    prop_assert_eq!(quoted, name);
                }
                other => prop_assert!(false, "{other:?} in {text}"),
            }
        }
    }
}
