//! The strict reading of request framing: what a head may look like and where its body ends.
//! Must never be more lenient than the parser behind it, and never interpret anything but framing.

/// Why a request is refused before it reaches the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub status: u16,
    pub message: &'static str,
}

const fn bad(message: &'static str) -> Refusal {
    Refusal {
        status: 400,
        message,
    }
}

/// How the bytes after a head belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyKind {
    Length(u64),
    Chunked,
}

/// What the guard must know of a head that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub body: BodyKind,
    pub upgrade: bool,
}

const HEADERS_MAX: usize = 100;

/// Checks one complete head, from its first byte to the blank line that ends it.
pub(crate) fn check_head(head: &[u8]) -> Result<Head, Refusal> {
    let mut lines = Lines { rest: head };
    let (version_11, method_get) = check_request_line(lines.next()?)?;
    let mut fields = Fields::default();
    let mut count = 0;
    loop {
        let line = lines.next()?;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > HEADERS_MAX {
            return Err(Refusal {
                status: 431,
                message: "too many header fields",
            });
        }
        fields.read(line)?;
    }
    fields.verdict(version_11, method_get)
}

struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// The next line without its CR LF; a CR or LF that stands alone is refused.
    fn next(&mut self) -> Result<&'a [u8], Refusal> {
        let Some(at) = memchr::memchr2(b'\r', b'\n', self.rest) else {
            return Err(bad("the request head is not complete"));
        };
        if self.rest[at] != b'\r' || self.rest.get(at + 1) != Some(&b'\n') {
            return Err(bad("a line of the request head does not end with CR LF"));
        }
        let line = &self.rest[..at];
        self.rest = &self.rest[at + 2..];
        Ok(line)
    }
}

fn check_request_line(line: &[u8]) -> Result<(bool, bool), Refusal> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("the request line is not `method target version`"));
    };
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(bad("the request method is not a token"));
    }
    let origin_form = target.first() == Some(&b'/') || (target == b"*" && method == b"OPTIONS");
    if !origin_form
        || !target
            .iter()
            .all(|byte| (0x21..0x7f).contains(byte) && *byte != b'#')
    {
        return Err(bad(
            "the request target is not an absolute path of visible ASCII",
        ));
    }
    match version {
        b"HTTP/1.1" => Ok((true, method == b"GET")),
        b"HTTP/1.0" => Ok((false, method == b"GET")),
        _ => Err(Refusal {
            status: 505,
            message: "only HTTP/1.0 and HTTP/1.1 are spoken here",
        }),
    }
}

/// The fields that decide framing, as they are met.
#[derive(Default)]
struct Fields {
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    connection_upgrade: bool,
}

