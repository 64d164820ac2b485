//! [`CrashCheck`]: files that a crash of the machine emptied.
//!
//! A file that was written without fsync may be empty, or full of zero bytes, after a power cut. That is no edit: the
//! file's base is not used, so the proxy's text keeps the name and the emptied file becomes a conflict copy (row 6).

use std::collections::{BTreeMap, BTreeSet};

use crate::agent::problems::{PathProblem, ProblemEffect};
use crate::agent::world::World;
use crate::digest::{Md5, Md5Hasher};
use crate::disk::Disk;
use crate::local::stat_trust::unix_ns;
use crate::local::{LocalEntry, LocalTree};
use crate::path::RelPath;
use crate::remote::Remote;
use crate::state::{Container, CopyLink, StateError};
use crate::sync::{LocalState, SkipReason};

use super::ports::EnginePorts;

/// The state of the check for a crash of the machine.
#[derive(Debug, Default)]
pub(in crate::agent) struct CrashCheck {
    /// When the machine started, in ns since the epoch. Set while files from before may have been emptied by a crash.
    booted_ns: Option<i64>,
    /// Files that were emptied and are not settled with the proxy yet.
    pub emptied: BTreeSet<RelPath>,
    /// A file is too new or cannot be read, so that the check cannot end yet.
    is_unsure: bool,
}

impl CrashCheck {
    /// Finds out whether the machine crashed since an agent last worked on this folder.
    pub(crate) fn begin<D: Disk, R: Remote, W: World>(
        &mut self,
        ports: &mut EnginePorts<D, R, W>,
    ) -> Result<(), StateError> {
        let Some(boot) = ports.world.boot() else { return Ok(()) };
        let last = ports.container.header().boot.clone();
        if last.is_some_and(|last| last != boot.id) {
            let uptime = i64::try_from(boot.uptime.as_nanos()).unwrap_or(i64::MAX);
            self.booted_ns = Some(unix_ns(ports.world.now()).saturating_sub(uptime));
            tracing::warn!(
                "the machine went down without a clean stop: files that it left empty are not uploaded over the \
                 proxy's text"
            );
            return Ok(());
        }
        ports.container.set_boot(Some(boot.id));
        ports.container.commit(Vec::new())
    }

    /// Finds the emptied files among those that differ from the base. Gives the files that are too new to judge; the
    /// next scan must read them again.
    pub(crate) fn find_emptied<D: Disk>(
        &mut self,
        container: &Container<D>,
        tree: &LocalTree,
        now_ns: i64,
    ) -> Vec<RelPath> {
        let Some(booted_ns) = self.booted_ns else { return Vec::new() };
        let (mut emptied, mut young, mut is_unsure) = (BTreeSet::new(), Vec::new(), false);
        for (path, entry) in container.entries() {
            let (Some(base), Some(found)) = (entry.base.content(), tree.found().get(path)) else { continue };
            is_unsure |= matches!(found.local, LocalState::Unknown(SkipReason::Changing | SkipReason::Unreadable(_)));
            if !is_emptied(found, base) {
                continue;
            }
            match found.stat {
                // An mtime in the future was not written by the clock of this start.
                Some(stat) if stat.mtime_ns < booted_ns || stat.mtime_ns > now_ns => drop(emptied.insert(path.clone())),
                Some(_) => {}
                None => young.push(path.clone()),
            }
        }
        self.is_unsure = is_unsure || !young.is_empty();
        self.emptied = emptied;
        young
    }

    /// Notes that the file has the proxy's text again. `copy`: the emptied file, whose link is noted. The caller
    /// commits.
    pub(crate) fn note_restored<D: Disk>(
        &mut self,
        container: &mut Container<D>,
        path: &RelPath,
        copy: Option<&RelPath>,
    ) {
        if !self.emptied.remove(path) {
            return;
        }
        let beside = copy.map_or(String::new(), |copy| format!("; the emptied file is kept as {copy}"));
        tracing::warn!("{path}: {EMPTIED}, and has the proxy's text again{beside}");
        let link = copy.and_then(|copy| Some((copy, container.header().copies.get(copy)?)));
        if let Some((copy, link)) = link {
            let link = CopyLink { is_emptied: true, ..link.clone() };
            container.link_copy(copy.clone(), link);
        }
    }

    /// Ends the check once no emptied file is left, so that the next start begins from this one.
    pub(crate) fn end<D: Disk, R: Remote, W: World>(
        &mut self,
        ports: &mut EnginePorts<D, R, W>,
    ) -> Result<(), StateError> {
        if self.booted_ns.is_none() || self.is_unsure || !self.emptied.is_empty() {
            return Ok(());
        }
        self.booted_ns = None;
        ports.container.set_boot(ports.world.boot().map(|boot| boot.id));
        ports.container.commit(Vec::new())
    }

    /// Notes a clean stop: the system writes out the folder's files before it goes down.
    pub(crate) fn note_clean_stop<D: Disk>(&self, container: &mut Container<D>) -> Result<(), StateError> {
        if self.booted_ns.is_none() {
            container.set_boot(None);
        }
        container.commit(Vec::new())
    }

    /// The problems that tell a person of emptied files. `copies`: the known conflict copies.
    pub(crate) fn problems(
        &self,
        copies: &BTreeMap<RelPath, CopyLink>,
        tree: &LocalTree,
    ) -> impl Iterator<Item = (RelPath, PathProblem)> {
        let waiting = self.emptied.iter().map(|path| {
            let why = format!("{EMPTIED}; it is not uploaded, and gets the proxy's text when the proxy answers");
            (path.clone(), PathProblem::new(ProblemEffect::Retried, why))
        });
        let is_there = |copy: &RelPath| tree.found().contains_key(copy);
        let restored =
            copies.iter().filter(move |(copy, link)| link.is_emptied && is_there(copy)).map(|(copy, link)| {
                let why =
                    format!("{EMPTIED}; it has the proxy's text again, and the emptied file is {copy}: remove that");
                (link.original.clone(), PathProblem::new(ProblemEffect::LeftOut, why))
            });
        waiting.chain(restored)
    }
}

const EMPTIED: &str = "was emptied when the machine went down";

/// True if the file differs from its base and is empty or holds zero bytes only.
fn is_emptied(found: &LocalEntry, base: Md5) -> bool {
    matches!(found.local, LocalState::File(content) if content != base && is_blank(content, found.size))
}

/// True if the content of `size` bytes is empty or holds zero bytes only.
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
    fn blank_content_is_found_by_its_digest() {
        for size in [0, 1, 64 * 1024, 64 * 1024 + 1, 200_000] {
            assert!(is_blank(Md5::of(&vec![0; size]), size as u64), "{size}");
        }
        assert!(!is_blank(Md5::of(b"a"), 1) && !is_blank(Md5::of(b""), 1));
    }
}
