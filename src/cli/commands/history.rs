//! `memsync history [PATH]`: lists earlier texts, kept on this machine and on the proxy.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use comfy_table::CellAlignment;
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::exit::Exit;
use crate::cli::folder::{FolderPath, find_path, has_versions, open_all};
use crate::cli::versions::{EarlierVersion, PathVersions, ProxyPart, join_equal, kept_versions};
use crate::cli::view::format::{self, new_table, write_table};

/// One line of a list of versions.
#[derive(Serialize)]
pub(super) struct ListedVersion {
    folder: PathBuf,
    pub(super) path: String,
    /// For `PATH@ID`: the first digits of the MD5.
    id: String,
    md5: String,
    /// For `PATH@N`: its number among the versions kept here. The newest is 1.
    n: Option<usize>,
    /// When another text took its place, or else when it was written.
    at: Timestamp,
    written: Option<Timestamp>,
    /// Bytes.
    size: u64,
    /// `replaced`, `removed`, `merged`, `latest` or `newer`.
    kind: &'static str,
    /// The device that wrote it.
    device: Option<String>,
    here: bool,
    on_proxy: bool,
    /// The file with the content, relative to the folder.
    file: Option<String>,
}

/// The document of `history`.
#[derive(Serialize)]
struct HistoryList {
    versions: Vec<ListedVersion>,
    /// `null` if the question was not about one file.
    proxy: Option<ProxyPart>,
}

impl ListedVersion {
    pub(super) fn new(folder: &Path, version: EarlierVersion) -> Self {
        Self {
            folder: folder.to_owned(),
            id: version.id(),
            md5: version.md5.to_string(),
            n: version.n,
            at: version.at(),
            written: version.written,
            size: version.size,
            kind: version.kind,
            here: version.file.is_some(),
            on_proxy: version.on_proxy.is_some(),
            device: version.device,
            file: version.file,
            path: version.path,
        }
    }

    /// The device that wrote it, and the places that keep it.
    fn origin(&self) -> String {
        let places = match (self.here, self.on_proxy) {
            (true, true) => "kept here and on the proxy",
            (false, true) => "kept on the proxy",
            (_, false) => "kept here",
        };
        let device = self.device.as_deref().map(|device| format!("from {}, ", format::printable(device)));
        device.unwrap_or_default() + places
    }
}

pub(super) fn run(app: &App, path: Option<&Path>) -> anyhow::Result<Exit> {
    let list = match path {
        Some(path) => list_path(app, &find_path(app, path, has_versions)?)?,
        None => list_all(app)?,
    };
    if let Some(part) = &list.proxy {
        part.note();
    }
    app.answer(&list, write_list)
}

/// The versions of one file. For a folder: the versions of the files below it that are kept on this machine.
fn list_path(app: &App, place: &FolderPath) -> anyhow::Result<HistoryList> {
    let root = &place.open.root;
    let mut below = kept_versions(&place.open, &place.at)?;
    below.retain(|version| version.path != place.at);
    let mut found = join_equal(below);
    let mut proxy = None;
    if !place.is_dir()? {
        let versions = PathVersions::all(app, place)?;
        found = join_equal(versions.joined().into_iter().chain(found).collect());
        proxy = Some(versions.proxy_part());
    }
    Ok(HistoryList { versions: found.into_iter().map(|version| ListedVersion::new(root, version)).collect(), proxy })
}

fn list_all(app: &App) -> anyhow::Result<HistoryList> {
    let mut versions = Vec::new();
    for open in open_all(app)? {
        let kept = join_equal(kept_versions(&open, "")?);
        versions.extend(kept.into_iter().map(|version| ListedVersion::new(&open.root, version)));
    }
    Ok(HistoryList { versions, proxy: None })
}

fn write_list(out: &mut dyn Write, list: &HistoryList) -> io::Result<()> {
    if list.versions.is_empty() {
        return writeln!(out, "No earlier versions are kept{}.", if list.proxy.is_some() { "" } else { " here" });
    }
    write_versions(out, &list.versions)?;
    writeln!(out, "Look at one with `memsync show PATH@ID`, bring it back with `memsync restore PATH@ID`.")?;
    if list.proxy.is_none() {
        writeln!(out, "`memsync history FILE` lists the versions on the proxy too.")?;
    }
    Ok(())
}

pub(super) fn write_versions(out: &mut dyn Write, versions: &[ListedVersion]) -> io::Result<()> {
    let several_folders = versions.iter().any(|v| v.folder != versions[0].folder);
    let mut table = new_table();
    for v in versions {
        let path = if several_folders { v.folder.join(&v.path).display().to_string() } else { v.path.clone() };
        let spec = format!("{}@{}", format::printable(&path), v.id);
        table.add_row([spec, format::time(v.at), format::size(v.size), v.kind.to_owned(), v.origin()]);
    }
    if let Some(sizes) = table.column_mut(2) {
        sizes.set_cell_alignment(CellAlignment::Right);
    }
    write_table(out, &table)
}
