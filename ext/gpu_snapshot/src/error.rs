//! The errors of this crate: one enum whose variants a caller can act on.
//! It must never lose the reason: every variant carries what was asked and what was found.

use std::fmt;

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused or failed.
#[derive(Debug)]
pub enum Error {
    /// The device has too little free memory; both values are bytes.
    OutOfMemory {
        /// Bytes asked for, rounded up to the device's granularity.
        asked: u64,
        /// Bytes that were free.
        free: u64,
    },
    /// The pinned host pool has too few free slots; both values are bytes.
    OutOfHostMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes that were free.
        free: u64,
    },
    /// An argument breaks a rule of the interface; the text names it.
    Invalid(String),
    /// No memory is held under this handle; also after it was freed.
    NotHeld(u64),
    /// The operating system refused a call; `what` names the call and its object.
    Io {
        /// The call and the file or object it was made on.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A snapshot is not what its writer published: torn, truncated, flipped or put together.
    Corrupt {
        /// The file or record that is wrong.
        what: String,
        /// The rule it breaks, with the values found.
        why: String,
    },
    /// Chunks whose bytes do not match their checksums, or that could not be read: all of them.
    BadChunks(Vec<BadChunk>),
    /// A newer writer made this snapshot, or it uses a feature this reader does not have.
    Unsupported(String),
    /// The snapshot is sound but was taken elsewhere; one reason for each difference.
    Incompatible(Vec<String>),
    /// The device refused a call.
    Device {
        /// The call.
        call: String,
        /// The driver's result code; see [`code`].
        code: i32,
        /// The driver's text, or what a simulated device models.
        why: String,
    },
    /// Nothing happened for too long; the device may be hung.
    Timeout(String),
    /// Somebody cancelled the job; its device memory holds nothing of use.
    Cancelled,
}

/// Result codes of the CUDA driver that this crate tells apart (cuda.h).
pub mod code {
    /// CUDA_ERROR_INVALID_VALUE
    pub const INVALID_VALUE: i32 = 1;
    /// CUDA_ERROR_OUT_OF_MEMORY
    pub const OUT_OF_MEMORY: i32 = 2;
    /// CUDA_ERROR_NO_DEVICE: also when there is no driver to ask.
    pub const NO_DEVICE: i32 = 100;
    /// CUDA_ERROR_INVALID_DEVICE
    pub const INVALID_DEVICE: i32 = 101;
    /// CUDA_ERROR_OPERATING_SYSTEM: what a restore answers for ever after one ran out of memory.
    pub const OPERATING_SYSTEM: i32 = 304;
    /// CUDA_ERROR_ILLEGAL_STATE
    pub const ILLEGAL_STATE: i32 = 401;
    /// CUDA_ERROR_NOT_READY: a lock timed out; the process keeps running.
    pub const NOT_READY: i32 = 600;
    /// CUDA_ERROR_NOT_SUPPORTED
    pub const NOT_SUPPORTED: i32 = 801;
}

/// One chunk that must not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadChunk {
    /// Index of the chunk in the table.
    pub index: usize,
    /// The region it belongs to.
    pub region_id: u32,
    /// Offset in the region, bytes.
    pub region_off: u64,
    /// What was wrong with it.
    pub why: String,
}

impl Error {
    /// Wraps an operating-system error together with the call that met it.
    pub fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }

    /// A refusal of the device.
    pub fn device(call: &str, code: i32, why: impl Into<String>) -> Self {
        Self::Device {
            call: call.to_owned(),
            code,
            why: why.into(),
        }
    }

    /// A snapshot's part and the rule it breaks.
    pub fn corrupt(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Corrupt {
            what: what.into(),
            why: why.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory { asked, free } => {
                write!(
                    out,
                    "out of device memory: {asked} bytes asked, {free} bytes free"
                )
            }
            Self::OutOfHostMemory { asked, free } => {
                write!(
                    out,
                    "out of pinned host memory: {asked} bytes asked, {free} bytes free"
                )
            }
            Self::Invalid(why) => write!(out, "invalid argument: {why}"),
            Self::NotHeld(handle) => write!(out, "no memory is held under handle {handle}"),
            Self::Io { what, source } => write!(out, "{what}: {source}"),
            Self::Corrupt { what, why } => write!(out, "corrupt snapshot: {what}: {why}"),
            Self::BadChunks(chunks) => {
                write!(out, "corrupt snapshot: {} bad chunks:", chunks.len())?;
                chunks.iter().try_for_each(|bad| write!(out, " {bad};"))
            }
            Self::Unsupported(why) => write!(out, "unsupported: {why}"),
            Self::Incompatible(why) => write!(out, "incompatible snapshot: {}", why.join("; ")),
            Self::Device { call, code, why } => write!(out, "{call} failed: {why} (code {code})"),
            Self::Timeout(what) => write!(out, "timed out: {what}"),
            Self::Cancelled => write!(out, "cancelled"),
        }
    }
}

impl fmt::Display for BadChunk {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            index,
            region_id,
            region_off,
            why,
        } = self;
        write!(
            out,
            "chunk {index} (region {region_id} at {region_off}): {why}"
        )
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
