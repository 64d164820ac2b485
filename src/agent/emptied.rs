//! Files that a crash of the machine emptied.
//!
//! A program that writes a file without fsync may leave it empty, or full of zero bytes, when the power fails. Such a
//! file is no edit: its base is not used, so that the proxy's text keeps the name and the emptied file becomes a
//! conflict copy (row 6).

use std::collections::BTreeSet;

use crate::digest::{Md5, Md5Hasher};
use crate::disk::Disk;
use crate::local::stat_trust::unix_ns;
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::{CopyLink, StateError};
use crate::sync::{LocalState, SkipReason};

use super::World;
use super::engine::Engine;
use super::problems::{Effect, PathProblem};

/// What is known of a crash of the machine.
#[derive(Debug, Default)]
pub(super) struct CrashCheck {
    /// When the machine started, in ns since the epoch. Set while files from before may have been emptied by its crash.
    booted_ns: Option<i64>,
    /// Files that were emptied, and are not settled with the proxy yet.
    pub emptied: BTreeSet<RelPath>,
    /// A file is too young, or cannot be read, to tell whether it was emptied.
    is_unsure: bool,
}

impl<D: Disk, R: Remote, W: World> Engine<D, R, W> {
    /// Finds out whether the machine crashed since an agent last worked on this folder.
    pub(super) fn begin_crash_check(&mut self) -> Result<(), StateError> {
        let Some(boot) = self.world.boot() else { return Ok(()) };
        let last = self.container.header().boot.clone();
        if last.is_some_and(|last| last != boot.id) {
            let uptime = i64::try_from(boot.uptime.as_nanos()).unwrap_or(i64::MAX);
            self.crash.booted_ns = Some(unix_ns(self.world.now()).saturating_sub(uptime));
            tracing::warn!(
                "the machine went down without a clean stop: files that it left empty are not uploaded over the \
                 proxy's text"
            );
            return Ok(());
        }
        self.container.set_boot(Some(boot.id));
        self.container.commit(Vec::new())
    }

    /// Looks among the files that differ from the base for those that the crash emptied.
    pub(super) fn find_emptied(&mut self) {
        let Some(booted_ns) = self.crash.booted_ns else { return };
        let now_ns = unix_ns(self.world.now());
        let (mut emptied, mut young, mut is_unsure) = (BTreeSet::new(), Vec::new(), false);
        for (path, entry) in self.container.entries() {
            let (Some(base), Some(found)) = (entry.base.content(), self.tree.found().get(path)) else { continue };
            let LocalState::File(content) = found.local else {
                is_unsure |=
                    matches!(found.local, LocalState::Unknown(SkipReason::Changing | SkipReason::Unreadable(_)));
                continue;
            };
            if content == base || !is_blank(content, found.size) {
                continue;
            }
            match found.stat {
                // A time that lies ahead was not written by the clock of now.
                Some(stat) if stat.mtime_ns < booted_ns || stat.mtime_ns > now_ns => drop(emptied.insert(path.clone())),
                Some(_) => {}
                None => young.push(path.clone()),
            }
        }
        self.crash.is_unsure = is_unsure || !young.is_empty();
        young.iter().for_each(|path| self.look_again(path));
        self.open.merge(self.tree.take_touched());
        self.crash.emptied = emptied;
    }

    /// Notes that the file has the proxy's text again. `copy`: the emptied one, whose link is noted. The caller commits.
    pub(super) fn note_restored(&mut self, path: &RelPath, copy: Option<&RelPath>) {
        if !self.crash.emptied.remove(path) {
            return;
        }
        let beside = copy.map_or(String::new(), |copy| format!("; the emptied file is kept as {copy}"));
        tracing::warn!("{path}: {EMPTIED}, and has the proxy's text again{beside}");
        let link = copy.and_then(|copy| Some((copy, self.container.header().copies.get(copy)?)));
        if let Some((copy, link)) = link {
            let link = CopyLink { is_emptied: true, ..link.clone() };
            self.container.link_copy(copy.clone(), link);
        }
    }

    /// Ends the check once nothing is left of the crash, so that the next start begins from this one.
    pub(super) fn end_crash_check(&mut self) -> Result<(), StateError> {
        if self.crash.booted_ns.is_none() || self.crash.is_unsure || !self.crash.emptied.is_empty() {
            return Ok(());
        }
        self.crash.booted_ns = None;
        self.container.set_boot(self.world.boot().map(|boot| boot.id));
        self.container.commit(Vec::new())
    }

    /// Notes that the agent stops cleanly: what the folder holds now, the system writes out before it goes down.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn note_clean_stop(&mut self) -> Result<(), StateError> {
        if self.crash.booted_ns.is_none() {
            self.container.set_boot(None);
        }
        self.container.commit(Vec::new())
    }

    /// What a person must know of emptied files.
    pub(super) fn emptied_problems(&self) -> impl Iterator<Item = (RelPath, PathProblem)> {
        let waiting = self.crash.emptied.iter().map(|path| {
            let why = format!("{EMPTIED}; it is not uploaded, and gets the proxy's text when the proxy answers");
            (path.clone(), PathProblem::new(Effect::Retried, why))
        });
        let is_there = |copy: &RelPath| self.tree.found().contains_key(copy);
        let copies = self.container.header().copies.iter();
        let restored = copies.filter(move |(copy, link)| link.is_emptied && is_there(copy)).map(|(copy, link)| {
            let why = format!("{EMPTIED}; it has the proxy's text again, and the emptied file is {copy}: remove that");
            (link.original.clone(), PathProblem::new(Effect::LeftOut, why))
        });
        waiting.chain(restored)
    }
}

const EMPTIED: &str = "was emptied when the machine went down";

/// Whether the content of `size` bytes is empty or zero bytes alone.
fn is_blank(content: Md5, size: u64) -> bool {
    let zeros = [0; 4096];
    let mut hasher = Md5Hasher::new();
    let mut left = usize::try_from(size).unwrap_or(usize::MAX);
    while left > 0 {
        let piece = left.min(zeros.len());
        hasher.update(&zeros[..piece]);
        left -= piece;
    }
    hasher.finish() == content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_content_is_told_by_its_digest() {
        for size in [0, 1, 64 * 1024, 64 * 1024 + 1, 200_000] {
            assert!(is_blank(Md5::of(&vec![0; size]), size as u64), "{size}");
        }
        assert!(!is_blank(Md5::of(b"a"), 1) && !is_blank(Md5::of(b""), 1));
    }
}
