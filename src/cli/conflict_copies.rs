//! Finds the conflict copies in a folder, each with its original.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::app::App;
use super::folder::ConfiguredFolder;
use super::machine::state_files;
use crate::disk::{Disk, FileKind, FileMeta};
use crate::local::conflicts::{CopyName, parse_copy_name};
use crate::path::{MAX_PATH, RelPath, is_private};
use crate::state::CopyLink;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct ConflictCopy {
    pub(crate) folder: PathBuf,
    /// The copy, relative to the folder.
    pub(crate) path: String,
    /// The file that kept the name, relative to the folder.
    pub(crate) original: String,
    pub(crate) original_exists: bool,
    /// Bytes.
    pub(crate) original_size: Option<u64>,
    pub(crate) original_modified: Option<Timestamp>,
    /// The device that wrote the text of the original, if it was looked up and the proxy knows it.
    pub(crate) original_device: Option<String>,
    /// The device that wrote the text of the copy.
    pub(crate) device: String,
    /// Size of the copy in bytes.
    pub(crate) size: u64,
    pub(crate) modified: Option<Timestamp>,
}

/// The originals of copies that were made on this machine.
type CopyLinks = BTreeMap<RelPath, CopyLink>;
/// Regular files by their paths relative to the folder.
pub(crate) type RegularFiles = BTreeMap<String, FileMeta>;

/// The conflict copies in a folder, sorted by their originals.
pub(crate) fn list_copies(app: &App, open: &ConfiguredFolder) -> anyhow::Result<Vec<ConflictCopy>> {
    let files = list_files(open)?;
    let links = state_files::read_state(app, &open.root)?.map(|view| view.header.copies).unwrap_or_default();
    let conflict = |(at, meta): (&String, &FileMeta)| {
        let name = parse_copy_name(last_name(at))?;
        let (original, device) = find_original(at, &name, &files, &links);
        let found = files.get(&original);
        Some(ConflictCopy {
            folder: open.root.clone(),
            path: at.clone(),
            original_exists: found.is_some(),
            original_size: found.map(|meta| meta.size),
            original_modified: found.and_then(modified),
            original_device: None,
            original,
            device,
            size: meta.size,
            modified: modified(meta),
        })
    };
    let mut found: Vec<ConflictCopy> = files.iter().filter_map(conflict).collect();
    found.sort_by(|a, b| (&a.original, &a.path).cmp(&(&b.original, &b.path)));
    Ok(found)
}

/// The original of the conflict copy at `at`, and the device that wrote the text of the copy.
///
/// The state knows both for copies made on this machine. For other copies the name tells them. A long name is cut, and a
/// copy may be in a folder above its original, so a file from which such a copy would get this name counts as well.
fn find_original(at: &str, name: &CopyName, files: &RegularFiles, links: &CopyLinks) -> (String, String) {
    if let Some(link) = RelPath::from_disk(at).ok().and_then(|path| links.get(&path)) {
        return (link.original.to_string(), link.device.clone());
    }
    let plain = sibling(at, &name.original());
    let device = name.device.to_owned();
    if files.contains_key(&plain) {
        return (plain, device);
    }
    let dir = &at[..at.len() - last_name(at).len()];
    let copy_fits_beside = |file: &str| sibling(file, last_name(at)).len() <= MAX_PATH;
    let is_candidate = |file: &&String| {
        let is_here = file.strip_prefix(dir).is_some_and(|rest| !rest.contains('/'));
        file.starts_with(dir) && (is_here || !copy_fits_beside(file)) && name.may_be_of(last_name(file))
    };
    let found = files.keys().filter(|file| parse_copy_name(last_name(file)).is_none()).find(is_candidate);
    (found.cloned().unwrap_or(plain), device)
}

/// The path of `name` in the directory of `at`.
pub(crate) fn sibling(at: &str, name: &str) -> String {
    at.rsplit_once('/').map_or_else(|| name.to_owned(), |(dir, _)| format!("{dir}/{name}"))
}

pub(crate) fn last_name(at: &str) -> &str {
    at.rsplit_once('/').map_or(at, |(_, name)| name)
}

/// `None` for a time that cannot be shown.
pub(crate) fn modified(meta: &FileMeta) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(meta.mtime_ns)).ok()
}

/// The regular files of a folder, without those that are private to memsync.
pub(crate) fn list_files(open: &ConfiguredFolder) -> anyhow::Result<RegularFiles> {
    let mut files = RegularFiles::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        let names = match open.folder.disk().list(&dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.is_empty() => continue,
            Err(e) if !dir.is_empty() => {
                tracing::warn!("{}: cannot be listed: {e}", open.root.join(&dir).display());
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
    use crate::local::conflicts::conflict_name;
    use crate::path::MAX_SEGMENT;

    fn files(names: &[&str]) -> RegularFiles {
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

    fn find(at: &str, there: &[&str], links: &CopyLinks) -> (String, String) {
        find_original(at, &parse_copy_name(last_name(at)).unwrap(), &files(there), links)
    }

    #[test]
    fn original_is_found_by_the_whole_name() {
        for (at, original, device) in [
            ("a.conflict-laptop-0123abcd.md", "a.md", "laptop"),
            ("n/a.b.conflict-my-phone-0123abcd-2.md", "n/a.b.md", "my-phone"),
            ("note.conflict-x-00000000", "note", "x"),
        ] {
            let expected = (original.to_owned(), device.to_owned());
            assert_eq!(find(at, &[original, "b.md"], &CopyLinks::new()), expected, "{at}");
            assert_eq!(find(at, &[], &CopyLinks::new()), expected, "{at}: the original is gone");
        }
        assert_eq!(parse_copy_name("a.conflict-of-interest.md"), None);
    }

    #[test]
    fn original_is_found_by_a_cut_name() {
        for stem in ["x".repeat(MAX_SEGMENT - 3), "é".repeat((MAX_SEGMENT - 3) / 2)] {
            let name = format!("{stem}.md");
            let copy = format!("n/{}", conflict_name(&name, "phone", Md5::of(b"x"), 1));
            let original = format!("n/{name}");
            let other = format!("n/{}.txt", &stem[..stem.len() - 4]);
            let there = [original.as_str(), "n/xx.md", &other, "x.md"];
            assert_eq!(find(&copy, &there, &CopyLinks::new()), (original.clone(), "phone".to_owned()));
        }
    }

    #[test]
    fn original_is_found_below_a_copy_in_a_folder_above() {
        let deep = format!("{}/plan.md", vec!["d".repeat(200); 5].join("/"));
        let copy = format!("{}/plan.conflict-phone-0123abcd.md", "d".repeat(200));
        let there = [deep.as_str(), "plan.md", "other/plan.md"];
        assert!(deep.len() <= MAX_PATH);
        assert_eq!(find(&copy, &there, &CopyLinks::new()), (deep.clone(), "phone".to_owned()));
    }

    #[test]
    fn original_in_the_state_overrides_the_name() {
        let path = |text: &str| RelPath::parse(text).unwrap();
        let link = CopyLink { original: path("deep/er/plan.md"), device: "phone".to_owned(), is_emptied: false };
        let at = "plan.conflict-ph-0123abcd.md";
        let found = find(at, &["plan.md", "deep/er/plan.md"], &[(path(at), link)].into());
        assert_eq!(found, ("deep/er/plan.md".to_owned(), "phone".to_owned()));
    }
}
