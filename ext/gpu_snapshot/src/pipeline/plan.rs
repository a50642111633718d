//! What a restore has to do, in the order of the disk.
//! It must never read the same stored bytes twice: equal chunks share one read.

use super::restore::Placement;
use crate::device::Va;
use crate::image::{Codec, Snapshot};
use crate::{Error, Result};

/// One chunk and its place on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) record: usize,
    pub(super) va: Va,
    pub(super) len: u64,
    /// The next step needs the same bytes at another place.
    pub(super) more: bool,
}

/// All the work of a restore.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By place on disk.
    pub(super) steps: Vec<Step>,
    /// The first step of each read.
    pub(super) reads: Vec<usize>,
    /// Ranges to zero: address and length; adjacent chunks are one range.
    pub(super) zeros: Vec<(Va, u64)>,
}

impl Plan {
    pub(super) fn new(snapshot: &Snapshot, placements: &[Placement]) -> Result<Self> {
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
        Ok(plan)
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
