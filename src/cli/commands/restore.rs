//! `memsync restore`: brings back earlier texts, from the history of this machine and from the proxy.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::history::{ListedVersion, write_versions};
use crate::cli::app::App;
use crate::cli::args::RestoreArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::{FolderPath, change_file, open_all};
use crate::cli::versions::{EarlierVersion, PathVersions, kept_versions, parse_target};
use crate::cli::view::format;
use crate::disk::{Disk, whole};
use crate::local::history::VersionKind;
use crate::local::{ChangeOutcome, FolderChange};
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

pub(super) fn run(app: &App, args: &RestoreArgs) -> anyhow::Result<Exit> {
    match (&args.path, &args.to) {
        (Some(path), Some(to)) => write_version_to(app, path, to),
        (Some(path), None) => restore_version(app, path),
        (None, _) => list_deleted(app),
    }
}

/// Lists the newest version of each file that sync removed and that is still missing.
fn list_deleted(app: &App) -> anyhow::Result<Exit> {
    let mut versions = Vec::new();
    for open in open_all(app)? {
        let removed = kept_versions(&open, "")?.into_iter();
        let removed = removed.filter(|v| v.n == Some(1) && v.kind == VersionKind::Removed.name());
        let missing = removed.filter(|v| open.folder.disk().stat(&v.path).is_err());
        versions.extend(missing.map(|version| ListedVersion::new(&open.root, version)));
    }
    app.answer_list("versions", &versions, |out, versions| {
        if versions.is_empty() {
            return writeln!(out, "Sync removed nothing that is still missing.");
        }
        write_versions(out, versions)?;
        writeln!(out, "Bring one back with `memsync restore PATH`.")
    })
}

/// Puts a version in its place. The present file goes to history first.
fn restore_version(app: &App, text: &str) -> anyhow::Result<Exit> {
    let target = parse_target(app, text)?;
    let place = &target.place;
    place.require_file()?;
    let mut versions = PathVersions::kept(app, place)?;
    let version = versions.find(&target.name)?;
    versions.proxy_part().note();
    let outcome = put_version(app, &mut versions, place, &version)?;
    let changed = outcome != ChangeOutcome::Same;
    let restored = RestoredFile {
        path: place.absolute(),
        id: version.id(),
        n: version.n,
        at: version.at(),
        size: version.size,
        changed,
        to: None,
    };
    app.answer(&restored, |out, restored| write_restored(out, restored, outcome))
}

/// Writes a version to another file, which must not exist yet.
fn write_version_to(app: &App, text: &str, to: &Path) -> anyhow::Result<Exit> {
    if to.components().any(|part| part.as_os_str().to_str().is_some_and(is_private)) {
        let why = format!("--to {}: this folder belongs to memsync; choose another one", to.display());
        return Err(CommandFailure::usage(why).into());
    }
    let target = parse_target(app, text)?;
    target.place.require_file()?;
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
    let written = RestoredFile {
        path: target.place.absolute(),
        id: version.id(),
        n: version.n,
        at: version.at(),
        size: version.size,
        changed: true,
        to: Some(to.to_owned()),
    };
    let shown = format::path(to);
    app.answer(&written, |out, written| {
        writeln!(out, "{shown} has the version {} of {}.", written.id, format::path(&written.path))
    })
}

/// Gives the file at `place` the content of a version.
fn put_version(
    app: &App,
    versions: &mut PathVersions<'_>,
    place: &FolderPath,
    version: &EarlierVersion,
) -> anyhow::Result<ChangeOutcome> {
    let put = |from: &str| {
        let put = FolderChange::Put { from: from.to_owned(), at: place.at.clone() };
        change_file(app, &place.open, &put)
    };
    if let Some(file) = &version.file {
        return put(file);
    }
    let content = versions.content(version)?;
    let fetched = place.open.folder.keep_fetched(&content);
    let fetched = fetched.with_context(|| format!("{}: the version cannot be kept", place.open.root.display()))?;
    put(fetched.path())
}

fn write_restored(out: &mut dyn Write, restored: &RestoredFile, outcome: ChangeOutcome) -> io::Result<()> {
    let (path, when) = (format::path(&restored.path), format::time(restored.at));
    match outcome {
        ChangeOutcome::Same => writeln!(out, "{path} has its text from before {when} already; nothing to do."),
        ChangeOutcome::Created => writeln!(out, "{path} is back, as it was before {when}."),
        ChangeOutcome::Replaced | ChangeOutcome::Removed => writeln!(
            out,
            "{path} is back as it was before {when}. The replaced text is in its history: `memsync restore {path}` \
             undoes this."
        ),
    }
}
