//! The decisions that every store makes in the same way: the outcome of a write on the present version of a path, and the
//! versions that are past their retention. Pure.

use std::time::Duration;

use super::body::FinishedBody;
use super::meta::BlobMeta;
use super::types::{BlobVersion, DeleteOutcome, IndexEntry, PutOutcome, WriteCondition};

/// The version that a put makes of the version `held`. `None`: its condition does not hold.
pub(crate) fn put(
    held: Option<(&IndexEntry, &BlobMeta)>,
    expect: WriteCondition,
    body: &FinishedBody,
    meta: &BlobMeta,
    now: u64,
) -> Option<BlobVersion> {
    let old = held.map(|(entry, _)| entry);
    if !expect.admits(old) {
        return None;
    }
    let meta = match held {
        Some((old, of_old)) if !old.is_deleted => meta.clone().inherit(of_old),
        _ => meta.clone(),
    };
    let version = next_version(now, old);
    let entry = IndexEntry { md5: body.md5, size: body.size, is_deleted: false, version, cursor: 0 };
    Some(BlobVersion { entry, meta })
}

/// The outcome of a put that wrote `entry` over `held`.
pub(crate) fn put_outcome(entry: IndexEntry, held: Option<&IndexEntry>) -> PutOutcome {
    if held.is_some_and(|held| !held.is_deleted) { PutOutcome::Updated(entry) } else { PutOutcome::Created(entry) }
}

/// The tombstone that a deletion makes of the entry `held`, or the outcome if it makes none.
pub(crate) fn delete(
    held: Option<IndexEntry>,
    expect: Option<WriteCondition>,
    meta: &BlobMeta,
    now: u64,
) -> Result<BlobVersion, DeleteOutcome> {
    let held = held.ok_or(DeleteOutcome::Absent)?;
    if held.is_deleted {
        return Err(DeleteOutcome::Tombstone(held));
    }
    if expect.is_some_and(|expect| !expect.admits(Some(&held))) {
        return Err(DeleteOutcome::Mismatch(held));
    }
    let entry = IndexEntry { size: 0, is_deleted: true, version: next_version(now, Some(&held)), ..held };
    Ok(BlobVersion { entry, meta: meta.clone().for_tombstone() })
}

/// True if an import writes `version` over the entry `held`.
pub(crate) fn imports(version: &BlobVersion, held: Option<&IndexEntry>) -> bool {
    held.is_none_or(|held| held.version < version.entry.version)
}

/// The version of a write at the time `now` over the entry `held`.
pub(crate) fn next_version(now: u64, held: Option<&IndexEntry>) -> u64 {
    held.map_or(now, |held| now.max(held.version + 1))
}

/// The time `age` before `now`, both in milliseconds since the epoch.
pub(crate) fn time_before(now: u64, age: Duration) -> u64 {
    now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}
