//! Restores one version of one file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::put::put_version;
use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::versions::{EarlierVersion, PathVersions, VersionTarget};
use crate::cli::view::format;
use crate::disk::whole;
use crate::local::ChangeOutcome;
use crate::path::is_private;

#[derive(Serialize)]
struct RestoredFile {
    path: PathBuf,
    id: String,
    n: Option<usize>,
    at: Timestamp,
    /// Bytes.
    size: u64,
    /// False if the file had this content already.
    changed: bool,
    /// The file of `--to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<PathBuf>,
}

impl RestoredFile {
    fn new(path: PathBuf, version: &EarlierVersion, changed: bool) -> Self {
        let (id, at) = (version.id(), version.at());
        Self { path, id, n: version.n, at, size: version.size, changed, to: None }
    }
}

/// Puts a version in its place. The present file goes to history first.
pub(super) fn restore(app: &App, target: &VersionTarget) -> anyhow::Result<Exit> {
    let place = &target.place;
    let mut versions = PathVersions::kept(app, place)?;
    let version = versions.find(&target.name)?;
    versions.proxy_part().note();
    let outcome = put_version(app, &place.open, &version, || versions.content(&version))?;
    let restored = RestoredFile::new(place.absolute(), &version, outcome != ChangeOutcome::Same);
    app.answer(&restored, |out, restored| write_restored(out, restored, outcome))
}

/// Writes a version to another file, which must not exist yet.
pub(super) fn write_to(app: &App, target: &VersionTarget, to: &Path) -> anyhow::Result<Exit> {
    if to.components().any(|part| part.as_os_str().to_str().is_some_and(is_private)) {
        let why = format!("--to {}: this folder belongs to memsync; choose another one", to.display());
        return Err(CommandFailure::usage(why).into());
    }
    let mut versions = PathVersions::kept(app, &target.place)?;
    let version = versions.find(&target.name)?;
    versions.proxy_part().note();
    let content = versions.content(&version)?;
    match whole::create_of_user(to, &content) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let why = format!("--to {}: it exists already, and was not changed; choose another name", to.display());
            return Err(CommandFailure::usage(why).into());
        }
        created => created.with_context(|| format!("--to {}", to.display()))?,
    }
    let written =
        RestoredFile { to: Some(to.to_owned()), ..RestoredFile::new(target.place.absolute(), &version, true) };
    let shown = format::path(to);
    app.answer(&written, |out, written| {
        writeln!(out, "{shown} has the version {} of {}.", written.id, format::path(&written.path))
    })
}

fn write_restored(out: &mut dyn Write, restored: &RestoredFile, outcome: ChangeOutcome) -> io::Result<()> {
    let (path, when) = (format::path(&restored.path), format::time(restored.at));
    match outcome {
        ChangeOutcome::Same => writeln!(out, "{path} has its text from before {when} already; nothing to do."),
        ChangeOutcome::Created => writeln!(out, "{path} is back, as it was before {when}."),
        ChangeOutcome::Replaced | ChangeOutcome::Removed | ChangeOutcome::Edited(_) => writeln!(
            out,
            "{path} is back as it was before {when}. The replaced text is in its history: `memsync restore {path}` \
             undoes this."
        ),
    }
}
