//! `memsync restore --deleted`: lists the deleted files that can be brought back.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::app::App;
use crate::cli::commands::history::{ListedVersion, write_versions};
use crate::cli::exit::Exit;
use crate::cli::folder::open_all;
use crate::cli::versions::{FolderVersions, ProxyPart};
use crate::cli::view::format;

/// The document of `restore --deleted`.
#[derive(Serialize)]
struct DeletedList {
    versions: Vec<ListedVersion>,
    /// Deleted files whose text another file has now.
    moved: Vec<MovedText>,
    /// Number of files deleted earlier that were not looked at.
    left_out: usize,
    /// One for each folder.
    proxy: Vec<ProxyPart>,
}

/// A deleted file whose text is at another path.
#[derive(Serialize)]
pub(super) struct MovedText {
    pub(super) path: PathBuf,
    pub(super) now: PathBuf,
}

pub(super) fn list(app: &App) -> anyhow::Result<Exit> {
    let mut list = DeletedList { versions: Vec::new(), moved: Vec::new(), left_out: 0, proxy: Vec::new() };
    for open in open_all(app)? {
        let mut folder = FolderVersions::load(app, &open, "")?;
        let deleted = folder.deleted();
        list.left_out += deleted.left_out;
        for file in deleted.files {
            match file.moved_to {
                None => list.versions.push(ListedVersion::new(&open.root, file.version)),
                Some(now) => {
                    list.moved.push(MovedText { path: open.root.join(file.version.path), now: open.root.join(now) });
                }
            }
        }
        list.proxy.push(folder.proxy_part());
    }
    list.proxy.iter().for_each(ProxyPart::note);
    app.answer(&list, write_list)
}

fn write_list(out: &mut dyn Write, list: &DeletedList) -> io::Result<()> {
    if list.versions.is_empty() {
        writeln!(out, "No deleted file is missing.")?;
    } else {
        write_versions(out, &list.versions)?;
        writeln!(out, "Bring one back with `memsync restore PATH`, all of a folder with `memsync restore DIR`.")?;
    }
    if !list.moved.is_empty() {
        let count = format::count(list.moved.len(), "renamed file");
        writeln!(out, "{count} left out: their texts are at other paths now.")?;
    }
    if list.left_out > 0 {
        let count = format::count(list.left_out, "file");
        writeln!(out, "{count} deleted earlier left out; `memsync restore DIR` looks at one folder.")?;
    }
    Ok(())
}
