//! [`UploadNotes`]: uploads that were recorded before they were sent, and that no commit has settled since.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::path::RelPath;

/// One upload. It is recorded before it is sent, so that a killed process leaves a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadNote {
    pub path: RelPath,
    /// The content that may have arrived.
    pub md5: Md5,
}

/// Notes in a container or journal file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredNotes {
    /// The boot of the machine in which they were recorded.
    boot: String,
    notes: Vec<UploadNote>,
}

/// The contents that may have arrived at each path without a commit. Notes of an earlier boot are dropped: a power cut
/// may have reverted the local file, and then only the server has the newer content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadNotes {
    /// `None` if the system does not identify its boots. Then nothing is recorded.
    boot: Option<String>,
    paths: BTreeMap<RelPath, BTreeSet<Md5>>,
}

impl UploadNotes {
    /// Adds uploads. Returns those that are new, to be written to disk.
    pub(super) fn add(&mut self, uploads: Vec<UploadNote>) -> Option<StoredNotes> {
        let boot = self.boot.clone()?;
        let mut is_new = |note: &UploadNote| self.paths.entry(note.path.clone()).or_default().insert(note.md5);
        let notes: Vec<UploadNote> = uploads.into_iter().filter(|note| is_new(note)).collect();
        (!notes.is_empty()).then_some(StoredNotes { boot, notes })
    }

    /// Adds notes from disk, in the order in which they were written.
    pub(super) fn read(&mut self, stored: StoredNotes) {
        self.begin_boot(Some(stored.boot));
        self.add(stored.notes);
    }

    /// Drops the notes of any other boot.
    pub(super) fn begin_boot(&mut self, boot: Option<String>) {
        if self.boot != boot {
            *self = Self { boot, paths: BTreeMap::new() };
        }
    }

    /// Drops the notes of `path`, because both sides agree on it now.
    pub fn settle(&mut self, path: &RelPath) {
        self.paths.remove(path);
    }

    pub fn clear(&mut self) {
        self.paths.clear();
    }

    pub fn contains(&self, path: &RelPath, md5: Md5) -> bool {
        self.paths.get(path).is_some_and(|sent| sent.contains(&md5))
    }

    pub fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.paths.keys()
    }

    /// All notes, to be written to disk. `None` if there are none.
    pub(super) fn to_stored(&self) -> Option<StoredNotes> {
        let notes: Vec<UploadNote> = self.iter().collect();
        self.boot.clone().filter(|_| !notes.is_empty()).map(|boot| StoredNotes { boot, notes })
    }

    /// The notes, sorted by path.
    pub fn iter(&self) -> impl Iterator<Item = UploadNote> {
        let of = |(path, sent): (&RelPath, &BTreeSet<Md5>)| {
            let note = |md5: &Md5| UploadNote { path: path.clone(), md5: *md5 };
            sent.iter().map(note).collect::<Vec<_>>()
        };
        self.paths.iter().flat_map(of)
    }
}
