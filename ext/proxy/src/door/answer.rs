//! Reads the data plane's own answer from the near end of a socket pair.
//! Must never be used for what a worker or a client writes: it trusts the framing.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt};

const READ_BYTES: usize = 16 << 10;

/// What is left of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(u64),
    /// Bytes left of the chunk in hand, None before a size line.
    Chunk(Option<u64>),
    UntilClose,
}

/// One answer, read piece by piece.
pub(super) struct Answer<R> {
    source: R,
    read: BytesMut,
    body: Body,
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

impl<R: AsyncRead + Unpin> Answer<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            read: BytesMut::new(),
            body: Body::Length(0),
        }
    }

    /// Status and fields of the final answer.
    pub(super) async fn head(&mut self, method: &Method) -> io::Result<(StatusCode, HeaderMap)> {
        loop {
            let (status, mut fields) = self.any_head().await?;
            if status.is_informational() {
                continue;
            }
            let chunked = fields.remove(TRANSFER_ENCODING).is_some();
            let length = fields
                .get(CONTENT_LENGTH)
                .and_then(|length| length.to_str().ok()?.parse().ok());
            let empty = method == Method::HEAD
                || status == StatusCode::NO_CONTENT
                || status == StatusCode::NOT_MODIFIED;
            self.body = match length {
                _ if empty => Body::Length(0),
                _ if chunked => Body::Chunk(None),
                Some(length) => Body::Length(length),
                None => Body::UntilClose,
            };
            return Ok((status, fields));
        }
    }

    async fn any_head(&mut self) -> io::Result<(StatusCode, HeaderMap)> {
        let start = self.line().await?;
        let status = start
            .get(9..12)
            .and_then(|digits| StatusCode::from_bytes(digits).ok())
            .ok_or_else(|| broken("the answer has no status"))?;
        let mut fields = HeaderMap::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok((status, fields));
            }
            let colon = line.iter().position(|&byte| byte == b':');
            let (name, value) = line.split_at(colon.unwrap_or(line.len()));
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
            {
                fields.append(name, value);
            }
        }
    }

    /// What is left of a body of known length, if all of it has been read already.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        let Body::Length(left) = self.body else {
            return None;
        };
        let size = usize::try_from(left).ok()?;
        if size > self.read.len() {
            return None;
        }
        self.body = Body::Length(0);
        Some(self.read.split_to(size).freeze())
    }

    /// The next piece of the body, None at its end.
    pub(super) async fn data(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.body {
                Body::Length(0) => return Ok(None),
                Body::Length(left) => {
                    let piece = self.piece(left).await?;
                    self.body = Body::Length(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                Body::Chunk(None) => {
                    let line = self.line().await?;
                    let size = std::str::from_utf8(&line).ok();
                    let size = size.and_then(|size| u64::from_str_radix(size, 16).ok());
                    match size.ok_or_else(|| broken("a chunk has no size"))? {
                        0 => {
                            // Trailers: the interface behind this door has no place for them.
                            while !self.line().await?.is_empty() {}
                            self.body = Body::Length(0);
                        }
                        size => self.body = Body::Chunk(Some(size)),
                    }
                }
                Body::Chunk(Some(0)) => {
                    self.line().await?;
                    self.body = Body::Chunk(None);
                }
                Body::Chunk(Some(left)) => {
                    let piece = self.piece(left).await?;
                    self.body = Body::Chunk(Some(left - piece.len() as u64));
                    return Ok(Some(piece));
                }
                Body::UntilClose => {
                    if self.read.is_empty() && self.fill().await? == 0 {
                        self.body = Body::Length(0);
                        return Ok(None);
                    }
                    return Ok(Some(self.read.split().freeze()));
                }
            }
        }
    }

    async fn piece(&mut self, left: u64) -> io::Result<Bytes> {
        if self.read.is_empty() && self.fill().await? == 0 {
            return Err(broken("the worker broke off"));
        }
        let size = left.min(self.read.len() as u64) as usize;
        Ok(self.read.split_to(size).freeze())
    }

    /// The next line without its CR LF.
    async fn line(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.read) {
                let mut line = self.read.split_to(at).freeze();
                self.read.advance(1);
                line.truncate(at.saturating_sub(1));
                return Ok(line);
            }
            if self.fill().await? == 0 {
                return Err(broken("the worker broke off"));
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.read.reserve(READ_BYTES);
        self.source.read_buf(&mut self.read).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(raw: &[u8], method: Method) -> (u16, usize, io::Result<Vec<u8>>) {
        let mut answer = Answer::new(raw);
        let (status, fields) = answer.head(&method).await.expect("a head");
        let mut body = Vec::new();
        let outcome = loop {
            match answer.data().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break Ok(body),
                Err(error) => break Err(error),
            }
        };
        (status.as_u16(), fields.len(), outcome)
    }

    #[tokio::test]
    async fn every_framing_is_read() {
        for (raw, body) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..], "ok"),
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\nrest",
                "rest",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n\
                  2\r\nab\r\n1\r\nc\r\n0\r\nT: u\r\n\r\n",
                "abc",
            ),
        ] {
            let (status, fields, read) = read(raw, Method::GET).await;
            assert_eq!(
                (status, fields, read.ok().as_deref()),
                (200, 1, Some(body.as_bytes()))
            );
        }
        let head = read(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            Method::HEAD,
        )
        .await;
        assert_eq!(head.2.ok(), Some(Vec::new()));
    }

    #[tokio::test]
    async fn the_rest_is_there_at_once_or_not_at_all() {
        for (raw, method, rest) in [
            (
                &b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"[..],
                Method::POST,
                Some("no"),
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
                Method::HEAD,
                Some(""),
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nno",
                Method::GET,
                None,
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                Method::GET,
                None,
            ),
            (b"HTTP/1.1 200 OK\r\n\r\nno", Method::GET, None),
        ] {
            let mut answer = Answer::new(raw);
            assert!(answer.head(&method).await.is_ok());
            assert_eq!(answer.rest().as_deref(), rest.map(str::as_bytes));
        }
    }

    #[tokio::test]
    async fn an_answer_that_ends_early_is_an_error() {
        for raw in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        ] {
            assert!(read(raw, Method::GET).await.2.is_err());
        }
    }
}
