//! `memsync status PATH`: the state of one file, and why.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use super::app::App;
use super::exit::Exit;
use super::locate::{self, Place};
use super::{conflicts, show, state_files};
use crate::agent::status::Status;
use crate::digest::Md5;
use crate::disk::real::RealDisk;
use crate::disk::{Disk, DiskFile, FileKind};
use crate::local::Folder;
use crate::local::change::kind_name;
use crate::local::ignore::{IGNORE_FILE, IgnoreRules, PatternError};
use crate::local::source::digest;
use crate::path::{RelPath, ascii_name};
use crate::state::{self, BaseEntry};
use crate::sync::{Base, SkipReason};

/// Longest ignore file read, bytes.
const MAX_RULES: usize = 1 << 20;

/// A file in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    Synced,
    /// Changed or new here.
    WaitsForUpload,
    /// Gone here, not yet on the proxy.
    WaitsForDelete,
    Deleted,
    Ignored,
    /// It takes no part, for the reason given.
    Blocked,
    Folder,
    Absent,
}

/// The answer.
#[derive(Debug, Clone, Serialize)]
pub struct FileStatus {
    pub folder: PathBuf,
    /// Below the folder.
    pub path: String,
    pub state: FileState,
    /// Why, where it is not in sync.
    pub why: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    pub modified: Option<Timestamp>,
    pub md5: Option<String>,
    /// Of a conflict copy: the file that kept the name.
    pub conflict_of: Option<String>,
    /// The conflict copies of this file, below the folder.
    pub conflict_copies: Vec<String>,
    /// Kept here, in history.
    pub earlier_versions: usize,
    /// Other names of the file (hard links), in this folder or outside.
    pub other_names: u64,
}

impl FileStatus {
    pub fn exit(&self) -> Exit {
        match self.state {
            _ if self.conflict_of.is_some() || !self.conflict_copies.is_empty() => Exit::Conflicts,
            FileState::WaitsForUpload | FileState::WaitsForDelete | FileState::Blocked => Exit::Pending,
            FileState::Absent => Exit::Error,
            FileState::Synced | FileState::Deleted | FileState::Ignored | FileState::Folder => Exit::Done,
        }
    }
}

/// Looks at one file. `status`: for what the agent knows of it.
///
/// # Errors
/// When the path is in no folder, or the state cannot be read.
pub fn of(app: &App, path: &Path, status: &Status) -> anyhow::Result<FileStatus> {
    let place = locate::find(app, path, |folder, at| folder.versions(Some(at)).is_ok_and(|v| !v.is_empty()))?;
    let folder = &place.open.folder;
    let versions = folder.versions(Some(place.at.as_str()).filter(|at| !at.is_empty())).context(".memsync/history")?;
    let mut file = FileStatus {
        folder: place.open.root.clone(),
        path: place.at.clone(),
        state: FileState::Folder,
        why: None,
        size: None,
        modified: None,
        md5: None,
        conflict_of: conflicts::origin_of(app, &place)?,
        conflict_copies: Vec::new(),
        earlier_versions: versions.iter().filter(|v| v.path == place.at).count(),
        other_names: 0,
    };
    if place.at.is_empty() {
        return Ok(file);
    }
    file.conflict_copies = conflicts::copies_of(app, &place)?;
    let (state, why) = judge(app, &place, status, &mut file)?;
    (file.state, file.why) = (state, why);
    // The name of a file that is gone is no conflict.
    file.conflict_of = file.conflict_of.filter(|_| file.size.is_some());
    Ok(file)
}

