//! Raw bytes against the readers of heads and chunked bodies, with another parser as the witness.
//! Must never assume that input came from a program that means well.

use proptest::prelude::*;

use super::*;

const FIELDS_MAX: usize = 128;

/// Pieces that sit at the edges of the grammar; joined they make heads that are nearly right.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let chosen = prop::sample::select(vec![
        &b"Content-Length: 3\r\n"[..],
        b"Transfer-Encoding: chunked\r\n",
        b"Host: b\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade, x-a\r\n",
        b"Upgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"X-A: b\r\n",
        b"X-A:\t b \t\r\n",
        b"X-\xff: b\r\n",
        b"X: \xe9\r\n",
        b" folded\r\n",
        b": \r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
    ]);
    prop_oneof![
        8 => chosen.prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

fn head() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        &b"GET / HTTP/1.1\r\nHost: a\r\n"[..],
        b"POST /x?y=%00 HTTP/1.1\r\nHost: a\r\n",
        b"POST /x HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: [::1]:1\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n",
    ]);
    (line, prop::collection::vec(fragment(), 0..5)).prop_map(|(line, fragments)| {
        let mut head = line.to_vec();
        head.extend(fragments.concat());
        head.extend(b"\r\n");
        head
    })
}

/// The first head in `bytes`, as the connection would cut it out.
fn first_head(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = head_end(bytes, &mut 0)?;
    Some(bytes[..end].to_vec())
}

fn decode(bytes: &[u8], split: usize) -> Result<(Vec<u8>, usize, bool), Refusal> {
    let (mut framer, mut data, mut used) = (Framer::CHUNKED, Vec::new(), 0);
    let (first, second) = bytes.split_at(split.min(bytes.len()));
    for part in [first, second] {
        used += framer.advance(part, |piece| data.extend_from_slice(piece.data()))?;
    }
    Ok((data, used, framer.is_done()))
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Some(head) = first_head(&bytes) {
            let _ = RequestHead::parse(head);
        }
        let _ = decode(&bytes, bytes.len());
    }

    /// What passes here means the same to a parser that is more lenient: the same request line, the
    /// same fields, none more and none less.
    #[test]
    fn what_passes_is_read_alike_by_another_parser(bytes in head()) {
        let Some(cut) = first_head(&bytes) else {
            return Ok(());
        };
        let Ok(ours) = RequestHead::parse(cut.clone()) else {
            return Ok(());
        };
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut theirs = httparse::Request::new(&mut fields);
        let status = theirs.parse(&cut);
        prop_assert_eq!(status, Ok(httparse::Status::Complete(cut.len())));
        prop_assert_eq!(theirs.method, Some(ours.method()));
        prop_assert_eq!(theirs.path, Some(ours.target()));
        prop_assert_eq!(theirs.version, Some(u8::from(ours.version_11)));
        prop_assert_eq!(theirs.headers.len(), ours.fields.len());
        for (their, our) in theirs.headers.iter().zip(&ours.fields) {
            let name = their.name.to_ascii_lowercase();
            prop_assert_eq!(name.as_bytes(), our.name.of(&ours.raw));
            prop_assert_eq!(their.value.trim_ascii(), our.value.of(&ours.raw));
        }
    }

    /// Where a head ends does not depend on how it arrives.
    #[test]
    fn a_head_in_parts_ends_where_the_whole_does(bytes in head(), split in 0usize..120) {
        let whole = head_end(&bytes, &mut 0);
        let mut scanned = 0;
        let split = split.min(bytes.len());
        let first = head_end(&bytes[..split], &mut scanned);
        prop_assert_eq!(first.or_else(|| head_end(&bytes, &mut scanned)), whole);
    }

    #[test]
    fn a_chunked_body_comes_out_as_it_went_in(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5),
        split in 0usize..300,
        rest in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut body = Vec::new();
        for chunk in &chunks {
            body.extend(format!("{:x}\r\n", chunk.len()).bytes());
            body.extend(chunk);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n\r\n");
        let end = body.len();
        // What follows belongs to the next request.
        body.extend(rest);
        prop_assert_eq!(decode(&body, split), Ok((chunks.concat(), end, true)));
    }

    /// A damaged body is judged alike however it arrives.
    #[test]
    fn chunks_in_parts_are_judged_like_the_whole(
        at in 0usize..24,
        byte in any::<u8>(),
        split in 0usize..24,
    ) {
        let mut body = b"3;e=1\r\nabc\r\n0\r\nA: b\r\n\r\n".to_vec();
        let place = at % body.len();
        body[place] = byte;
        prop_assert_eq!(decode(&body, split), decode(&body, body.len()));
    }
}
