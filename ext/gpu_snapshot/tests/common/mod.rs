//! A file system in memory that knows what is durable and can be killed before any call.
//! It must never be kinder than a real one: what was not fsynced may be lost by a power cut.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod fake;
pub mod rig;
pub mod sample;

use gpu_snapshot::storage::{Entry, Open, Storage, StoredFile};
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard};

type Node = usize;

#[derive(Clone, Default)]
struct Inode {
    is_dir: bool,
    bytes: Vec<u8>,
    durable_bytes: Vec<u8>,
    names: BTreeMap<String, Node>,
    durable_names: BTreeMap<String, Node>,
}

/// What goes wrong, and when; counted in calls that change something.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// The process dies before this call; a write is done by half.
    pub kill_at: Option<usize>,
    /// This call fails with this errno.
    pub fail_at: Option<(usize, i32)>,
    /// `allocate` fails with ENOSPC beyond so many bytes a file.
    pub allocate_max: Option<u64>,
    /// Reads of this offset, of any file, fail with EIO, as on a bad sector.
    pub bad_sector: Option<u64>,
    /// Reads and writes are short and often interrupted.
    pub stutter: bool,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    faults: Faults,
    calls: usize,
    dead: bool,
    stutters: usize,
}

#[derive(Clone, Default)]
pub struct MemStorage(Arc<Mutex<State>>);

struct MemFile(MemStorage, Node);

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// A small generator; enough for choosing what a power cut keeps.
pub fn next_random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

impl MemStorage {
    pub fn new() -> Self {
        let storage = Self::default();
        storage.state().inodes.push(Inode {
            is_dir: true,
            ..Inode::default()
        });
        storage
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        state.calls = 0;
    }

    pub fn calls(&self) -> usize {
        self.state().calls
    }

    pub fn dead(&self) -> bool {
        self.state().dead
    }

    /// A new process on the same machine: what was written is there, fsynced or not.
    pub fn reborn(&self) -> Self {
        let inodes = self.state().inodes.clone();
        Self(Arc::new(Mutex::new(State {
            inodes,
            ..State::default()
        })))
    }

    /// The machine lost power: of everything not fsynced, `seed` chooses what survived.
    pub fn after_power_cut(&self, mut seed: u64) -> Self {
        let reborn = self.reborn();
        for inode in &mut reborn.state().inodes {
            let keep = next_random(&mut seed) % 3;
            if keep == 0 || seed == 0 {
                inode.bytes = inode.durable_bytes.clone();
            } else if keep == 1 && inode.bytes != inode.durable_bytes {
                let cut = (next_random(&mut seed) as usize) % (inode.bytes.len() + 1);
                inode.bytes[cut..].fill(0);
            }
            // A journaling file system keeps or loses a rename as a whole.
            let renamed = inode
                .durable_names
                .keys()
                .any(|name| !inode.names.contains_key(name));
            let mut names = inode.durable_names.clone();
            if renamed && next_random(&mut seed) % 2 == 1 {
                names = inode.names.clone();
            } else if !renamed {
                for (name, node) in inode.names.clone() {
                    if next_random(&mut seed) % 2 == 1 {
                        names.insert(name, node);
                    }
                }
            }
            inode.names = names;
            inode.durable_bytes = inode.bytes.clone();
            inode.durable_names = inode.names.clone();
        }
        reborn
    }

    pub fn read_file(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.find(path).unwrap()].bytes.clone()
    }

    pub fn write_file(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let (dir, name) = state.parent(path).unwrap();
        let node = match state.inodes[dir].names.get(&name) {
            Some(node) => *node,
            None => state.add(dir, name, false),
        };
        state.inodes[node].bytes = bytes.to_vec();
    }
}

impl State {
    fn find(&self, path: &Path) -> io::Result<Node> {
        let mut names = path
            .components()
            .filter(|part| matches!(part, Component::Normal(_)));
        names.try_fold(0, |node, part| {
            let name = part.as_os_str().to_str().unwrap();
            self.inodes[node]
                .names
                .get(name)
                .copied()
                .ok_or_else(not_found)
        })
    }

    fn parent(&self, path: &Path) -> io::Result<(Node, String)> {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok((self.find(path.parent().unwrap())?, name))
    }

