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
    /// An argument breaks a rule of the interface; the text names it.
    Invalid(String),
    /// The operating system refused a call; `what` names the call and its object.
    Io {
        /// The call and the file or object it was made on.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps an operating-system error together with the call that met it.
    pub fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
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
            Self::Invalid(why) => write!(out, "invalid argument: {why}"),
            Self::Io { what, source } => write!(out, "{what}: {source}"),
        }
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
