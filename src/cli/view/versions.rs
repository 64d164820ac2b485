//! Earlier versions of files, for `history` and `restore`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use comfy_table::CellAlignment;
use jiff::Timestamp;
use serde::Serialize;

use super::format;
use super::table::{new_table, write_table};
use crate::local::history::HistoryVersion;

/// The document of `history`. The newest version comes first.
#[derive(Serialize)]
pub(crate) struct VersionList {
    pub(crate) versions: Vec<NumberedVersion>,
}

#[derive(Serialize)]
pub(crate) struct NumberedVersion {
    pub(crate) folder: PathBuf,
    pub(crate) path: String,
    /// For `restore PATH@N`. The newest version of a path is 1.
    pub(crate) n: usize,
    pub(crate) at: Timestamp,
    /// Bytes.
    pub(crate) size: u64,
    /// `replaced` or `removed`.
    pub(crate) kind: &'static str,
    /// The file with the content, relative to the folder.
    pub(crate) file: String,
}

/// Numbers the versions of each path. `versions` has the newest first.
pub(crate) fn number_versions(root: &Path, versions: Vec<HistoryVersion>) -> Vec<NumberedVersion> {
    let mut counts = BTreeMap::<String, usize>::new();
    let number = |v: HistoryVersion| {
        let n = counts.entry(v.path.clone()).and_modify(|n| *n += 1).or_insert(1);
        let kind = v.kind.name();
        NumberedVersion { folder: root.to_owned(), n: *n, path: v.path, at: v.at, size: v.size, kind, file: v.file }
    };
    versions.into_iter().map(number).collect()
}

pub(crate) fn write_versions(out: &mut dyn Write, versions: &[NumberedVersion]) -> io::Result<()> {
    let several_folders = versions.iter().any(|v| v.folder != versions[0].folder);
    let mut table = new_table();
    for v in versions {
        let path = if several_folders { v.folder.join(&v.path).display().to_string() } else { v.path.clone() };
        let spec = format!("{}@{}", format::printable(&path), v.n);
        table.add_row([spec, format::time(v.at), format::size(v.size), v.kind.to_owned()]);
    }
    if let Some(sizes) = table.column_mut(2) {
        sizes.set_cell_alignment(CellAlignment::Right);
    }
    write_table(out, &table)
}
