//! How many tokens an answer of a model says it took: the `usage` near its end.
//! Must never hold more than the last bytes of an answer, nor change one.

const TAIL_BYTES: usize = 1024;
const NEEDLE: &[u8] = b"\"total_tokens\"";

/// The last bytes of an answer that passed.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    pub(crate) fn push(&mut self, data: &[u8]) {
        if data.len() >= TAIL_BYTES {
            self.bytes.clear();
            self.bytes
                .extend_from_slice(&data[data.len() - TAIL_BYTES..]);
            return;
        }
        if self.bytes.len() + data.len() > 2 * TAIL_BYTES {
            let keep_from = self.bytes.len() - TAIL_BYTES.min(self.bytes.len());
            self.bytes.drain(..keep_from);
        }
        self.bytes.extend_from_slice(data);
    }

    /// The last `"total_tokens": N`; None when the answer does not say.
    pub(crate) fn total_tokens(&self) -> Option<u64> {
        let at = memchr::memmem::rfind(&self.bytes, NEEDLE)?;
        let rest = self.bytes[at + NEEDLE.len()..].trim_ascii_start();
        let digits = rest.strip_prefix(b":")?.trim_ascii_start();
        let count = digits.iter().take_while(|it| it.is_ascii_digit()).count();
        std::str::from_utf8(&digits[..count]).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(answer: &[u8], piece: usize) -> Option<u64> {
        let mut tail = Tail::default();
        answer.chunks(piece).for_each(|data| tail.push(data));
        assert!(tail.bytes.len() <= 2 * TAIL_BYTES);
        tail.total_tokens()
    }

    #[test]
    fn the_last_usage_counts_however_it_is_cut() {
        let whole = br#"{"usage":{"total_tokens":7}} {"usage": {"total_tokens" : 42, "x": 1}}"#;
        let long = [vec![b'x'; 10_000], whole.to_vec(), vec![b' '; 500]].concat();
        for piece in [1, 3, 100, 1023, 1024, 5000, 100_000] {
            assert_eq!(tokens(whole, piece), Some(42), "{piece}");
            assert_eq!(tokens(&long, piece), Some(42), "{piece}");
        }
        for nothing in ["", "{}", r#""total_tokens""#, r#""total_tokens":null"#] {
            assert_eq!(tokens(nothing.as_bytes(), 5), None, "{nothing}");
        }
        let huge = format!("\"total_tokens\":{}", "9".repeat(40));
        assert_eq!(tokens(huge.as_bytes(), 7), None);
    }
}
