//! Whether a chunk table makes sense: the rules that hold between records, regions and segments.
//! It must never let through a record that would read or write outside of its place.

use super::manifest::{Manifest, Region};
use super::record::{Codec, Record};
use super::{TABLE, segment_name};
use crate::{Error, Result};

fn bad(index: usize, why: impl Into<String>) -> Error {
    Error::corrupt(format!("{TABLE} record {index}"), why)
}

/// Checks a whole table against a manifest that passed its own check. In this order:
/// (1) the count; (2) every record names a chunk of its region, each chunk exactly once, in order;
/// (3) stored bytes are aligned, inside their segment, and tile it without overlap or gap;
/// (4) a reference points at exactly the bytes of a stored chunk.
pub fn check_table(manifest: &Manifest, records: &[Record]) -> Result<()> {
    // (1)
    if records.len() as u64 != manifest.chunks {
        let why = format!(
            "{} records, the manifest says {}",
            records.len(),
            manifest.chunks
        );
        return Err(Error::corrupt(TABLE, why));
    }
    // (2)
    for (index, record) in records.iter().enumerate() {
        let region = check_place(manifest, record, index)?;
        let previous = index.checked_sub(1).map(|before| &records[before]);
        if let Some(previous) = previous {
            let key = |record: &Record| (record.region_id, record.region_off);
            if key(previous) == key(record) {
                return Err(bad(index, "the same chunk a second time"));
            }
            if key(previous) > key(record) {
                return Err(bad(index, "out of order"));
            }
        }
        check_stored(manifest, region, record, index)?;
    }
    // (3)
    let stored = check_tiling(manifest, records)?;
    // (4)
    for (index, record) in records.iter().enumerate() {
        if record.codec == Codec::Ref {
            check_reference(&stored, record, index)?;
        }
    }
    Ok(())
}

fn check_place<'a>(manifest: &'a Manifest, record: &Record, index: usize) -> Result<&'a Region> {
    let Some(region) = manifest.region(record.region_id) else {
        return Err(bad(index, format!("no region {}", record.region_id)));
    };
    if record.region_off >= region.len {
        let why = format!("offset {} is past region {}", record.region_off, region.id);
        return Err(bad(index, why));
    }
    let Some(raw_len) = region.raw_len(record.region_off) else {
        return Err(bad(
            index,
            format!("offset {} is no chunk's start", record.region_off),
        ));
    };
    if record.raw_len != raw_len {
        let why = format!(
            "{} raw bytes, the region has {raw_len} there",
            record.raw_len
        );
        return Err(bad(index, why));
    }
    Ok(region)
}

fn check_stored(manifest: &Manifest, region: &Region, record: &Record, index: usize) -> Result<()> {
    match record.codec {
        Codec::Zero => {
            let place = (record.seg, record.seg_off, record.stored_len, record.crc);
            if place == (0, 0, 0, 0) {
                return Ok(());
            }
            Err(bad(index, "a zero chunk with stored bytes"))
        }
        Codec::Ref => Ok(()),
        Codec::Raw => {
            if !record.seg_off.is_multiple_of(u64::from(region.align)) {
                return Err(bad(
                    index,
                    format!("segment offset {} is unaligned", record.seg_off),
                ));
            }
            let expected = region.stored_len(record.raw_len);
            if record.stored_len != expected {
                let why = format!("{} stored bytes, not {expected}", record.stored_len);
                return Err(bad(index, why));
            }
            let end = record.seg_off.checked_add(u64::from(record.stored_len));
            match (manifest.segments.get(usize::from(record.seg)), end) {
                (Some(segment), Some(end)) if end <= segment.len => Ok(()),
                (Some(_), _) => Err(bad(
                    index,
                    format!("past the end of {}", segment_name(record.seg)),
                )),
                (None, _) => Err(bad(index, format!("no segment {}", record.seg))),
            }
        }
    }
}

/// Returns the stored records by place.
fn check_tiling<'a>(manifest: &Manifest, records: &'a [Record]) -> Result<Vec<&'a Record>> {
    let place = |record: &Record| (record.seg, record.seg_off);
    let mut stored: Vec<(usize, &Record)> = records
        .iter()
        .enumerate()
        .filter(|(_, record)| record.codec == Codec::Raw)
        .collect();
    stored.sort_by_key(|(_, record)| place(record));
    let mut at = vec![0u64; manifest.segments.len()];
    for (index, record) in &stored {
        let end = &mut at[usize::from(record.seg)];
        if record.seg_off < *end {
            return Err(bad(
                *index,
                "its stored bytes overlap those of another chunk",
            ));
        }
        if record.seg_off > *end {
            return Err(bad(*index, "a gap in front of its stored bytes"));
        }
        *end += u64::from(record.stored_len);
    }
    for (index, (segment, end)) in manifest.segments.iter().zip(at).enumerate() {
        if segment.len != end {
            let why = format!("length {}, its chunks end at {end}", segment.len);
            return Err(Error::corrupt(format!("segment {index}"), why));
        }
    }
    Ok(stored.into_iter().map(|(_, record)| record).collect())
}

fn check_reference(stored: &[&Record], record: &Record, index: usize) -> Result<()> {
    let key = |record: &Record| (record.seg, record.seg_off);
    let found = stored.binary_search_by_key(&key(record), |stored| key(stored));
    let target = found.ok().and_then(|at| stored.get(at));
    let same = |target: &&&Record| {
        (target.stored_len, target.raw_len, target.crc, target.id)
            == (record.stored_len, record.raw_len, record.crc, record.id)
    };
    match target.filter(same) {
        Some(_) => Ok(()),
        None => Err(bad(index, "refers to bytes that no chunk stores")),
    }
}