fn judge(
    app: &App,
    place: &Place,
    status: &Status,
    file: &mut FileStatus,
) -> anyhow::Result<(FileState, Option<String>)> {
    let path = place.path()?;
    let meta = match place.open.folder.disk().stat(&place.at) {
        Ok(meta) => Some(meta),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            return Ok((FileState::Blocked, Some("is below a mount point, and left out".to_owned())));
        }
        Err(e) => return Ok((FileState::Blocked, Some(SkipReason::Unreadable(e.to_string()).to_string()))),
    };
    let is_dir = meta.is_some_and(|m| m.kind == FileKind::Dir);
    let mut above = place.at.match_indices('/').map(|(end, _)| &place.at[..end]).chain(is_dir.then_some(&*place.at));
    if let Some(other) = above.find(|dir| place.open.folder.is_other_folder(dir)) {
        return Ok((FileState::Blocked, Some(format!("{} {}", show::name(other), SkipReason::OtherFolder))));
    }
    if let Some(rule) = ignored_by(app, place, is_dir)? {
        return Ok((FileState::Ignored, Some(rule)));
    }
    let base = base(app, place, &path)?.map(|e| e.base);
    let known = status.folders.iter().find(|f| Path::new(&f.path) == locate::real(&place.open.root));
    let problem =
        known.and_then(|f| f.problems.iter().find(|p| p.path == path.as_str() || p.path == ascii_name(&place.at)));
    let Some(meta) = meta else {
        return Ok(match (problem, base) {
            (Some(p), _) => (FileState::Blocked, Some(p.problem.clone())),
            (None, Some(Base::Synced(_))) => (FileState::WaitsForDelete, Some("it was deleted here".to_owned())),
            (None, Some(Base::Detached(_))) => (
                FileState::Absent,
                Some("it went while it took no part; it is downloaded again where the proxy has it".to_owned()),
            ),
            (None, Some(Base::Seen(_))) => (FileState::Deleted, Some("it was deleted, here and elsewhere".to_owned())),
            (None, None) => (FileState::Absent, Some("there is no such file here".to_owned())),
        });
    };
    if meta.is_mount {
        return Ok((FileState::Blocked, Some(SkipReason::Mounted.to_string())));
    }
    if is_dir {
        return Ok((FileState::Folder, None));
    }
    file.size = Some(meta.size);
    file.other_names = if meta.kind == FileKind::File { meta.links.saturating_sub(1) } else { 0 };
    file.modified = Timestamp::from_nanosecond(i128::from(meta.mtime_ns)).ok();
    let blocked = |why: SkipReason| Ok((FileState::Blocked, Some(why.to_string())));
    if meta.kind != FileKind::File {
        return blocked(SkipReason::NotAFile(kind_name(meta.kind)));
    }
    if meta.size > app.config()?.sync.max_file_size {
        return blocked(SkipReason::TooLarge(meta.size));
    }
    if let Some(p) = problem {
        return Ok((FileState::Blocked, Some(p.problem.clone())));
    }
    let md5: Md5 = match digest(place.open.folder.disk(), &place.at, &mut Vec::new()) {
        Ok(Some(found)) => found.md5,
        Ok(None) => return Ok((FileState::WaitsForUpload, Some(SkipReason::Changing.to_string()))),
        Err(e) => return blocked(SkipReason::Unreadable(e.to_string())),
    };
    file.md5 = Some(md5.to_string());
    Ok(match base {
        Some(Base::Synced(base) | Base::Detached(base)) if base == md5 => (FileState::Synced, None),
        Some(Base::Synced(_) | Base::Detached(_)) => {
            (FileState::WaitsForUpload, Some("it was changed here".to_owned()))
        }
        Some(Base::Seen(_)) | None => (FileState::WaitsForUpload, Some("it is new here".to_owned())),
    })
}

/// What both sides last agreed on, as the state container has it.
fn base(app: &App, place: &Place, path: &RelPath) -> anyhow::Result<Option<BaseEntry>> {
    let disk = match RealDisk::open(&locate::real(&app.dirs.state)) {
        Ok(disk) => Arc::new(disk),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| app.dirs.state.display().to_string()),
    };
    let files = state_files::find(app, &place.open.root);
    let name = files.container.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(state::peek(&disk, &name)?.and_then(|view| view.entries.get(path).cloned()))
}

/// The rule that leaves the file out.
fn ignored_by(app: &App, place: &Place, is_dir: bool) -> anyhow::Result<Option<String>> {
    let config = app.config()?;
    let list = config.folders.iter().find(|f| f.path == place.open.root).map_or(&[][..], |f| &f.ignore);
    let text = rules_text(&place.open.folder)?;
    rule(list, &text, &place.at, is_dir).map_err(|e| anyhow::anyhow!("{}: {e}", place.open.root.display()))
}

fn rule(list: &[String], text: &str, at: &str, is_dir: bool) -> Result<Option<String>, PatternError> {
    if !IgnoreRules::of_good_lines(list, Some(text))?.0.ignored(at, is_dir) {
        return Ok(None);
    }
    if IgnoreRules::new(&[], None)?.ignored(at, is_dir) {
        return Ok(Some("memsync leaves such files out: programs make them for the moment".to_owned()));
    }
    // The last pattern that matches decides; alone, it still does.
    for (i, line) in text.lines().enumerate().collect::<Vec<_>>().into_iter().rev() {
        if IgnoreRules::of_good_lines(&[], Some(line))?.0.ignored(at, is_dir) {
            return Ok(Some(format!("{IGNORE_FILE}, line {}: {}", i + 1, show::name(line))));
        }
    }
    for pattern in list.iter().rev() {
        if IgnoreRules::new(std::slice::from_ref(pattern), None)?.ignored(at, is_dir) {
            return Ok(Some(format!("the folder's `ignore` list: {}", show::name(pattern))));
        }
    }
    Ok(Some("the ignore rules".to_owned()))
}

