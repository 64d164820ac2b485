//! History: what sync replaced or removed, kept in `.memsync/history/` until it is too old or too much.
//!
//! One folder a batch, `<time>-<kind>`, and in it the files under their own paths, so that a person can find them
//! without this program.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use jiff::Timestamp;

use crate::disk::{Disk, DiskFile, Kind};
use crate::failpoint;
use crate::path::PRIVATE_DIR;

use super::Folder;
use super::folder::HISTORY;
use super::moves::dir_of;
use super::source::CHUNK;

/// Batches of one millisecond.
const BATCHES: u32 = 1000;

/// How a version came into history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// Newer content took its place.
    Replaced,
    /// The file was deleted elsewhere.
    Removed,
}

impl Kept {
    pub fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Removed => "removed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Replaced, Self::Removed].into_iter().find(|k| k.name() == text)
    }
}

/// One earlier version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The path as it was called on the disk.
    pub path: String,
    /// When sync displaced it.
    pub at: Timestamp,
    pub kind: Kept,
    /// Bytes.
    pub size: u64,
    /// Where it is kept, below the root.
    pub file: String,
}

/// The batches that one run of [`Folder::perform`] fills.
pub(super) struct Shelf {
    stamp: String,
    made: BTreeSet<String>,
    /// The batch of [`Shelf::reserve`].
    reserved: Option<String>,
    copied: Vec<Copied>,
}

/// A displaced file that has other names, and its copy in the stage: what is written through those names must not
/// change the version.
struct Copied {
    /// The copy.
    copy: String,
    /// The displaced file.
    slot: String,
    at: String,
    kind: Kept,
}