impl Fields {
    fn read(&mut self, line: &[u8]) -> Result<(), Refusal> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(bad("a folded header line"));
        }
        let colon = memchr::memchr(b':', line).ok_or(bad("a header line without a colon"))?;
        let name = &line[..colon];
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(bad("a header name is not a token"));
        }
        let value = &line[colon + 1..];
        if value
            .iter()
            .any(|&byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f)
        {
            return Err(bad("a header value has a control character"));
        }
        let value = value.trim_ascii();
        match name.len() {
            14 | 17 if is_framing_in_disguise(name) => Err(bad(
                "a framing header spelled with an underscore, which some servers take for it",
            )),
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade = true;
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection(value),
            14 if name.eq_ignore_ascii_case(b"content-length") => self.length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.encoding(value),
            _ => Ok(()),
        }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.hosts += 1;
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(byte);
        if self.hosts > 1 {
            return Err(bad("more than one Host header"));
        }
        if value.is_empty() || !value.iter().all(valid) {
            return Err(bad("the Host header is not a host and port"));
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for option in value.split(|&byte| byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            }
            if PROTECTED
                .iter()
                .any(|name| option.eq_ignore_ascii_case(name))
            {
                return Err(bad(
                    "the Connection header names a field that is not hop-by-hop",
                ));
            }
        }
        Ok(())
    }

    fn length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.length.is_some() {
            return Err(bad("more than one Content-Length header"));
        }
        let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
        if !digits {
            return Err(bad("the Content-Length header is not a number"));
        }
        self.length = Some(
            value
                .iter()
                .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')),
        );
        Ok(())
    }

    fn encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(bad("the Transfer-Encoding header is not exactly `chunked`"));
        }
        self.chunked = true;
        Ok(())
    }

    fn verdict(self, version_11: bool, method_get: bool) -> Result<Head, Refusal> {
        if self.hosts == 0 && version_11 {
            return Err(bad("the Host header is missing"));
        }
        if self.chunked && !version_11 {
            return Err(bad("Transfer-Encoding in HTTP/1.0"));
        }
        let body = match (self.chunked, self.length) {
            (true, Some(_)) => return Err(bad("both Content-Length and Transfer-Encoding")),
            (true, None) => BodyKind::Chunked,
            (false, length) => BodyKind::Length(length.unwrap_or(0)),
        };
        let upgrade = self.upgrade
            && self.connection_upgrade
            && version_11
            && method_get
            && body == BodyKind::Length(0);
        Ok(Head { body, upgrade })
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

/// Servers that hand headers on as CGI variables cannot tell these from the real ones.
fn is_framing_in_disguise(name: &[u8]) -> bool {
    let dashed = |byte: &u8| match byte.to_ascii_lowercase() {
        b'_' => b'-',
        other => other,
    };
    name.contains(&b'_')
        && [&b"content-length"[..], b"transfer-encoding"]
            .iter()
            .any(|framing| name.iter().map(dashed).eq(framing.iter().copied()))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Where a chunked body ends, and that it is well formed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunks {
    Size { digits: u8, size: u64 },
    Extension { length: u16, size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer { length: u16, line: u16 },
    TrailerLf { length: u16, line: u16 },
    Done,
}

const TRAILER_BYTES_MAX: u16 = 8192;
const EXTENSION_BYTES_MAX: u16 = 256;

impl Chunks {
    pub(crate) const START: Self = Self::Size { digits: 0, size: 0 };

    /// Reads on in `bytes` and returns how many of them belong to this body.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < bytes.len() && *self != Self::Done {
            if let Self::Data { left } = *self {
                let take = left.min((bytes.len() - at) as u64);
                at += take as usize;
                *self = if left == take {
                    Self::DataCr
                } else {
                    Self::Data { left: left - take }
                };
                continue;
            }
            *self = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(self, byte: u8) -> Result<Self, Refusal> {
        match (self, byte) {
            (Self::Size { digits, size }, _) if byte.is_ascii_hexdigit() => {
                if digits >= 15 {
                    return Err(bad("a chunk size with too many digits"));
                }
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                Ok(Self::Size {
                    digits: digits + 1,
                    size: size * 16 + u64::from(digit),
                })
            }
            (Self::Size { digits, size }, b'\r') if digits > 0 => Ok(Self::SizeLf { size }),
            (Self::Size { digits, size }, b';') if digits > 0 => {
                Ok(Self::Extension { length: 0, size })
            }
            (Self::Extension { size, .. }, b'\r') => Ok(Self::SizeLf { size }),
            (Self::Extension { length, size }, b'\t' | 0x20..=0x7e)
                if length < EXTENSION_BYTES_MAX =>
            {
                Ok(Self::Extension {
                    length: length + 1,
                    size,
                })
            }
            (Self::SizeLf { size: 0 }, b'\n') => Ok(Self::Trailer { length: 0, line: 0 }),
            (Self::SizeLf { size }, b'\n') => Ok(Self::Data { left: size }),
            (Self::DataCr, b'\r') => Ok(Self::DataLf),
            (Self::DataLf, b'\n') => Ok(Self::START),
            (Self::Trailer { length, line }, b'\r') => Ok(Self::TrailerLf { length, line }),
            (Self::Trailer { line: 0, .. }, b' ' | b'\t') => Err(bad("a folded trailer line")),
            (Self::Trailer { length, line }, b'\t' | 0x20..=0x7e | 0x80..)
                if length < TRAILER_BYTES_MAX =>
            {
                Ok(Self::Trailer {
                    length: length + 1,
                    line: line + 1,
                })
            }
            (Self::TrailerLf { line: 0, .. }, b'\n') => Ok(Self::Done),
            (Self::TrailerLf { length, .. }, b'\n') => Ok(Self::Trailer { length, line: 0 }),
            _ => Err(bad("the chunked body is malformed")),
        }
    }
}

#[cfg(test)]
mod tests;
