//! Chunks that come in parts: which parts are here, and whether the whole chunk is sound.
//! It must never call a chunk sound before all of its bytes were checked.

use super::plan::Plan;
use crate::buffer::HostBuffer;
use crate::checksum::combine;
use crate::image::Snapshot;

/// What has come of each chunk. All room is made at the start.
#[derive(Debug)]
pub(super) struct Gather {
    /// Parts that are read and wait for the others of their chunk.
    waiting: Vec<Option<HostBuffer>>,
    /// The checksum of each part that was read.
    checksums: Vec<u32>,
    /// By chunk: parts still to come.
    missing: Vec<usize>,
    /// By chunk: why it is bad.
    faults: Vec<Option<String>>,
}

impl Gather {
    pub(super) fn new(plan: &Plan) -> Self {
        let chunks = 0..plan.reads.len();
        Self {
            waiting: plan.parts.iter().map(|_| None).collect(),
            checksums: vec![0; plan.parts.len()],
            missing: chunks
                .clone()
                .map(|read| plan.parts_of(read).len())
                .collect(),
            faults: chunks.map(|_| None).collect(),
        }
    }

    /// A part was read, or could not be; true when it was the last of its chunk.
    pub(super) fn put(
        &mut self,
        plan: &Plan,
        part: usize,
        buffer: HostBuffer,
        checksum: Result<u32, String>,
    ) -> bool {
        let read = plan.parts[part].read;
        match checksum {
            Ok(checksum) => self.checksums[part] = checksum,
            Err(why) => {
                self.faults[read].get_or_insert(why);
            }
        }
        self.waiting[part] = Some(buffer);
        self.missing[read] -= 1;
        self.missing[read] == 0
    }

    /// Whether a chunk that is complete is sound, and if not, why.
    pub(super) fn judge(
        &mut self,
        snapshot: &Snapshot,
        plan: &Plan,
        read: usize,
    ) -> Result<(), String> {
        if let Some(why) = self.faults[read].take() {
            return Err(why);
        }
        let parts = plan.parts_of(read);
        let first = self.checksums[parts.start];
        let rest = parts.start + 1..parts.end;
        let whole = rest.fold(first, |so_far, part| {
            combine(so_far, self.checksums[part], plan.parts[part].len as u64)
        });
        snapshot.check_chunk(plan.record_of(parts.start), whole)
    }

    /// A part that waits, to be copied or used again.
    pub(super) fn take(&mut self, part: usize) -> Option<HostBuffer> {
        self.waiting[part].take()
    }

    /// What waits for parts that will not come any more.
    pub(super) fn take_rest(&mut self) -> impl Iterator<Item = HostBuffer> {
        self.waiting.drain(..).flatten()
    }
}