impl Shelf {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { stamp: stamp(now), made: BTreeSet::new(), reserved: None, copied: Vec::new() }
    }

    /// The folders whose names must be made durable.
    pub(super) fn dirs(&self) -> BTreeSet<String> {
        let mut dirs = self.made.clone();
        if !dirs.is_empty() {
            dirs.insert(HISTORY.to_owned());
        }
        dirs
    }

    /// A free place for a file that is about to be removed; the folder for it is made.
    pub(super) fn reserve<D: Disk>(&mut self, disk: &D, at: &str) -> io::Result<String> {
        let batch = match &self.reserved {
            Some(batch) => batch,
            None => {
                self.make_dir(disk, HISTORY)?;
                let batch = self.new_batch(disk)?;
                self.reserved.insert(batch)
            }
        };
        let to = format!("{batch}/{at}");
        self.make_dir(disk, dir_of(&to))?;
        Ok(to)
    }

    /// A batch that nothing is in.
    fn new_batch<D: Disk>(&mut self, disk: &D) -> io::Result<String> {
        for n in 0..BATCHES {
            let batch = self.batch(n, Kept::Removed);
            match disk.mkdir(&batch) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    made?;
                    self.made.insert(batch.clone());
                    return Ok(batch);
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn batch(&self, n: u32, kind: Kept) -> String {
        let number = if n == 0 { String::new() } else { format!(".{n}") };
        format!("{HISTORY}/{}{number}-{}", self.stamp, kind.name())
    }

    /// Takes a displaced file. One that has other names stays in its slot until [`Shelf::place_copies`].
    pub(super) fn take<D: Disk>(&mut self, folder: &Folder<D>, slot: &str, at: &str, kind: Kept) -> io::Result<()> {
        if folder.disk.stat(slot)?.links > 1 {
            match folder.copy(slot) {
                Ok(copy) => {
                    self.copied.push(Copied { copy, slot: slot.to_owned(), at: at.to_owned(), kind });
                    return Ok(());
                }
                // A version that others can write to is better than a folder that stands still until there is room.
                Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {}
                Err(e) => return Err(e),
            }
        }
        self.place(&*folder.disk, slot, at, kind)
    }

    /// Makes the copies durable, all at once, and puts them into history. A displaced file goes only then: a crash
    /// before that leaves it to its intent, and half a copy is never a version.
    pub(super) fn place_copies<D: Disk>(&mut self, folder: &Folder<D>) -> io::Result<()> {
        let copied = std::mem::take(&mut self.copied);
        if copied.is_empty() {
            return Ok(());
        }
        failpoint::pass("history.copied");
        let copies: Vec<String> = copied.iter().map(|c| c.copy.clone()).collect();
        let unsynced = folder.sync_contents(&copies, &BTreeSet::new())?;
        if !unsynced.is_empty() {
            return Err(io::Error::other("a copy for the history could not be made durable"));
        }
        for Copied { copy, at, kind, .. } in &copied {
            self.place(&*folder.disk, copy, at, *kind)?;
            failpoint::pass("history.placed");
        }
        folder.sync_dirs(&self.dirs())?;
        for Copied { slot, .. } in &copied {
            folder.disk.unlink(slot)?;
        }
        Ok(())
    }

    fn place<D: Disk>(&mut self, disk: &D, slot: &str, at: &str, kind: Kept) -> io::Result<()> {
        // A second version of the same path within the millisecond goes into a batch of its own.
        for n in 0..BATCHES {
            let to = format!("{}/{at}", self.batch(n, kind));
            let made = self.make_dir(disk, dir_of(&to));
            failpoint::pass("history.before");
            match made.and_then(|()| disk.rename_new(slot, &to)) {
                // So does a version where the batch has a file in the place of a folder.
                Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {}
                other => return other,
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{HISTORY} has no free name for {at}")))
    }

    fn make_dir<D: Disk>(&mut self, disk: &D, dir: &str) -> io::Result<()> {
        if self.made.contains(dir) {
            return Ok(());
        }
        match disk.mkdir(dir) {
            // Somebody has cleared all history away.
            Ok(()) if dir == HISTORY => drop(self.made.insert(PRIVATE_DIR.to_owned())),
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir.contains('/') => {
                self.make_dir(disk, dir_of(dir))?;
                match disk.mkdir(dir) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                    _ => {}
                }
            }
            Err(e) => return Err(e),
        }
        self.made.insert(dir.to_owned());
        Ok(())
    }
}

impl<D: Disk> Folder<D> {
    /// Copies a file of the stage within it, and gives the copy's name. It is not durable yet.
    fn copy(&self, slot: &str) -> io::Result<String> {
        let name = self.slot();
        let mut from = self.disk.open(slot)?;
        let copied = self.disk.create(&name).and_then(|mut copy| {
            copy.set_mode(from.meta()?.mode & 0o777)?;
            let mut buf = vec![0; CHUNK];
            loop {
                match from.read(&mut buf)? {
                    0 => return Ok(()),
                    n => copy.write_all(&buf[..n])?,
                }
                failpoint::pass("history.copying");
            }
        });
        match copied {
            Ok(()) => Ok(name),
            Err(e) => {
                // Best effort: what stays is swept at start-up.
                let _ = self.disk.unlink(&name);
                Err(e)
            }
        }
    }

    /// Every version that is kept, the newest first; of one path, or of all.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn versions(&self, path: Option<&str>) -> io::Result<Vec<Version>> {
        let mut versions = Vec::new();
        for (name, at, kind) in self.batches()?.into_iter().rev() {
            let top = format!("{HISTORY}/{name}");
            let mut found = match path {
                Some(path) => {
                    let file = format!("{top}/{path}");
                    match self.disk.stat(&file) {
                        Ok(m) if m.kind == Kind::File => {
                            vec![Version { path: path.to_owned(), at, kind, size: m.size, file }]
                        }
                        Ok(m) if m.kind == Kind::Dir => self.versions_below(&top, path, at, kind)?,
                        Ok(_) => Vec::new(),
                        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                            Vec::new()
                        }
                        Err(e) => return Err(e),
                    }
                }
                None => self.versions_below(&top, "", at, kind)?,
            };
            found.sort_by(|a, b| a.path.cmp(&b.path));
            versions.extend(found);
        }
        Ok(versions)
    }

    /// Removes versions older than `keep`, then the oldest batches until all that is left is at most `max_size`
    /// bytes. Returns how many files went.
    ///
    /// # Errors
    /// When the history cannot be read or a version cannot be removed.
    pub fn prune(&self, keep: Duration, max_size: u64, now: Timestamp) -> io::Result<usize> {
        let mut gone = 0;
        let mut sized = BTreeMap::new();
        let mut total = 0u64;
        for (name, at, kind) in self.batches()? {
            let top = format!("{HISTORY}/{name}");
            if Duration::try_from(now.duration_since(at)).is_ok_and(|age| age > keep) {
                gone += self.remove_batch(&top)?;
                continue;
            }
            let size: u64 = self.versions_below(&top, "", at, kind)?.iter().map(|v| v.size).sum();
            total += size;
            sized.insert(name, (top, size));
        }
        for (top, size) in sized.values() {
            if total <= max_size {
                break;
            }
            gone += self.remove_batch(top)?;
            total -= size;
        }
        Ok(gone)
    }

    /// The batches, the oldest first. Names that are none of ours are left alone.
    fn batches(&self) -> io::Result<Vec<(String, Timestamp, Kept)>> {
        let names = match self.disk.list(HISTORY) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut batches: Vec<_> = names
            .into_iter()
            .filter_map(|(name, _)| {
                let name = name.to_str()?.to_owned();
                let (stamp, kind) = name.split_once('-')?;
                let (at, kind) = (parse_stamp(stamp)?, Kept::parse(kind)?);
                Some((name, at, kind))
            })
            .collect();
        batches.sort();
        Ok(batches)
    }

    fn versions_below(&self, top: &str, path: &str, at: Timestamp, kind: Kept) -> io::Result<Vec<Version>> {
        let mut out = Vec::new();
        let mut dirs = vec![path.to_owned()];
        while let Some(dir) = dirs.pop() {
            let full = if dir.is_empty() { top.to_owned() } else { format!("{top}/{dir}") };
            for (name, meta) in self.disk.list(&full)? {
                let Some(name) = name.to_str() else { continue };
                let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
                match meta.kind {
                    Kind::Dir => dirs.push(path),
                    Kind::File => {
                        let file = format!("{top}/{path}");
                        out.push(Version { path, at, kind, size: meta.size, file });
                    }
                    Kind::Symlink | Kind::Other(_) => {}
                }
            }
        }
        Ok(out)
    }

    fn remove_batch(&self, top: &str) -> io::Result<usize> {
        let mut gone = 0;
        for (name, meta) in self.disk.list(top)? {
            let Some(name) = name.to_str() else { continue };
            let path = format!("{top}/{name}");
            if meta.kind == Kind::Dir {
                gone += self.remove_batch(&path)?;
            } else {
                self.disk.unlink(&path)?;
                gone += 1;
            }
        }
        self.disk.rmdir(top)?;
        Ok(gone)
    }
}

fn stamp(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%S.%3fZ").to_string()
}

fn parse_stamp(text: &str) -> Option<Timestamp> {
    // The number of a second batch within one millisecond follows the Z.
    let text = &text[..=text.find('Z')?];
    let at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S%.fZ", text).ok()?;
    at.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| z.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_round_trip() {
        let at: Timestamp = "2026-11-20T10:11:12.123Z".parse().unwrap();
        assert_eq!(stamp(at), "20261120T101112.123Z");
        assert_eq!(parse_stamp("20261120T101112.123Z"), Some(at));
        assert_eq!(parse_stamp("20261120T101112.123Z.1"), Some(at));
        assert_eq!(parse_stamp("notes"), None);
    }
}
