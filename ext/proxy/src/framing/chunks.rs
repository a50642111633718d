//! Chunked bodies, read as a state machine over their bytes.
//! Must never accept a chunk that another parser could end elsewhere.

use super::fields::is_token;
use super::{Piece, Refusal, bad};

/// Where a chunked body ends, and that it is well formed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunks {
    state: State,
    /// The name of the trailer field in hand, as far as it can be one of those that are refused.
    name: [u8; NAME_MAX],
    name_length: u8,
    /// The byte read last belongs to a trailer field.
    in_trailer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { length: u16, size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart { length: u16 },
    TrailerName { length: u16 },
    TrailerValue { length: u16 },
    TrailerLf { length: u16 },
    EndLf,
    Done,
}

const NAME_MAX: usize = 20;
const TRAILER_BYTES_MAX: u16 = 8192;
const EXTENSION_BYTES_MAX: u16 = 256;

/// What a trailer may not change after the head was acted upon.
const NOT_IN_A_TRAILER: [&[u8]; 14] = [
    b"authorization",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"cookie",
    b"expect",
    b"host",
    b"keep-alive",
    b"set-cookie",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
];

impl Chunks {
    pub(crate) const START: Self = Self {
        state: State::Size { digits: 0, size: 0 },
        name: [0; NAME_MAX],
        name_length: 0,
        in_trailer: false,
    };

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads on in `bytes`, hands out what is in them, and returns how many belong to this body.
    pub(crate) fn advance(
        &mut self,
        bytes: &[u8],
        mut hand_out: impl FnMut(Piece<'_>),
    ) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if let State::Data { left } = self.state {
                let take = left.min((bytes.len() - at) as u64);
                hand_out(Piece::Data(&bytes[at..at + take as usize]));
                at += take as usize;
                self.state = match left - take {
                    0 => State::DataCr,
                    left => State::Data { left },
                };
                continue;
            }
            self.state = self.step(bytes[at])?;
            if self.in_trailer {
                hand_out(Piece::Trailer(&bytes[at..=at]));
            }
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        match (self.state, byte) {
            (State::Size { digits, size }, _) if byte.is_ascii_hexdigit() => {
                if digits >= 15 {
                    return Err(bad("a chunk size with too many digits"));
                }
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                Ok(State::Size {
                    digits: digits + 1,
                    size: size * 16 + u64::from(digit),
                })
            }
            (State::Size { digits, size }, b'\r') if digits > 0 => Ok(State::SizeLf { size }),
            (State::Size { digits, size }, b';') if digits > 0 => {
                Ok(State::Extension { length: 0, size })
            }
            (State::Extension { size, .. }, b'\r') => Ok(State::SizeLf { size }),
            (State::Extension { length, size }, b'\t' | 0x20..=0x7e)
                if length < EXTENSION_BYTES_MAX =>
            {
                let length = length + 1;
                Ok(State::Extension { length, size })
            }
            (State::SizeLf { size: 0 }, b'\n') => Ok(State::TrailerStart { length: 0 }),
            (State::SizeLf { size }, b'\n') => Ok(State::Data { left: size }),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(Self::START.state),
            _ => self.step_trailer(byte),
        }
    }

    fn step_trailer(&mut self, byte: u8) -> Result<State, Refusal> {
        match (self.state, byte) {
            (State::TrailerStart { .. }, b'\r') => {
                self.in_trailer = false;
                Ok(State::EndLf)
            }
            (State::EndLf, b'\n') => Ok(State::Done),
            (State::TrailerStart { length }, _) if is_token(byte) => {
                self.in_trailer = true;
                self.name_length = 0;
                self.note(byte);
                Ok(State::TrailerName { length: length + 1 })
            }
            (State::TrailerName { length }, b':') => {
                let name = &self.name[..usize::from(self.name_length)];
                if name.starts_with(b"proxy-") || NOT_IN_A_TRAILER.contains(&name) {
                    return Err(bad("a trailer field that may only stand in the head"));
                }
                Ok(State::TrailerValue { length })
            }
            (State::TrailerName { length }, _) if is_token(byte) && length < TRAILER_BYTES_MAX => {
                self.note(byte);
                Ok(State::TrailerName { length: length + 1 })
            }
            (State::TrailerValue { length }, b'\t' | 0x20..=0x7e | 0x80..)
                if length < TRAILER_BYTES_MAX =>
            {
                Ok(State::TrailerValue { length: length + 1 })
            }
            (State::TrailerValue { length }, b'\r') => Ok(State::TrailerLf { length }),
            (State::TrailerLf { length }, b'\n') => Ok(State::TrailerStart { length }),
            _ => Err(bad("the chunked body is malformed")),
        }
    }

    fn note(&mut self, byte: u8) {
        if let Some(place) = self.name.get_mut(usize::from(self.name_length)) {
            *place = byte.to_ascii_lowercase();
            self.name_length += 1;
        }
    }
}
