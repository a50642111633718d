//! The head of a worker's answer.
//! Must never trust a worker's framing more than a client's.

use super::fields::{Connection, Field, Known, Span, line_end, read_fields, read_length};
use super::{Framer, Refusal, bad};

/// One answer head that passed every check.
#[derive(Debug)]
pub(crate) struct AnswerHead {
    pub raw: Vec<u8>,
    pub fields: Vec<Field>,
    pub status: u16,
    pub framer: Framer,
    /// The worker's connection can be used again after the body.
    pub keep_alive: bool,
    reason: Span,
    named: Vec<Vec<u8>>,
}

impl AnswerHead {
    /// Reads one whole head. `to_head`: it answers a HEAD request, so it has no body.
    pub(crate) fn parse(mut raw: Vec<u8>, to_head: bool) -> Result<Self, Refusal> {
        let start = line_end(&raw, 0)?;
        let (status, reason, version_11) = read_status_line(&raw[..start])?;
        let fields = read_fields(&mut raw, start + 2)?;
        let mut connection = Connection::default();
        let (mut length, mut chunked) = (None, false);
        for field in &fields {
            let value = field.value.of(&raw);
            match field.known {
                Known::Connection => connection.read(value)?,
                Known::ContentLength => {
                    let value = read_length(value)?;
                    if length.replace(value).is_some_and(|other| other != value) {
                        return Err(bad("two different Content-Length headers"));
                    }
                }
                Known::TransferEncoding if !value.eq_ignore_ascii_case(b"chunked") || chunked => {
                    return Err(bad("the Transfer-Encoding header is not exactly `chunked`"));
                }
                Known::TransferEncoding => chunked = true,
                _ => {}
            }
        }
        let framer = match (chunked, length) {
            _ if to_head || matches!(status, 100..200 | 204 | 304) => Framer::EMPTY,
            (true, Some(_)) => return Err(bad("both Content-Length and Transfer-Encoding")),
            (true, None) => Framer::CHUNKED,
            (false, Some(length)) => Framer::Length(length),
            (false, None) => Framer::UntilClose,
        };
        let persistent = if version_11 {
            !connection.close
        } else {
            connection.keep_alive
        };
        Ok(Self {
            fields,
            status,
            keep_alive: persistent && framer != Framer::UntilClose,
            framer,
            reason,
            named: connection.named,
            raw,
        })
    }

    /// The words after the status, as the worker wrote them.
    pub(crate) fn reason(&self) -> &[u8] {
        self.reason.of(&self.raw)
    }

    /// Whether a field ends here because `Connection` names it.
    pub(crate) fn ends_here(&self, field: &Field) -> bool {
        !self.named.is_empty()
            && self
                .named
                .iter()
                .any(|name| name == field.name.of(&self.raw))
    }

    /// The value of the first field of that kind.
    pub(crate) fn get(&self, known: Known) -> Option<&[u8]> {
        let field = self.fields.iter().find(|field| field.known == known)?;
        Some(field.value.of(&self.raw))
    }
}

fn read_status_line(line: &[u8]) -> Result<(u16, Span, bool), Refusal> {
    let version_11 = match line.get(..9) {
        Some(b"HTTP/1.1 ") => true,
        Some(b"HTTP/1.0 ") => false,
        _ => return Err(bad("the answer is not HTTP/1")),
    };
    let digits = line.get(9..12).unwrap_or_default();
    let separated = matches!(line.get(12), None | Some(b' '));
    if !separated || digits.len() < 3 || !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0'
    {
        return Err(bad("the status of the answer is not a number"));
    }
    let reason = Span::new(line.len().min(13), line.len());
    if reason
        .of(line)
        .iter()
        .any(|&byte| byte < 0x20 && byte != b'\t')
    {
        return Err(bad("the status line has a control character"));
    }
    let status = digits
        .iter()
        .fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    Ok((status, reason, version_11))
}
