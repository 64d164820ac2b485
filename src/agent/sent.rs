//! [`Sent`]: the uploads of which nobody has heard whether they arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Md5;
use crate::path::RelPath;

/// What was sent to each path without an answer that was taken in. It is noted when the last piece of a file is handed
/// over, so that it holds whatever becomes of the request then: its reply may be lost, or whoever waits for it be told
/// to stop. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<Mutex<BTreeMap<RelPath, BTreeSet<Md5>>>>);

impl Sent {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelPath, BTreeSet<Md5>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of this content has been read for an upload.
    pub fn note(&self, path: &RelPath, md5: Md5) {
        self.lock().entry(path.clone()).or_default().insert(md5);
    }

    /// Whether the proxy may hold this because we sent it.
    pub fn may_hold(&self, path: &RelPath, md5: Md5) -> bool {
        self.lock().get(path).is_some_and(|sent| sent.contains(&md5))
    }

    /// Whether anything was.
    pub fn any(&self, path: &RelPath) -> bool {
        self.lock().contains_key(path)
    }

    /// Both sides have agreed on the path since.
    pub fn forget(&self, path: &RelPath) {
        self.lock().remove(path);
    }
}
