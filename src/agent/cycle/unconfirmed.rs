//! [`UnconfirmedUploads`]: uploads that may have arrived although no answer was taken in.
//!
//! The proxy's content is then this device's own: no conflict, and no edit of another device. Uploads of this run are
//! kept apart from those that an earlier run noted before it died. A file of an earlier run may be gone because it was
//! never durable, so its absence proves no deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::digest::Md5;
use crate::path::RelPath;
use crate::state::UploadNotes;

/// An upload that has not arrived after this time never will.
const MAX_IN_FLIGHT: Duration = Duration::from_secs(300);

/// The content that was sent to each path without a confirmed answer. It is noted when the last piece of a file is
/// handed over, because the reply may be lost and the waiting task may be dropped. Clones share their state.
#[derive(Debug, Clone, Default)]
pub(in crate::agent) struct UnconfirmedUploads {
    this_run: Arc<Mutex<BTreeMap<RelPath, BTreeSet<Md5>>>>,
    earlier_run: Arc<Mutex<UploadNotes>>,
}

impl UnconfirmedUploads {
    /// `earlier_run`: the uploads that an earlier run noted.
    pub(crate) fn after(earlier_run: UploadNotes) -> Self {
        Self { this_run: Arc::default(), earlier_run: Arc::new(Mutex::new(earlier_run)) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelPath, BTreeSet<Md5>>> {
        self.this_run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_earlier(&self) -> MutexGuard<'_, UploadNotes> {
        self.earlier_run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes content that was read to its end for an upload.
    pub(crate) fn note(&self, path: &RelPath, md5: Md5) {
        self.lock().entry(path.clone()).or_default().insert(md5);
    }

    /// True if the proxy may hold this content because this device sent it, in this run or in an earlier one.
    pub(crate) fn is_from_here(&self, path: &RelPath, md5: Md5) -> bool {
        self.is_from_this_run(path, md5) || self.lock_earlier().contains(path, md5)
    }

    /// True if the proxy may hold this content because this run sent it.
    pub(crate) fn is_from_this_run(&self, path: &RelPath, md5: Md5) -> bool {
        self.lock().get(path).is_some_and(|contents| contents.contains(&md5))
    }

    /// All content that this run sent to the path.
    pub(crate) fn contents(&self, path: &RelPath) -> BTreeSet<Md5> {
        self.lock().get(path).cloned().unwrap_or_default()
    }

    /// The paths that this run sent something to.
    pub(crate) fn paths(&self) -> BTreeSet<RelPath> {
        self.lock().keys().cloned().collect()
    }

    /// True if this run sent anything to the path.
    pub(crate) fn contains(&self, path: &RelPath) -> bool {
        self.lock().contains_key(path)
    }

    /// Takes back the content that was refused for certain. `before`: the content that was sent earlier.
    pub(crate) fn take_back(&self, path: &RelPath, before: &BTreeSet<Md5>) {
        let mut contents = self.lock();
        if before.is_empty() {
            contents.remove(path)
        } else {
            contents.insert(path.clone(), before.clone())
        };
    }

    /// Forgets a path on which both sides have agreed since.
    pub(crate) fn forget(&self, path: &RelPath) {
        self.lock().remove(path);
        self.lock_earlier().settle(path);
    }

    /// Forgets everything, also of earlier runs.
    pub(crate) fn clear(&self) {
        self.lock().clear();
        self.lock_earlier().clear();
    }

    /// Forgets the paths of this run for which `keep` is false.
    pub(crate) fn retain(&self, mut keep: impl FnMut(&RelPath) -> bool) {
        self.lock().retain(|path, _| keep(path));
    }
}

/// Where the content of an unconfirmed upload may be now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum UploadTrace {
    /// A file is here, or may be.
    Here,
    /// No file is here, and the index names the path as live.
    Listed,
    Nowhere,
}

/// Unconfirmed uploads to paths that neither side shows, with the time since when. They count as lost after a while:
/// later content of that path is another device's.
#[derive(Debug, Default)]
pub(in crate::agent) struct LostUploads(BTreeMap<RelPath, Duration>);

impl LostUploads {
    /// Forgets the uploads that are lost by now. `is_exact`: a missing index entry proves that nothing arrived.
    pub(crate) fn forget_lost(
        &mut self,
        uploads: &UnconfirmedUploads,
        trace: impl Fn(&RelPath) -> UploadTrace,
        is_exact: bool,
        now: Duration,
    ) {
        let mut still_waiting = BTreeMap::new();
        uploads.retain(|path| {
            let is_listed = match trace(path) {
                UploadTrace::Here => return true,
                trace => trace == UploadTrace::Listed,
            };
            let Some(since) = self.0.get(path).copied().or((!is_listed).then_some(now)) else { return true };
            let is_lost = if is_exact { !is_listed } else { now >= since + MAX_IN_FLIGHT };
            if !is_lost {
                still_waiting.insert(path.clone(), since);
            }
            !is_lost
        });
        self.0 = still_waiting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upload_is_lost_when_neither_side_shows_it() {
        use UploadTrace::{Here, Listed, Nowhere};
        let path = RelPath::parse("a").unwrap();
        let soon = MAX_IN_FLIGHT - Duration::from_secs(1);
        // Each with the kind of index, the traces with their times, and whether the upload is remembered then.
        for (is_exact, seen, is_kept) in [
            (true, vec![(Nowhere, Duration::ZERO)], false),
            (true, vec![(Listed, MAX_IN_FLIGHT)], true),
            (false, vec![(Nowhere, Duration::ZERO), (Listed, soon)], true),
            (false, vec![(Nowhere, Duration::ZERO), (Listed, MAX_IN_FLIGHT)], false),
            (true, vec![(Here, MAX_IN_FLIGHT)], true),
        ] {
            let (uploads, mut lost) = (UnconfirmedUploads::default(), LostUploads::default());
            uploads.note(&path, Md5::of(b"1"));
            for (trace, at) in &seen {
                lost.forget_lost(&uploads, |_| *trace, is_exact, *at);
            }
            assert_eq!(uploads.contains(&path), is_kept, "exact: {is_exact}, {seen:?}");
        }
    }
}
