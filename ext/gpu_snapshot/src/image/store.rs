//! A directory of snapshots with one owner: start-up scan, listing, removal.
//! It must never delete something it did not make, and never list what it could not check.

use super::import::Import;
use super::manifest::Identity;
use super::read::Snapshot;
use super::write::{Draft, Writer, WriterLimits};
use crate::storage::Storage;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Snapshots in one directory. The lock makes this process its only owner.
pub struct Store {
    storage: Arc<dyn Storage>,
    root: PathBuf,
    _lock: Box<dyn Send + Sync>,
}

/// What the start-up scan found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Ids of the snapshots whose metadata is sound.
    pub sound: Vec<String>,
    /// Left-overs of interrupted saves and removals, now gone.
    pub removed: Vec<String>,
    /// Corrupt snapshots, renamed to `.bad-<id>`, each with its reason.
    pub quarantined: Vec<(String, String)>,
    /// Snapshots left alone because they cannot be judged: a newer format or an I/O error.
    pub skipped: Vec<(String, String)>,
}

/// Refuses ids that are no plain name.
pub(super) fn check_id(id: &str) -> Result<()> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !id.is_empty() && id.len() <= 128 && id.bytes().all(fine) {
        return Ok(());
    }
    Err(Error::Invalid(format!("snapshot id {id:?}")))
}

/// Removes a directory and what is in it; a missing one is fine.
pub(super) fn remove_tree(storage: &dyn Storage, path: &Path) -> Result<()> {
    let gone = |call: &str, path: &Path, result: std::io::Result<()>| match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| Error::io(format!("{call} {}", path.display()), error)),
    };
    let entries = match storage.list(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| Error::io(format!("list {}", path.display()), error))?,
    };
    for entry in entries {
        let inner = path.join(&entry.name);
        if entry.is_dir {
            remove_tree(storage, &inner)?;
        } else {
            gone("unlink", &inner, storage.remove_file(&inner))?;
        }
    }
    gone("rmdir", path, storage.remove_dir(path))
}

/// Reads and checks every byte of every snapshot in a directory, whoever owns it, and changes
/// nothing. What is wrong with each, by id; `None` for a sound one.
pub fn fsck(storage: &dyn Storage, root: &Path) -> Result<Vec<(String, Option<Error>)>> {
    let entries = storage
        .list(root)
        .map_err(|error| Error::io(format!("list {}", root.display()), error))?;
    let ids = entries.iter().filter(|entry| entry.is_dir);
    let ids = ids.filter_map(|entry| entry.name.strip_prefix("snap-"));
    let judge = |id: &str| {
        let sound = open_named(storage, root, id).and_then(|found| found.verify(storage));
        (id.to_owned(), sound.err())
    };
    Ok(ids.map(judge).collect())
}

/// Opens a snapshot. One whose manifest has another id was moved there and is corrupt.
fn open_named(storage: &dyn Storage, root: &Path, id: &str) -> Result<Snapshot> {
    check_id(id)?;
    let snapshot = Snapshot::open(storage, &root.join(format!("snap-{id}")))?;
    if snapshot.manifest().id != id {
        let why = format!("it is of snapshot {:?}, not {id:?}", snapshot.manifest().id);
        return Err(Error::corrupt(super::MANIFEST, why));
    }
    Ok(snapshot)
}

