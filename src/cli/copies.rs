//! The conflict copies in a folder, each with the file that it is of.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::app::App;
use super::locate::{self, Open};
use super::state_files;
use crate::disk::real::RealDisk;
use crate::disk::{Disk, FileKind, FileMeta};
use crate::local::moves::{CopyName, parse_copy_name};
use crate::path::{MAX_PATH, RelPath, is_private};
use crate::state::{self, CopyLink};

/// One conflict copy.
#[derive(Debug, Clone, Serialize)]
pub struct Conflict {
    pub folder: PathBuf,
    /// The copy, below the folder.
    pub path: String,
    /// The file that kept the name, below the folder.
    pub original: String,
    /// Whether the original is there.
    pub original_exists: bool,
    /// Bytes of the original.
    pub original_size: Option<u64>,
    pub original_modified: Option<Timestamp>,
    /// Where the copy's text was written.
    pub device: String,
    /// Bytes of the copy.
    pub size: u64,
    pub modified: Option<Timestamp>,
}

type Links = BTreeMap<RelPath, CopyLink>;
/// Regular files by their paths below the folder.
type FileList = BTreeMap<String, FileMeta>;

/// The conflict copies in a folder, by their originals.
///
/// # Errors
/// When the folder or the state cannot be read.
pub fn list(app: &App, open: &Open) -> anyhow::Result<Vec<Conflict>> {
    let files = list_files(open)?;
    let links = read_links(app, open)?;
    let conflict = |(at, meta): (&String, &FileMeta)| {
        let name = parse_copy_name(last_name(at))?;
        let (original, device) = find_original(at, &name, &files, &links);
        let there = files.get(&original);
        Some(Conflict {
            folder: open.root.clone(),
            path: at.clone(),
            original_exists: there.is_some(),
            original_size: there.map(|meta| meta.size),
            original_modified: there.and_then(modified),
            original,
            device,
            size: meta.size,
            modified: modified(meta),
        })
    };
    let mut found: Vec<Conflict> = files.iter().filter_map(conflict).collect();
    found.sort_by(|a, b| (&a.original, &a.path).cmp(&(&b.original, &b.path)));
    Ok(found)
}

/// The file that the conflict copy at `at` is of, and the device that wrote the copy's text. The state has it for the
/// copies that were made here. For others the name says it, and where the name was cut or the copy is in a folder above,
/// a file from which such a copy would have this name.
fn find_original(at: &str, name: &CopyName, files: &FileList, links: &Links) -> (String, String) {
    if let Some(link) = RelPath::from_disk(at).ok().and_then(|path| links.get(&path)) {
        return (link.original.to_string(), link.device.clone());
    }
    let plain = beside(at, &name.original());
    let device = name.device.to_owned();
    if files.contains_key(&plain) {
        return (plain, device);
    }
    let dir = &at[..at.len() - last_name(at).len()];
    let fits_beside = |file: &str| beside(file, last_name(at)).len() <= MAX_PATH;
    let may_be_it = |file: &&String| {
        let is_here = file.strip_prefix(dir).is_some_and(|rest| !rest.contains('/'));
        file.starts_with(dir) && (is_here || !fits_beside(file)) && name.may_be_of(last_name(file))
    };
    let found = files.keys().filter(|file| parse_copy_name(last_name(file)).is_none()).find(may_be_it);
    (found.cloned().unwrap_or(plain), device)
}

/// Another name in the folder of `at`.
pub fn beside(at: &str, name: &str) -> String {
    at.rsplit_once('/').map_or_else(|| name.to_owned(), |(dir, _)| format!("{dir}/{name}"))
}

/// The last name of a path.
pub fn last_name(at: &str) -> &str {
    at.rsplit_once('/').map_or(at, |(_, name)| name)
}

fn modified(meta: &FileMeta) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(meta.mtime_ns)).ok()
}

