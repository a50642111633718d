//! Header fields: split, checked, and recognised where this hop acts upon them.
//! Must never let a field through that two parsers could read in two ways.

use super::{Refusal, bad};

const HEADERS_MAX: usize = 100;

/// A part of the head's bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Self {
        // Heads are limited to far less than 4 GiB.
        let (start, end) = (start as u32, end as u32);
        Self { start, end }
    }

    pub(crate) fn of(self, raw: &[u8]) -> &[u8] {
        &raw[self.start as usize..self.end as usize]
    }
}

/// The fields that mean something to this hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Other,
    Authorization,
    Connection,
    ContentLength,
    ContentType,
    Date,
    Expect,
    Host,
    /// Ends at this hop and is not looked at: `Keep-Alive`, `Proxy-*`.
    HopByHop,
    Progress,
    RequestId,
    Te,
    Timeout,
    TraceParent,
    TransferEncoding,
    Upgrade,
}

/// One field. Its name has been made lower case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub known: Known,
    pub name: Span,
    /// Without white space around it.
    pub value: Span,
    /// Name and value with the line's end.
    pub line: Span,
}

/// Maps the bytes of a token to lower case, all others to 0.
static TOKEN: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let it = byte as u8;
        let extra = matches!(
            it,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_'
        ) || matches!(it, b'`' | b'|' | b'~');
        if it.is_ascii_alphanumeric() || extra {
            table[byte] = it.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

pub(super) fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize] != 0
}

/// The end of the line that starts at `at`; a CR or LF that stands alone is refused.
pub(super) fn line_end(raw: &[u8], at: usize) -> Result<usize, Refusal> {
    let Some(offset) = memchr::memchr2(b'\r', b'\n', &raw[at..]) else {
        return Err(bad("the head is not complete"));
    };
    let end = at + offset;
    if raw[end] != b'\r' || raw.get(end + 1) != Some(&b'\n') {
        return Err(bad("a line of the head does not end with CR LF"));
    }
    Ok(end)
}

/// Reads the fields from `at` to the blank line, and makes their names lower case.
pub(super) fn read_fields(raw: &mut [u8], mut at: usize) -> Result<Vec<Field>, Refusal> {
    let mut fields = Vec::with_capacity(16);
    loop {
        let end = line_end(raw, at)?;
        if end == at {
            return Ok(fields);
        }
        if fields.len() == HEADERS_MAX {
            return Err(Refusal {
                status: 431,
                message: "too many header fields",
            });
        }
        fields.push(read_field(raw, at, end)?);
        at = end + 2;
    }
}

fn read_field(raw: &mut [u8], at: usize, end: usize) -> Result<Field, Refusal> {
    if matches!(raw[at], b' ' | b'\t') {
        return Err(bad("a folded header line"));
    }
    let line = &mut raw[at..end];
    let colon = memchr::memchr(b':', line).ok_or(bad("a header line without a colon"))?;
    let (name, value) = line.split_at_mut(colon);
    let mut valid = !name.is_empty();
    for byte in name.iter_mut() {
        let lower = TOKEN[*byte as usize];
        valid &= lower != 0;
        *byte = lower;
    }
    if !valid {
        return Err(bad("a header name is not a token"));
    }
    if is_framing_in_disguise(name) {
        return Err(bad(
            "a framing header spelled with an underscore, which some servers take for it",
        ));
    }
    let value = &value[1..];
    if value
        .iter()
        .any(|&byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f)
    {
        return Err(bad("a header value has a control character"));
    }
    let start = at + colon + 1 + (value.len() - value.trim_ascii_start().len());
    let length = value.trim_ascii().len();
    Ok(Field {
        known: recognise(name),
        name: Span::new(at, at + colon),
        value: Span::new(start, start + length),
        line: Span::new(at, end + 2),
    })
}

/// Servers that hand headers on as CGI variables cannot tell these from the real ones.
fn is_framing_in_disguise(name: &[u8]) -> bool {
    matches!(name, b"content_length" | b"transfer_encoding")
}

fn recognise(name: &[u8]) -> Known {
    match name {
        b"authorization" => Known::Authorization,
        b"connection" => Known::Connection,
        b"content-length" => Known::ContentLength,
        b"content-type" => Known::ContentType,
        b"date" => Known::Date,
        b"expect" => Known::Expect,
        b"host" => Known::Host,
        b"keep-alive" => Known::HopByHop,
        b"te" => Known::Te,
        b"traceparent" => Known::TraceParent,
        b"transfer-encoding" => Known::TransferEncoding,
        b"upgrade" => Known::Upgrade,
        b"x-inferx-progress" => Known::Progress,
        b"x-inferx-timeout" => Known::Timeout,
        b"x-request-id" => Known::RequestId,
        _ if name.starts_with(b"proxy-") => Known::HopByHop,
        _ => Known::Other,
    }
}

const PROTECTED: [&[u8]; 6] = [
    b"content-length",
    b"transfer-encoding",
    b"host",
    b"authorization",
    b"content-type",
    b"cookie",
];

/// What `Connection` fields say.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// Fields that end here because they are named, in lower case.
    pub named: Vec<Vec<u8>>,
}

impl Connection {
    pub(super) fn read(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for option in value.split(|&byte| byte == b',') {
            let option = option.trim_ascii().to_ascii_lowercase();
            match option.as_slice() {
                b"close" => self.close = true,
                b"keep-alive" => self.keep_alive = true,
                b"upgrade" => self.upgrade = true,
                b"" | b"te" => {}
                name if PROTECTED.contains(&name) => {
                    let message = "the Connection header names a field that is not hop-by-hop";
                    return Err(bad(message));
                }
                _ => self.named.push(option),
            }
        }
        Ok(())
    }
}

/// The value of a `Content-Length` field.
pub(super) fn read_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    if !digits {
        return Err(bad("the Content-Length header is not a number"));
    }
    Ok(value
        .iter()
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}
