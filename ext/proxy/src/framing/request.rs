//! The head of a client's request.
//! Must never be built from bytes that were not checked.

use super::fields::{Connection, Field, Known, Span, is_token, line_end, read_fields, read_length};
use super::{Framer, Refusal, bad};

/// One request head that passed every check.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub raw: Vec<u8>,
    pub fields: Vec<Field>,
    pub framer: Framer,
    pub version_11: bool,
    /// The client may send another request on this connection.
    pub keep_alive: bool,
    /// The client wants to talk another protocol, and has asked for it in the proper way.
    pub upgrade: bool,
    pub expects_continue: bool,
    method: Span,
    target: Span,
    named: Vec<Vec<u8>>,
}

impl RequestHead {
    /// Reads one whole head, from its first byte to the blank line that ends it.
    pub(crate) fn parse(mut raw: Vec<u8>) -> Result<Self, Refusal> {
        let start = line_end(&raw, 0)?;
        let (method, target, version_11) = read_request_line(&raw[..start])?;
        let fields = read_fields(&mut raw, start + 2)?;
        let mut reading = Reading::default();
        for field in &fields {
            reading.read(field.known, field.value.of(&raw))?;
        }
        let framer = reading.framer(version_11)?;
        let Connection { named, .. } = reading.connection;
        let upgrade = reading.upgrade
            && reading.connection.upgrade
            && version_11
            && method.of(&raw) == b"GET"
            && framer.is_done();
        Ok(Self {
            fields,
            framer,
            version_11,
            keep_alive: version_11 && !reading.connection.close,
            upgrade,
            expects_continue: reading.expects_continue && version_11 && !framer.is_done(),
            method,
            target,
            named,
            raw,
        })
    }

    pub(crate) fn method(&self) -> &str {
        // Both were checked to be visible ASCII.
        std::str::from_utf8(self.method.of(&self.raw)).unwrap_or_default()
    }

    /// Path and query as the client wrote them.
    pub(crate) fn target(&self) -> &str {
        std::str::from_utf8(self.target.of(&self.raw)).unwrap_or_default()
    }

    /// The path and, when there is a `?`, what follows it.
    pub(crate) fn path_and_query(&self) -> (&str, Option<&str>) {
        match self.target().split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target(), None),
        }
    }

    pub(crate) fn is_read(&self) -> bool {
        matches!(self.method(), "GET" | "HEAD")
    }

    /// Whether doing it twice is the same as doing it once.
    pub(crate) fn is_idempotent(&self) -> bool {
        matches!(
            self.method(),
            "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
        )
    }

    /// The value of the first field of that kind.
    pub(crate) fn get(&self, known: Known) -> Option<&[u8]> {
        let field = self.fields.iter().find(|field| field.known == known)?;
        Some(field.value.of(&self.raw))
    }

    /// How many fields of that kind there are.
    pub(crate) fn count(&self, known: Known) -> usize {
        let same = self.fields.iter().filter(|field| field.known == known);
        same.count()
    }

    /// Takes all fields of that kind out: they are not for the worker.
    pub(crate) fn remove(&mut self, known: Known) {
        self.fields.retain(|field| field.known != known);
    }

    /// The length of the body, when the head says it.
    pub(crate) fn declared_length(&self) -> Option<u64> {
        match self.framer {
            Framer::Length(length) => Some(length),
            _ => None,
        }
    }

    /// Whether a field ends here because `Connection` names it.
    pub(crate) fn ends_here(&self, field: &Field) -> bool {
        !self.named.is_empty()
            && self
                .named
                .iter()
                .any(|name| name == field.name.of(&self.raw))
    }
}

fn read_request_line(line: &[u8]) -> Result<(Span, Span, bool), Refusal> {
    let mut spaces = memchr::memchr_iter(b' ', line);
    let (Some(first), Some(second), None) = (spaces.next(), spaces.next(), spaces.next()) else {
        return Err(bad("the request line is not `method target version`"));
    };
    let (method, target) = (&line[..first], &line[first + 1..second]);
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
    let version_11 = match &line[second + 1..] {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => {
            return Err(Refusal {
                status: 505,
                message: "only HTTP/1.0 and HTTP/1.1 are spoken here",
            });
        }
    };
    Ok((
        Span::new(0, first),
        Span::new(first + 1, second),
        version_11,
    ))
}

/// The fields that decide framing, as they are met.
#[derive(Default)]
struct Reading {
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    expects_continue: bool,
    connection: Connection,
}

impl Reading {
    fn read(&mut self, known: Known, value: &[u8]) -> Result<(), Refusal> {
        match known {
            Known::Host => self.host(value)?,
            Known::Connection => self.connection.read(value)?,
            Known::Upgrade => self.upgrade = true,
            Known::Expect => self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            Known::ContentLength => {
                if self.length.is_some() {
                    return Err(bad("more than one Content-Length header"));
                }
                self.length = Some(read_length(value)?);
            }
            Known::TransferEncoding => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(bad("the Transfer-Encoding header is not exactly `chunked`"));
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
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

    fn framer(&self, version_11: bool) -> Result<Framer, Refusal> {
        if version_11 && self.hosts == 0 {
            return Err(bad("a Host header is missing"));
        }
        match (self.chunked, self.length) {
            (true, _) if !version_11 => Err(bad("Transfer-Encoding in an HTTP/1.0 request")),
            (true, Some(_)) => Err(bad("both Content-Length and Transfer-Encoding")),
            (true, None) => Ok(Framer::CHUNKED),
            (false, length) => Ok(Framer::Length(length.unwrap_or(0))),
        }
    }
}