fn rules_text(folder: &Folder<RealDisk>) -> anyhow::Result<String> {
    let read = || -> io::Result<String> {
        let mut file = folder.disk().open(IGNORE_FILE)?;
        let (mut text, mut buf) = (Vec::new(), vec![0; 8192]);
        while text.len() < MAX_RULES {
            match file.read(&mut buf)? {
                0 => break,
                n => text.extend_from_slice(&buf[..n]),
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    match read() {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(String::new()),
        other => other.context(IGNORE_FILE),
    }
}

/// The answer for people.
pub fn text(file: &FileStatus, now: Timestamp) -> String {
    let path = show::name(&file.folder.join(&file.path).display().to_string());
    let (style, word) = match file.state {
        FileState::Synced if !file.conflict_copies.is_empty() => (show::BAD, "in conflict: both versions are kept"),
        FileState::Synced => (show::GOOD, "in sync"),
        FileState::WaitsForUpload => (show::BUSY, "waits for upload"),
        FileState::WaitsForDelete => (show::BUSY, "waits to be deleted elsewhere"),
        FileState::Deleted => (show::DIM, "deleted"),
        FileState::Ignored => (show::DIM, "left out by the ignore rules"),
        FileState::Blocked => (show::BAD, "not synced"),
        FileState::Folder => (show::DIM, "a folder; `memsync status` shows the whole"),
        FileState::Absent => (show::BAD, "not there"),
    };
    let mut out = format!("{}\n  {}\n", show::painted(show::BOLD, &path), show::painted(style, word));
    let mut line = |text: String| {
        out.push_str("  ");
        out.push_str(&text);
        out.push('\n');
    };
    if let Some(why) = &file.why {
        line(show::name(why));
    }
    if let (Some(size), Some(at)) = (file.size, file.modified) {
        line(format!("{}, written {}", show::size(size), show::ago(now, at)));
    }
    if let Some(original) = &file.conflict_of {
        line(format!("a conflict copy of {}; settle it: memsync conflicts", show::name(original)));
    }
    for copy in &file.conflict_copies {
        line(format!("in conflict with {}; settle it: memsync conflicts", show::name(copy)));
    }
    if file.other_names > 0 {
        let names = show::count(usize::try_from(file.other_names).unwrap_or(usize::MAX), "other name");
        line(format!(
            "has {names} (hard links); an edit through one outside of the folder is noticed by the next full scan"
        ));
    }
    if file.earlier_versions > 0 {
        let kept = show::count(file.earlier_versions, "earlier version");
        line(format!("{kept}; see them: memsync history {path}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_that_decides_is_named() {
        let list = ["*.tmp".to_owned(), "cache/".to_owned()];
        let file = "# mine\nsecret*\n!secret.md\n";
        let by = |at: &str| rule(&list, file, at, false).unwrap();
        assert_eq!(by("note.md"), None);
        assert_eq!(by("secret.md"), None);
        assert_eq!(by("n/secrets").as_deref(), Some(".memsyncignore, line 2: secret*"));
        assert_eq!(by("cache/x/y.md").as_deref(), Some("the folder's `ignore` list: cache/"));
        assert_eq!(by("a.tmp").as_deref(), Some("the folder's `ignore` list: *.tmp"));
        assert!(by(".DS_Store").unwrap().contains("programs make them"));
    }

    #[test]
    fn a_file_for_people() {
        let file = FileStatus {
            folder: "/m".into(),
            path: "a.md".to_owned(),
            state: FileState::WaitsForUpload,
            why: Some("it was changed here".to_owned()),
            size: Some(12),
            modified: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            md5: None,
            conflict_of: None,
            conflict_copies: Vec::new(),
            earlier_versions: 2,
            other_names: 0,
        };
        let text = text(&file, "2026-01-01T00:01:00Z".parse().unwrap());
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "/m/a.md\n  waits for upload\n  it was changed here\n  12 B, written 1 min ago\n  \
             2 earlier versions; see them: memsync history /m/a.md\n"
        );
        assert_eq!(file.exit(), Exit::Pending);
    }
}