/// The links from copies to their originals that the state has.
fn read_links(app: &App, open: &Open) -> anyhow::Result<Links> {
    let disk = match RealDisk::open(&locate::real(&app.dirs.state)) {
        Ok(disk) => Arc::new(disk),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Links::new()),
        Err(e) => return Err(e).with_context(|| app.dirs.state.display().to_string()),
    };
    let files = state_files::find(app, &open.root);
    let name = files.container.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(state::peek(&disk, &name)?.map(|view| view.header.copies).unwrap_or_default())
}

fn list_files(open: &Open) -> anyhow::Result<FileList> {
    let mut files = FileList::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        let names = match open.folder.disk().list(&dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.is_empty() => continue,
            Err(e) if !dir.is_empty() => {
                tracing::warn!("{}: cannot be looked into: {e}", open.root.join(&dir).display());
                continue;
            }
            Err(e) => return Err(e).with_context(|| open.root.display().to_string()),
        };
        for (name, meta) in names {
            let Some(name) = OsStr::to_str(&name) else { continue };
            let at = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
            match meta.kind {
                FileKind::Dir if !is_private(name) => dirs.push(at),
                FileKind::File => drop(files.insert(at, meta)),
                _ => {}
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Md5;
    use crate::local::moves::conflict_name;
    use crate::path::MAX_SEGMENT;

    fn files(names: &[&str]) -> FileList {
        let meta = FileMeta {
            kind: FileKind::File,
            size: 1,
            allocated: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            inode: 1,
            links: 1,
            device: 1,
            is_mount: false,
            mode: 0o600,
        };
        names.iter().map(|name| ((*name).to_owned(), meta)).collect()
    }

    fn original_of(at: &str, there: &[&str], links: &Links) -> (String, String) {
        find_original(at, &parse_copy_name(last_name(at)).unwrap(), &files(there), links)
    }

    #[test]
    fn original_is_found_by_a_whole_name() {
        for (at, original, device) in [
            ("a.conflict-laptop-0123abcd.md", "a.md", "laptop"),
            ("n/a.b.conflict-my-phone-0123abcd-2.md", "n/a.b.md", "my-phone"),
            ("note.conflict-x-00000000", "note", "x"),
        ] {
            let expected = (original.to_owned(), device.to_owned());
            assert_eq!(original_of(at, &[original, "b.md"], &Links::new()), expected, "{at}");
            assert_eq!(original_of(at, &[], &Links::new()), expected, "{at}: the original is gone");
        }
        assert_eq!(parse_copy_name("a.conflict-of-interest.md"), None);
    }

    #[test]
    fn original_is_found_by_a_name_that_was_cut() {
        for stem in ["x".repeat(MAX_SEGMENT - 3), "é".repeat((MAX_SEGMENT - 3) / 2)] {
            let name = format!("{stem}.md");
            let copy = format!("n/{}", conflict_name(&name, "phone", Md5::of(b"x"), 1));
            let original = format!("n/{name}");
            let other = format!("n/{}.txt", &stem[..stem.len() - 4]);
            let there = [original.as_str(), "n/xx.md", &other, "x.md"];
            assert_eq!(original_of(&copy, &there, &Links::new()), (original.clone(), "phone".to_owned()));
        }
    }

    #[test]
    fn original_is_found_below_a_copy_that_did_not_fit() {
        let deep = format!("{}/plan.md", vec!["d".repeat(200); 5].join("/"));
        let copy = format!("{}/plan.conflict-phone-0123abcd.md", "d".repeat(200));
        let there = [deep.as_str(), "plan.md", "other/plan.md"];
        assert!(deep.len() <= MAX_PATH);
        assert_eq!(original_of(&copy, &there, &Links::new()), (deep.clone(), "phone".to_owned()));
    }

    #[test]
    fn original_in_the_state_goes_before_the_name() {
        let path = |text: &str| RelPath::parse(text).unwrap();
        let link = CopyLink { original: path("deep/er/plan.md"), device: "phone".to_owned(), is_emptied: false };
        let at = "plan.conflict-ph-0123abcd.md";
        let found = original_of(at, &["plan.md", "deep/er/plan.md"], &[(path(at), link)].into());
        assert_eq!(found, ("deep/er/plan.md".to_owned(), "phone".to_owned()));
    }
}