    fn add(&mut self, dir: Node, name: String, is_dir: bool) -> Node {
        self.inodes.push(Inode {
            is_dir,
            ..Inode::default()
        });
        let node = self.inodes.len() - 1;
        self.inodes[dir].names.insert(name, node);
        node
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead {
            Err(io::Error::other("the process is dead"))
        } else {
            Ok(())
        }
    }

    /// Counts one changing call; `Ok(true)` says that this one is the last, to be done by half.
    fn change(&mut self) -> io::Result<bool> {
        self.alive()?;
        let call = self.calls;
        self.calls += 1;
        if self.faults.fail_at.is_some_and(|(at, _)| at == call) {
            return Err(io::Error::from_raw_os_error(self.faults.fail_at.unwrap().1));
        }
        self.dead = self.faults.kill_at == Some(call);
        Ok(self.dead)
    }

    fn whole_change(&mut self) -> io::Result<()> {
        if self.change()? { self.alive() } else { Ok(()) }
    }

    /// How many of `len` bytes this call may move.
    fn step(&mut self, len: usize) -> io::Result<usize> {
        if !self.faults.stutter || len == 0 {
            return Ok(len);
        }
        self.stutters += 1;
        if self.stutters.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok((1 + self.stutters * 7 % 1000).min(len))
    }
}

impl StoredFile for MemFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.0.state();
        state.alive()?;
        let end = offset + bytes.len() as u64;
        let bad = |sector: u64| (offset..end).contains(&sector);
        if state.faults.bad_sector.is_some_and(bad) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let offset = offset as usize;
        let left = state.inodes[self.1].bytes.len().saturating_sub(offset);
        let count = state.step(left.min(bytes.len()))?;
        bytes[..count].copy_from_slice(&state.inodes[self.1].bytes[offset..offset + count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.0.state();
        let last = state.change()?;
        let count = if last {
            bytes.len() / 2
        } else {
            state.step(bytes.len())?
        };
        let (offset, file) = (offset as usize, &mut state.inodes[self.1].bytes);
        file.resize(file.len().max(offset + count), 0);
        file[offset..offset + count].copy_from_slice(&bytes[..count]);
        if last {
            Err(io::Error::other("the process is dead"))
        } else {
            Ok(count)
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.state();
        state.whole_change()?;
        if state.faults.allocate_max.is_some_and(|max| len > max) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = &mut state.inodes[self.1].bytes;
        file.resize(file.len().max(len as usize), 0);
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.state();
        state.whole_change()?;
        state.inodes[self.1].bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.state();
        state.whole_change()?;
        let inode = &mut state.inodes[self.1];
        inode.durable_bytes = inode.bytes.clone();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.0.state();
        state.alive()?;
        Ok(state.inodes[self.1].bytes.len() as u64)
    }

    fn direct(&self) -> bool {
        false
    }
}

impl Storage for MemStorage {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn StoredFile>> {
        let mut state = self.state();
        state.alive()?;
        let create = matches!(how, Open::Create | Open::CreateDirect);
        let node = match state.find(path) {
            Ok(_) if create => return Err(io::ErrorKind::AlreadyExists.into()),
            Ok(node) => node,
            Err(_) if create => {
                state.whole_change()?;
                let (dir, name) = state.parent(path)?;
                state.add(dir, name, false)
            }
            Err(error) => return Err(error),
        };
        Ok(Box::new(MemFile(self.clone(), node)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        if state.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.whole_change()?;
        let (dir, name) = state.parent(path)?;
        state.add(dir, name, true);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.whole_change()?;
        let node = state.find(path)?;
        let inode = &mut state.inodes[node];
        inode.durable_names = inode.names.clone();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        if state.find(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = state.find(from)?;
        state.whole_change()?;
        let (source, name) = state.parent(from)?;
        state.inodes[source].names.remove(&name);
        let (target, name) = state.parent(to)?;
        state.inodes[target].names.insert(name, node);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.find(path)?;
        state.whole_change()?;
        let (dir, name) = state.parent(path)?;
        state.inodes[dir].names.remove(&name);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        if !self.list(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.remove_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let state = self.state();
        state.alive()?;
        let names = &state.inodes[state.find(path)?].names;
        let entry = |(name, node): (&String, &Node)| Entry {
            name: name.clone(),
            is_dir: state.inodes[*node].is_dir,
        };
        Ok(names.iter().map(entry).collect())
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.state().alive()?;
        Ok(Box::new(()))
    }
}
