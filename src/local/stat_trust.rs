//! When an unchanged stat proves unchanged content (the racy-timestamp rule): two writes within one tick of the clock can
//! leave the same times.

use jiff::Timestamp;

use crate::disk::{FileKind, FileMeta, FileStat};

/// The coarsest kernel clock ticks every 10 ms. A write this close before the scan (in ns) may hide another one.
const TICK_NS: i64 = 20_000_000;
/// The same for filesystems that keep whole seconds (FAT keeps two).
const COARSE_TICK_NS: i64 = 2_000_000_000;

/// The stat, if it is old enough to be trusted at the wall-clock time `now_ns`.
pub(crate) fn trusted_stat(stat: FileStat, now_ns: i64) -> Option<FileStat> {
    let whole_seconds = stat.mtime_ns % 1_000_000_000 == 0 && stat.ctime_ns % 1_000_000_000 == 0;
    let tick = if whole_seconds { COARSE_TICK_NS } else { TICK_NS };
    let youngest = stat.ctime_ns.max(stat.mtime_ns);
    // An mtime in the future was set by hand or by a wrong clock. Then only ctime counts.
    let youngest = if youngest > now_ns { stat.ctime_ns } else { youngest };
    (youngest < now_ns - tick).then_some(stat)
}

/// The stat of a file that was staged as `before` and placed as `now`, if it proves that no other program has written to
/// the file. The proof: the last write is more than a tick older than the rename, and other programs can open the file
/// only after the rename.
pub(super) fn unchanged_stat(before: &FileMeta, now: &FileMeta) -> Option<FileStat> {
    let is_same = now.kind == FileKind::File
        && (before.inode, before.size, before.mtime_ns) == (now.inode, now.size, now.mtime_ns);
    let written = FileStat { ctime_ns: before.mtime_ns, ..FileStat::from(now) };
    trusted_stat(written, now.ctime_ns).filter(|_| is_same).map(|_| now.into())
}

/// True if the last write may be younger than `quiet_ns`, by ctime, which no program can set back. A write after the start
/// of the scan is in the future of its clock. A time further in the future is from another clock and proves nothing.
pub(super) fn is_young(stat: &FileStat, now_ns: i64, quiet_ns: i64) -> bool {
    let age = now_ns.saturating_sub(stat.ctime_ns);
    quiet_ns > 0 && age < quiet_ns && age > -quiet_ns.max(COARSE_TICK_NS)
}

/// A time in nanoseconds since the epoch, the unit of file times.
pub(crate) fn unix_ns(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}
