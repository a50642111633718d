//! What a restore has to do, in the order of the disk.
//! It must never read the same stored bytes twice: equal chunks share one read.

use super::options::Placement;
use crate::device::Va;
use crate::image::{Codec, Snapshot};
use crate::{Error, Result};
use std::ops::Range;

/// One chunk and its place on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) record: usize,
    pub(super) va: Va,
    pub(super) len: u64,
    /// The next step needs the same bytes at another place.
    pub(super) more: bool,
}

/// A piece of a stored chunk that is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Index of its chunk among the reads.
    pub(super) read: usize,
    /// Where it begins in the stored chunk.
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// All the work of a restore.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By place on disk.
    pub(super) steps: Vec<Step>,
    /// The first step of each stored chunk.
    pub(super) reads: Vec<usize>,
    /// The chunks' parts, in the order of the disk.
    pub(super) parts: Vec<Part>,
    /// The first part of each chunk, and the end.
    first_parts: Vec<usize>,
    /// Ranges to zero: address and length; adjacent chunks are one range.
    pub(super) zeros: Vec<(Va, u64)>,
}

impl Plan {
    pub(super) fn new(
        snapshot: &Snapshot,
        placements: &[Placement],
        part_len: usize,
    ) -> Result<Self> {
        let mut plan = Self::default();
        for placement in placements {
            plan.add(snapshot, *placement)?;
        }
        let place = |step: &Step| {
            let record = &snapshot.records()[step.record];
            (record.seg, record.seg_off)
        };
        plan.steps.sort_by_key(|step| (place(step), step.record));
        for index in 0..plan.steps.len() {
            let here = place(&plan.steps[index]);
            plan.steps[index].more = plan.steps.get(index + 1).map(place) == Some(here);
            if index == 0 || !plan.steps[index - 1].more {
                plan.reads.push(index);
            }
        }
        plan.cut(snapshot, part_len);
        Ok(plan)
    }

    fn cut(&mut self, snapshot: &Snapshot, part_len: usize) {
        let steps = &self.steps;
        let stored_len =
            |first: &usize| snapshot.records()[steps[*first].record].stored_len as usize;
        let parts = self
            .reads
            .iter()
            .map(|first| stored_len(first).div_ceil(part_len));
        self.parts.reserve_exact(parts.sum());
        self.first_parts.reserve_exact(self.reads.len() + 1);
        for (read, first) in self.reads.iter().enumerate() {
            self.first_parts.push(self.parts.len());
            let stored = stored_len(first);
            for offset in (0..stored).step_by(part_len) {
                let (len, offset) = (part_len.min(stored - offset), offset as u64);
                self.parts.push(Part { read, offset, len });
            }
        }
        self.first_parts.push(self.parts.len());
    }

    /// The parts of a chunk.
    pub(super) fn parts_of(&self, read: usize) -> Range<usize> {
        self.first_parts[read]..self.first_parts[read + 1]
    }

    /// The record that stores a part.
    pub(super) fn record_of(&self, part: usize) -> usize {
        self.steps[self.reads[self.parts[part].read]].record
    }

    /// Where a part of a step's chunk goes, and how much of it is no padding.
    pub(super) fn target(&self, step: usize, part: usize) -> (Va, u64) {
        let (step, part) = (&self.steps[step], &self.parts[part]);
        let len = step.len.saturating_sub(part.offset).min(part.len as u64);
        (Va(step.va.0 + part.offset), len)
    }

    fn add(&mut self, snapshot: &Snapshot, placement: Placement) -> Result<()> {
        let Placement { region_id, va } = placement;
        let region = snapshot.manifest().region(region_id);
        let region = region.ok_or_else(|| Error::Invalid(format!("no region {region_id}")))?;
        if va.checked_add(region.len).is_none() {
            return Err(Error::Invalid(format!(
                "region {region_id} does not fit at {va:?}"
            )));
        }
        let start = snapshot
            .records()
            .partition_point(|record| record.region_id < region_id);
        let records = &snapshot.records()[start..];
        let records = records
            .iter()
            .take_while(|record| record.region_id == region_id);
        for (record, chunk) in (start..).zip(records) {
            let (va, len) = (Va(va.0 + chunk.region_off), u64::from(chunk.raw_len));
            if chunk.codec != Codec::Zero {
                self.steps.push(Step {
                    record,
                    va,
                    len,
                    more: false,
                });
                continue;
            }
            match self.zeros.last_mut() {
                Some((at, size)) if at.0 + *size == va.0 => *size += len,
                _ => self.zeros.push((va, len)),
            }
        }
        Ok(())
    }
}
