//! [`Sent`]: the uploads of which nobody has heard whether they arrived.
//!
//! Uploads of this run are kept apart from those that an earlier run noted before it died. A file of an earlier run may be
//! gone because it was never durable, so that its absence proves no deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Md5;
use crate::path::RelPath;
use crate::state::UploadNotes;

/// What was sent to each path without an answer that was taken in. It is noted when the last piece of a file is handed
/// over, so that it holds whatever becomes of the request then: its reply may be lost, or whoever waits for it be told
/// to stop. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    now: Arc<Mutex<BTreeMap<RelPath, BTreeSet<Md5>>>>,
    earlier: Arc<Mutex<UploadNotes>>,
}

impl Sent {
    /// Nothing was sent in this run yet. `earlier`: what an earlier run noted.
    pub fn after(earlier: UploadNotes) -> Self {
        Self { now: Arc::default(), earlier: Arc::new(Mutex::new(earlier)) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelPath, BTreeSet<Md5>>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn earlier(&self) -> MutexGuard<'_, UploadNotes> {
        self.earlier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of this content has been read for an upload.
    pub fn note(&self, path: &RelPath, md5: Md5) {
        self.lock().entry(path.clone()).or_default().insert(md5);
    }

    /// Whether the proxy may hold this because this device sent it, in this run or in an earlier one.
    pub fn is_from_here(&self, path: &RelPath, md5: Md5) -> bool {
        self.may_hold(path, md5) || self.earlier().contains(path, md5)
    }

    /// Whether the proxy may hold this because this run sent it.
    pub fn may_hold(&self, path: &RelPath, md5: Md5) -> bool {
        self.lock().get(path).is_some_and(|sent| sent.contains(&md5))
    }

    /// All that was.
    pub fn to(&self, path: &RelPath) -> BTreeSet<Md5> {
        self.lock().get(path).cloned().unwrap_or_default()
    }

    /// The paths to which anything was.
    pub fn paths(&self) -> BTreeSet<RelPath> {
        self.lock().keys().cloned().collect()
    }

    /// What was sent since there was only `before` has been refused for certain.
    pub fn take_back(&self, path: &RelPath, before: &BTreeSet<Md5>) {
        let mut sent = self.lock();
        if before.is_empty() {
            sent.remove(path)
        } else {
            sent.insert(path.clone(), before.clone())
        };
    }

    /// Whether anything was.
    pub fn any(&self, path: &RelPath) -> bool {
        self.lock().contains_key(path)
    }

    /// Both sides have agreed on the path since.
    pub fn forget(&self, path: &RelPath) {
        self.lock().remove(path);
        self.earlier().settle(path);
    }

    /// Forgets everything, also of earlier runs.
    pub fn clear(&self) {
        self.lock().clear();
        self.earlier().clear();
    }

    /// Forgets, of this run, all but the paths of which `keep` says so.
    pub fn retain(&self, mut keep: impl FnMut(&RelPath) -> bool) {
        self.lock().retain(|path, _| keep(path));
    }
}
