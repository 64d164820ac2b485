//! [`UploadNotes`]: the uploads that were noted before they were sent, and that no commit has settled since.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::path::RelPath;

/// One upload. Written down before it is sent, so that a process that is killed meanwhile leaves word of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadNote {
    pub path: RelPath,
    /// Of the content that may have arrived.
    pub md5: Md5,
}

/// Notes as they stand in container and journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireNotes {
    /// The start of the machine in which they were made.
    boot: String,
    notes: Vec<UploadNote>,
}

/// What may have arrived at each path, though no commit says so. Notes of an earlier start of the machine are not kept: a
/// power cut may have set the files back behind what was sent, which is then newer than the file and nowhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadNotes {
    /// `None`: nothing tells one start of the machine from another, and nothing is noted.
    boot: Option<String>,
    paths: BTreeMap<RelPath, BTreeSet<Md5>>,
}

impl UploadNotes {
    /// Notes the uploads that are not noted yet. Gives those, to be written down.
    pub fn add(&mut self, uploads: Vec<UploadNote>) -> Option<WireNotes> {
        let boot = self.boot.clone()?;
        let mut is_new = |note: &UploadNote| self.paths.entry(note.path.clone()).or_default().insert(note.md5);
        let notes: Vec<UploadNote> = uploads.into_iter().filter(|note| is_new(note)).collect();
        (!notes.is_empty()).then_some(WireNotes { boot, notes })
    }

    /// Takes in what was written down, in the order in which it was.
    pub fn read(&mut self, wire: WireNotes) {
        self.begin_boot(Some(wire.boot));
        self.add(wire.notes);
    }

    /// Forgets the notes of any other start of the machine.
    pub fn begin_boot(&mut self, boot: Option<String>) {
        if self.boot != boot {
            *self = Self { boot, paths: BTreeMap::new() };
        }
    }

    /// Forgets what was sent to `path`, on which both sides have agreed since.
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

    /// Every note, to be written down; `None`: there is none.
    pub fn to_wire(&self) -> Option<WireNotes> {
        let notes: Vec<UploadNote> = self.iter().collect();
        self.boot.clone().filter(|_| !notes.is_empty()).map(|boot| WireNotes { boot, notes })
    }

    /// In the order of the paths.
    pub fn iter(&self) -> impl Iterator<Item = UploadNote> {
        let of = |(path, sent): (&RelPath, &BTreeSet<Md5>)| {
            let note = |md5: &Md5| UploadNote { path: path.clone(), md5: *md5 };
            sent.iter().map(note).collect::<Vec<_>>()
        };
        self.paths.iter().flat_map(of)
    }
}