impl Store {
    /// Takes the directory over, cleans up after a crash and checks what is there.
    /// `Io` with `WouldBlock` when another process owns it.
    pub fn open(storage: Arc<dyn Storage>, root: &Path) -> Result<(Self, Scan)> {
        match storage.create_dir(root) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => {
                other.map_err(|error| Error::io(format!("mkdir {}", root.display()), error))?
            }
        }
        let lock = storage
            .lock(root)
            .map_err(|error| Error::io(format!("lock {}", root.display()), error))?;
        let store = Self {
            storage,
            root: root.to_owned(),
            _lock: lock,
        };
        let scan = store.scan()?;
        Ok((store, scan))
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = self
            .storage
            .list(&self.root)
            .map_err(|error| Error::io(format!("list {}", self.root.display()), error))?;
        Ok(entries
            .into_iter()
            .filter(|entry| entry.is_dir)
            .map(|entry| entry.name)
            .collect())
    }

    fn scan(&self) -> Result<Scan> {
        let mut scan = Scan::default();
        for name in self.names()? {
            if name.starts_with(".tmp-") || name.starts_with(".del-") {
                remove_tree(&*self.storage, &self.root.join(&name))?;
                scan.removed.push(name);
            } else if let Some(id) = name.strip_prefix("snap-") {
                self.judge(id, &mut scan)?;
            }
        }
        Ok(scan)
    }

    fn judge(&self, id: &str, scan: &mut Scan) -> Result<()> {
        match self.snapshot(id) {
            Ok(_) => scan.sound.push(id.to_owned()),
            Err(error @ Error::Corrupt { .. }) => {
                self.set_aside(id, ".bad-")?;
                scan.quarantined.push((id.to_owned(), error.to_string()));
            }
            Err(error) => scan.skipped.push((id.to_owned(), error.to_string())),
        }
        Ok(())
    }

    /// Renames a snapshot out of sight; a second one of the same id gets a number.
    fn set_aside(&self, id: &str, prefix: &str) -> Result<PathBuf> {
        let from = self.path(id);
        for number in 0..1000 {
            let suffix = if number == 0 {
                String::new()
            } else {
                format!(".{number}")
            };
            let to = self.root.join(format!("{prefix}{id}{suffix}"));
            match self.storage.rename(&from, &to) {
                Ok(()) => {
                    self.sync()?;
                    return Ok(to);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(format!("rename {}", from.display()), error)),
            }
        }
        Err(Error::Invalid(format!("too many directories {prefix}{id}")))
    }

    fn sync(&self) -> Result<()> {
        self.storage
            .sync_dir(&self.root)
            .map_err(|error| Error::io(format!("fsync {}", self.root.display()), error))
    }

    /// Where a snapshot of this id is, or would be.
    pub fn path(&self, id: &str) -> PathBuf {
        self.root.join(format!("snap-{id}"))
    }

    /// The file system it is on.
    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Ids of the published snapshots, sorted; they are checked when they are opened.
    pub fn list(&self) -> Result<Vec<String>> {
        let names = self.names()?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_prefix("snap-"))
            .map(String::from)
            .collect())
    }

    /// Opens a snapshot. One whose manifest has another id was moved there and is corrupt.
    pub fn snapshot(&self, id: &str) -> Result<Snapshot> {
        open_named(&*self.storage, &self.root, id)
    }

    /// Reads and checks every byte of a snapshot.
    pub fn fsck(&self, id: &str) -> Result<()> {
        self.snapshot(id)?.verify(&*self.storage)
    }

    /// Starts a snapshot; `Invalid` when the id is taken.
    pub fn writer(&self, draft: Draft, limits: WriterLimits) -> Result<Writer> {
        check_id(&draft.id)?;
        if self.list()?.contains(&draft.id) {
            return Err(Error::Invalid(format!("snapshot {} exists", draft.id)));
        }
        Writer::begin(Arc::clone(&self.storage), &self.root, draft, limits)
    }

    /// Starts to take a snapshot in from elsewhere: its three files of metadata are checked, and
    /// compared with `host`, before anything is written. `Invalid` when the id is taken.
    pub fn import(
        &self,
        commit: &[u8],
        manifest: &[u8],
        table: &[u8],
        host: Option<&Identity>,
    ) -> Result<Import> {
        let import = Import::begin(
            Arc::clone(&self.storage),
            &self.root,
            [commit, manifest, table],
            host,
        )?;
        Ok(import)
    }

    /// Removes a snapshot: out of sight at once, then from the disk; open readers keep theirs.
    pub fn remove(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let aside = self.set_aside(id, ".del-")?;
        remove_tree(&*self.storage, &aside)
    }
}
