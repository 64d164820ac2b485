//! Putting other content at a path, so that what stood there goes to history: for `restore` and `conflicts resolve`.

use std::io;

use anyhow::{Context, bail};
use bytes::Bytes;
use jiff::Timestamp;

use super::app::App;
use super::locate::{Open, Place};
use crate::config::create_private_dir;
use crate::digest::Md5;
use crate::disk::real::RealDisk;
use crate::disk::{Disk, DiskFile, Kind};
use crate::local::source::{CHUNK, digest};
use crate::local::{Folder, Move, Moved};
use crate::state::{Lock, LockError};

/// A file may change between looking and acting; then both are done again.
const TRIES: usize = 5;

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Nothing,
    File(Md5),
}

/// What [`put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The content was there already.
    Same,
    /// Nothing was there before.
    Created,
    /// What was there went to history.
    Replaced,
}

/// Keeps an agent from starting to work on the folder meanwhile. Where one runs already, it has put in order what
/// an earlier one left, and does not mind.
pub fn guard(app: &App, open: &Open) -> Option<Lock> {
    let lock = app.dirs.folder(&open.root).lock;
    let taken = create_private_dir(&app.dirs.state)
        .map_err(|source| LockError::Io { path: app.dirs.state.clone(), source })
        .and_then(|()| Lock::acquire(&lock));
    match taken {
        Ok(lock) => Some(lock),
        Err(LockError::Held { .. }) => None,
        Err(e) => {
            // A full or read-only disk must not keep a user from their own files.
            tracing::warn!("{e}");
            None
        }
    }
}

/// What stands at `at`.
///
/// # Errors
/// When it is no regular file, cannot be read, or does not stop changing.
pub fn standing(folder: &Folder<RealDisk>, at: &str) -> anyhow::Result<Standing> {
    match folder.disk().stat(at) {
        Ok(meta) if meta.kind == Kind::File => {}
        Ok(meta) => bail!("{at}: a {} stands there; move it away first", kind(meta.kind)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Standing::Nothing);
        }
        Err(e) => return Err(e).with_context(|| at.to_owned()),
    }
    for _ in 0..TRIES {
        if let Some(found) = digest(folder.disk(), at, &mut Vec::new()).with_context(|| at.to_owned())? {
            return Ok(Standing::File(found.md5));
        }
    }
    bail!("{at}: is being written; try again when that is over")
}

/// Puts the content of the file `from` (below the root) at `place`. `from` stays as it is.
///
/// # Errors
/// When a file cannot be read or placed. Nothing is lost then.
pub fn put(place: &Place, from: &str) -> anyhow::Result<Put> {
    let folder = &place.open.folder;
    let path = place.path()?;
    let at = place.at.clone();
    folder.ensure_private().context(".memsync")?;
    for _ in 0..TRIES {
        let Standing::File(md5) = standing(folder, from)? else { bail!("{from}: is gone") };
        let now = standing(folder, &at)?;
        if now == Standing::File(md5) {
            return Ok(Put::Same);
        }
        let mut source = folder.disk().open(from).with_context(|| from.to_owned())?;
        let mode = source.meta()?.mode & 0o777;
        let mut staging = folder.stage().context(".memsync/stage")?;
        let mut buf = vec![0; CHUNK];
        loop {
            let n = source.read(&mut buf).with_context(|| from.to_owned())?;
            if n == 0 {
                break;
            }
            staging.write(Bytes::copy_from_slice(&buf[..n])).context(".memsync/stage")?;
        }
        let staged = match staging.finish(md5) {
            Ok(staged) => staged,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => continue,
            Err(e) => return Err(e).context(".memsync/stage"),
        };
        let (path, at) = (path.clone(), at.clone());
        let (step, put) = match now {
            Standing::Nothing => (Move::Create { path, at, staged }, Put::Created),
            Standing::File(expect) => (Move::Replace { path, at, staged, expect }, Put::Replaced),
        };
        match one(folder, step)? {
            Moved::Done { .. } => {
                if put == Put::Created {
                    folder.disk().open(&place.at).and_then(|f| f.set_mode(mode)).with_context(|| place.at.clone())?;
                }
                return Ok(put);
            }
            Moved::Stale { .. } => {}
            Moved::Blocked(why) => bail!("{}: {why}", place.at),
            Moved::Failed(e) => return Err(e).with_context(|| place.at.clone()),
        }
    }
    bail!("{}: keeps changing; try again when that is over", place.at)
}

/// Moves the file at `place` into history. False: nothing was there.
///
/// # Errors
/// When it cannot be read or moved.
pub fn trash(place: &Place) -> anyhow::Result<bool> {
    let folder = &place.open.folder;
    let path = place.path()?;
    folder.ensure_private().context(".memsync")?;
    for _ in 0..TRIES {
        let Standing::File(expect) = standing(folder, &place.at)? else { return Ok(false) };
        match one(folder, Move::Trash { path: path.clone(), at: place.at.clone(), expect })? {
            Moved::Done { .. } => return Ok(true),
            Moved::Stale { .. } => {}
            Moved::Blocked(why) => bail!("{}: {why}", place.at),
            Moved::Failed(e) => return Err(e).with_context(|| place.at.clone()),
        }
    }
    bail!("{}: keeps changing; try again when that is over", place.at)
}

fn one(folder: &Folder<RealDisk>, step: Move<RealDisk>) -> anyhow::Result<Moved> {
    let performed = folder.perform(vec![step], &[], Timestamp::now()).context("the change cannot be made durable")?;
    performed.moved.into_iter().next().context("the folder gave no outcome")
}

/// What a path is, in a word.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "folder",
        Kind::Symlink => "symlink",
        Kind::Other(name) => name,
    }
}
