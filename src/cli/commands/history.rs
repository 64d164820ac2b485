//! `memsync history [PATH]`: lists the earlier versions kept in the folders.

use std::path::Path;

use anyhow::Context;

use crate::cli::app::App;
use crate::cli::exit::Exit;
use crate::cli::folder::lookup::{find_path, open_all};
use crate::cli::view::versions::{VersionList, number_versions, write_versions};
use crate::disk::real::RealDisk;
use crate::local::Folder;
use crate::local::history::HistoryVersion;

pub(super) fn run(app: &App, path: Option<&Path>) -> anyhow::Result<Exit> {
    let mut versions = Vec::new();
    match path {
        Some(path) => {
            let place = find_path(app, path, has_versions)?;
            versions = number_versions(&place.open.root, versions_at(&place.open.folder, &place.at)?);
        }
        None => {
            for open in open_all(app)? {
                versions.extend(number_versions(&open.root, read_versions(&open.folder, None)?));
            }
        }
    }
    app.answer(&VersionList { versions }, |out, list| {
        if list.versions.is_empty() {
            return writeln!(out, "No earlier versions are kept here.");
        }
        write_versions(out, &list.versions)?;
        writeln!(out, "Bring one back with `memsync restore PATH@N`.")
    })?;
    Ok(Exit::Done)
}

pub(super) fn has_versions(folder: &Folder<RealDisk>, at: &str) -> bool {
    folder.versions(Some(at)).is_ok_and(|v| !v.is_empty())
}

/// The versions of a file, or of all files in a folder.
pub(super) fn versions_at(folder: &Folder<RealDisk>, at: &str) -> anyhow::Result<Vec<HistoryVersion>> {
    read_versions(folder, Some(at).filter(|at| !at.is_empty()))
}

pub(super) fn read_versions(folder: &Folder<RealDisk>, at: Option<&str>) -> anyhow::Result<Vec<HistoryVersion>> {
    folder.versions(at).with_context(|| format!("{}: the history cannot be read", folder.disk().path().display()))
}
