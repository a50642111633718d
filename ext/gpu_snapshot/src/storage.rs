//! The file system as this crate uses it: a small trait, so that tests can fail or kill every call.
//! It must never hide a weaker promise: whether direct I/O is really in use can be asked.

use rustix::fs::{self as sys, AtFlags, Mode, OFlags, RenameFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How a file is opened; symbolic links are never followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Read through the page cache.
    Read,
    /// Read past the page cache where the file system allows it.
    ReadDirect,
    /// Create, read and write; fails when the name exists. Mode 0600.
    Create,
    /// Like `Create`, past the page cache where the file system allows it.
    CreateDirect,
}

/// One open file. Reads and writes may be short, like the system calls under them.
pub trait StoredFile: Send + Sync {
    /// Reads at an offset; 0 at the end of the file.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at an offset.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Reserves disk space for `len` bytes and makes the file that long.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts the file.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Whether this file bypasses the page cache; then buffers and offsets have to be aligned.
    fn direct(&self) -> bool;
    /// The descriptor, for a reader that asks the kernel itself; `None` when there is none.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name; names that are not UTF-8 are shown with replacement characters.
    pub name: String,
    /// Whether it is a directory (a symbolic link is not).
    pub is_dir: bool,
}

/// The calls on paths.
pub trait Storage: Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn StoredFile>>;
    /// Creates a directory of mode 0700; fails when the name exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory's entries durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames; fails when the target exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;
    /// Takes the one lock of a path, held until the answer is dropped; `WouldBlock` when taken.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsStorage;

struct OsFile {
    file: File,
    direct: bool,
}

impl StoredFile for OsFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match sys::fallocate(&self.file, sys::FallocateFlags::empty(), 0, len) {
            // Such file systems cannot promise space; a full disk then shows at the write.
            Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(len),
            other => Ok(other?),
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn direct(&self) -> bool {
        self.direct
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl Storage for OsStorage {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn StoredFile>> {
        let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let flags = match how {
            Open::Read | Open::ReadDirect => flags | OFlags::RDONLY,
            Open::Create | Open::CreateDirect => {
                flags | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL
            }
        };
        let mode = Mode::from_raw_mode(0o600);
        let direct = matches!(how, Open::ReadDirect | Open::CreateDirect);
        if direct {
            match sys::open(path, flags | OFlags::DIRECT, mode) {
                Ok(fd) => {
                    return Ok(Box::new(OsFile {
                        file: fd.into(),
                        direct: true,
                    }));
                }
                // The kernel creates the file before it finds that the file system cannot.
                Err(rustix::io::Errno::INVAL) if how == Open::CreateDirect => {
                    match sys::unlink(path) {
                        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let fd = sys::open(path, flags, mode)?;
        Ok(Box::new(OsFile {
            file: fd.into(),
            direct: false,
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Ok(sys::mkdir(path, Mode::from_raw_mode(0o700))?)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Ok(sys::fsync(open_dir(path)?)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(sys::renameat_with(
            sys::CWD,
            from,
            sys::CWD,
            to,
            RenameFlags::NOREPLACE,
        )?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Ok(sys::unlink(path)?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Ok(sys::unlinkat(sys::CWD, path, AtFlags::REMOVEDIR)?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(Entry {
                name,
                is_dir: entry.file_type()?.is_dir(),
            });
        }
        entries.sort();
        Ok(entries)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let dir = open_dir(path)?;
        sys::flock(dir.as_fd(), sys::FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(dir))
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(sys::open(path, flags, Mode::empty())?)
}

/// Fills all of `bytes`; a file that ends before is `UnexpectedEof`. Returns the calls it took.
pub fn read_exact(file: &dyn StoredFile, bytes: &mut [u8], offset: u64) -> io::Result<u64> {
    let (mut done, mut calls) = (0, 0);
    while done < bytes.len() {
        calls += 1;
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if retry(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(calls)
}

/// Writes all of `bytes`.
pub fn write_all(file: &dyn StoredFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(&bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if retry(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Only an interruption: a regular file never blocks, so `EAGAIN` would be a real fault.
fn retry(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}
