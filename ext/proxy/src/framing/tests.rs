//! Heads and chunked bodies: ordinary ones pass, hostile ones do not.
//! Must never need a socket.

use super::*;

fn status(head: &str) -> Result<Framer, u16> {
    RequestHead::parse(head.as_bytes().to_vec())
        .map(|head| head.framer)
        .map_err(|refusal| refusal.status)
}

fn post(fields: &str) -> Result<Framer, u16> {
    status(&format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
}

#[test]
fn ordinary_heads_pass() {
    assert_eq!(
        status("GET / HTTP/1.1\r\nHost: a:80\r\n\r\n"),
        Ok(Framer::Length(0))
    );
    assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), Ok(Framer::Length(0)));
    assert_eq!(
        status("OPTIONS * HTTP/1.1\r\nHost: [::1]\r\n\r\n"),
        Ok(Framer::Length(0))
    );
    assert_eq!(post("Content-Length: 12\r\n"), Ok(Framer::Length(12)));
    assert_eq!(
        post("transfer-encoding:\tChunked \r\n"),
        Ok(Framer::CHUNKED)
    );
}

#[test]
fn hostile_heads_are_refused() {
    for fields in [
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
        "Content-Length: 1\r\nContent-Length: 1\r\n",
        "Content-Length: 1, 1\r\n",
        "Content-Length: +1\r\n",
        "Content-Length: 0x1\r\n",
        "Content-Length: \r\n",
        "Content-Length: 9999999999999999999\r\n",
        "Content-Length : 1\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding\r\n: chunked\r\n",
        "Transfer-\x0bEncoding: chunked\r\n",
        "X: a\r\n folded\r\n",
        "X: a\nY: b\r\n",
        "X: a\rY: b\r\n",
        "X: a\0b\r\n",
        "X y: a\r\n",
        ": a\r\n",
        "no colon\r\n",
        "Host: b\r\n",
        "Connection: content-length\r\nContent-Length: 1\r\n",
        "Connection: close, Authorization\r\n",
        "Connection: host\r\n",
    ] {
        assert_eq!(post(fields), Err(400), "{fields:?}");
    }
    for (head, expected) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ] {
        assert_eq!(status(head), Err(expected), "{head:?}");
    }
    assert_eq!(post(&"X: a\r\n".repeat(100)), Err(431));
}

fn chunks(body: &[u8]) -> Result<(usize, bool, Vec<u8>), Refusal> {
    let (mut state, mut data) = (Chunks::START, Vec::new());
    let used = state.advance(body, |piece| data.extend_from_slice(piece.data()))?;
    Ok((used, state.is_done(), data))
}

#[test]
fn a_chunked_body_ends_where_it_ends() {
    let whole = b"3\r\nabc\r\n0a;x=\"y\"\r\n0123456789\r\n0\r\nT: v\r\n\r\n";
    let with_more = [whole.as_slice(), b"GET / HTTP/1.1"].concat();
    let data = b"abc0123456789".to_vec();
    assert_eq!(chunks(&with_more), Ok((whole.len(), true, data)));
    let mut state = Chunks::START;
    for (at, byte) in whole.iter().enumerate() {
        assert!(!state.is_done(), "ended before byte {at}");
        assert_eq!(state.advance(&[*byte], |_| {}), Ok(1));
    }
    assert!(state.is_done());
}

#[test]
fn trailers_are_handed_out_without_the_blank_line() {
    let mut trailers = Vec::new();
    let mut state = Chunks::START;
    let used = state.advance(b"1;e\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n", |piece| {
        if let Piece::Trailer(bytes) = piece {
            trailers.extend_from_slice(bytes);
        }
    });
    assert_eq!((used, state.is_done()), (Ok(25), true));
    assert_eq!(trailers, b"A: b\r\nC: d\r\n");
}

#[test]
fn malformed_chunks_are_refused() {
    for body in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\n",
        "0x1\r\n",
        " 1\r\n",
        "1 \r\n",
        "1\n",
        "1\ra",
        "1;\n\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1\r\na\ra",
        "0\r\n x\r\n",
        "0\r\nx\n",
        "0000000000000001\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "0\r\na\0\r\n",
        "0\r\nno colon\r\n",
        "0\r\nContent-Length: 1\r\n",
        "0\r\ntransfer-encoding: chunked\r\n",
        "0\r\nProxy-Authorization: x\r\n",
    ] {
        assert!(chunks(body.as_bytes()).is_err(), "{body:?}");
    }
    let endless = format!("1;{}\r\n", "x".repeat(300));
    assert!(chunks(endless.as_bytes()).is_err());
}
