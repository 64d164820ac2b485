//! [`Mover`]: the state of a batch while its moves are carried out.

use std::collections::BTreeSet;
use std::io;

use jiff::Timestamp;

use crate::digest::Md5;
use crate::disk::Disk;
use crate::path::RelPath;

use super::super::Folder;
use super::super::folder::HISTORY;
use super::super::history::HistoryWriter;

/// Stands for content that changes while it is read. No file has this digest.
pub(super) const BEING_WRITTEN: Md5 = Md5::from_bytes([0xff; 16]);

/// The state of one batch of moves.
pub(super) struct Mover<'a, D: Disk> {
    pub(super) folder: &'a Folder<D>,
    pub(super) history: HistoryWriter,
    /// Folders whose names have changed and are not durable yet.
    pub(super) touched: BTreeSet<String>,
}

/// The path that a displaced file comes from.
#[derive(Clone, Copy)]
pub(super) struct FileOrigin<'a> {
    pub(super) path: &'a RelPath,
    /// Its name on the disk.
    pub(super) at: &'a str,
}

impl<'a, D: Disk> Mover<'a, D> {
    pub(super) fn new(folder: &'a Folder<D>, now: Timestamp) -> Self {
        Self { folder, history: HistoryWriter::new(now), touched: BTreeSet::new() }
    }

    /// Makes the new names of all moves durable.
    pub(super) fn sync_names(&mut self) -> io::Result<()> {
        if self.touched.is_empty() {
            return Ok(());
        }
        self.touched.extend(self.history.dirs());
        self.folder.sync_dirs(&self.touched)
    }
}

/// True if a displaced file went directly to its path in history.
pub(super) fn is_in_history(slot: &str) -> bool {
    slot.strip_prefix(HISTORY).is_some_and(|rest| rest.starts_with('/'))
}
