//! The strict reading of HTTP/1 framing: what a head may look like and where its body ends.
//! Must never be more lenient than a server behind it, and never interpret anything but framing.

mod answer;
mod chunks;
mod fields;
mod request;

pub(crate) use self::answer::AnswerHead;
pub(crate) use self::chunks::Chunks;
pub(crate) use self::fields::Known;
pub(crate) use self::request::RequestHead;

/// Why a message is refused before anything acts upon it.
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

/// A part of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Data(&'a [u8]),
    /// Bytes of the trailer fields, each line with its end.
    Trailer(&'a [u8]),
}

impl<'a> Piece<'a> {
    pub(crate) fn data(self) -> &'a [u8] {
        match self {
            Self::Data(data) => data,
            Self::Trailer(_) => &[],
        }
    }
}

/// Where a body ends; what has been read of it is counted off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framer {
    Length(u64),
    Chunked(Chunks),
    /// The body of an answer that ends with its connection.
    UntilClose,
}

impl Framer {
    pub(crate) const EMPTY: Self = Self::Length(0);
    pub(crate) const CHUNKED: Self = Self::Chunked(Chunks::START);

    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::UntilClose => false,
        }
    }

    /// Reads on in `bytes`, hands out what the body has in them, and returns how many belong
    /// to it.
    pub(crate) fn advance(
        &mut self,
        bytes: &[u8],
        mut hand_out: impl FnMut(Piece<'_>),
    ) -> Result<usize, Refusal> {
        match self {
            Self::Length(left) => {
                let mine = (*left).min(bytes.len() as u64) as usize;
                *left -= mine as u64;
                hand_out(Piece::Data(&bytes[..mine]));
                Ok(mine)
            }
            Self::Chunked(chunks) => chunks.advance(bytes, hand_out),
            Self::UntilClose => {
                hand_out(Piece::Data(bytes));
                Ok(bytes.len())
            }
        }
    }
}

/// Where the head at the start of `bytes` ends, when it does. A bare LF ends it as well, so that it
/// can be refused at once. `scanned` remembers how far earlier calls looked.
pub(crate) fn head_end(bytes: &[u8], scanned: &mut usize) -> Option<usize> {
    let mut from = scanned.saturating_sub(3);
    while let Some(offset) = memchr::memchr(b'\n', &bytes[from..]) {
        let at = from + offset;
        let bare = at == 0 || bytes[at - 1] != b'\r';
        if bare || bytes[..=at].ends_with(b"\r\n\r\n") {
            *scanned = 0;
            return Some(at + 1);
        }
        from = at + 1;
    }
    *scanned = bytes.len();
    None
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
