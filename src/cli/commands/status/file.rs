//! The state of one file, for `status PATH`.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use crate::agent::status::{ProblemStatus, Status};
use crate::cli::app::App;
use crate::cli::conflict_copies::{list_copies, modified};
use crate::cli::exit::Exit;
use crate::cli::folder::{FolderPath, find_path, has_versions, versions_at};
use crate::cli::machine::state_files::{read_beginning, read_state};
use crate::cli::view::format;
use crate::config::resolve_links;
use crate::digest::Md5;
use crate::disk::{Disk, FileKind, FileMeta};
use crate::local::change::kind_name;
use crate::local::ignore::{IGNORE_FILE, IgnoreRules, PatternError};
use crate::local::source::digest;
use crate::path::{RelPath, ascii_name};
use crate::sync::{Base, SkipReason};

const MAX_RULES_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileState {
    Synced,
    /// New or changed here.
    WaitsForUpload,
    /// Deleted here, and not yet on the proxy.
    WaitsForDelete,
    Deleted,
    Ignored,
    /// Not synced, for the reason given.
    Blocked,
    Folder,
    Absent,
}

/// The document of `status PATH`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FileStatus {
    pub(super) folder: PathBuf,
    /// Relative to the folder.
    pub(super) path: String,
    pub(super) state: FileState,
    /// The reason for a state other than synced.
    pub(super) why: Option<String>,
    /// Bytes.
    pub(super) size: Option<u64>,
    pub(super) modified: Option<Timestamp>,
    pub(super) md5: Option<String>,
    /// The original, if this file is a conflict copy.
    pub(super) conflict_of: Option<String>,
    /// The conflict copies of this file, relative to the folder.
    pub(super) conflict_copies: Vec<String>,
    /// Versions in the history of this machine.
    pub(super) earlier_versions: usize,
    /// Hard links to the same file, in this folder or outside.
    pub(super) other_names: u64,
}

impl FileStatus {
    pub(super) fn exit(&self) -> Exit {
        match self.state {
            _ if self.conflict_of.is_some() || !self.conflict_copies.is_empty() => Exit::Conflicts,
            FileState::WaitsForUpload | FileState::WaitsForDelete | FileState::Blocked => Exit::Pending,
            FileState::Absent => Exit::Error,
            FileState::Synced | FileState::Deleted | FileState::Ignored | FileState::Folder => Exit::Done,
        }
    }
}

/// The judged part of a [`FileStatus`].
struct FileVerdict {
    state: FileState,
    why: Option<String>,
    /// Set unless the path is a directory, a mount point or missing.
    meta: Option<FileMeta>,
    md5: Option<Md5>,
}

impl FileVerdict {
    fn new(state: FileState, why: Option<String>) -> Self {
        Self { state, why, meta: None, md5: None }
    }

    fn blocked(why: impl ToString) -> Self {
        Self::new(FileState::Blocked, Some(why.to_string()))
    }
}

/// The state of the file at `path`. `status` is the agent's, with the problems that it found.
pub(super) fn file_status(app: &App, path: &Path, status: &Status) -> anyhow::Result<FileStatus> {
    let place = find_path(app, path, has_versions)?;
    let versions = versions_at(&place.open.folder, &place.at)?;
    let (verdict, copies) = if place.at.is_empty() {
        (FileVerdict::new(FileState::Folder, None), Vec::new())
    } else {
        (judge(app, &place, status)?, list_copies(app, &place.open)?)
    };
    // The name of a file that is gone is no conflict.
    let conflict_of = copies.iter().find(|c| c.path == place.at && verdict.meta.is_some()).map(|c| c.original.clone());
    let conflict_copies = copies.into_iter().filter(|c| c.original == place.at).map(|c| c.path).collect();
    let regular = verdict.meta.filter(|m| m.kind == FileKind::File);
    Ok(FileStatus {
        folder: place.open.root.clone(),
        path: place.at.clone(),
        state: verdict.state,
        why: verdict.why,
        size: verdict.meta.map(|m| m.size),
        modified: verdict.meta.as_ref().and_then(modified),
        md5: verdict.md5.map(|md5| md5.to_string()),
        conflict_of,
        conflict_copies,
        earlier_versions: versions.iter().filter(|v| v.path == place.at).count(),
        other_names: regular.map_or(0, |m| m.links.saturating_sub(1)),
    })
}

fn judge(app: &App, place: &FolderPath, status: &Status) -> anyhow::Result<FileVerdict> {
    let path = place.rel_path()?;
    let meta = match place.open.folder.disk().stat(&place.at) {
        Ok(meta) => Some(meta),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            return Ok(FileVerdict::blocked("is below a mount point, and left out"));
        }
        Err(e) => return Ok(FileVerdict::blocked(SkipReason::Unreadable(e.to_string()))),
    };
    let is_dir = meta.is_some_and(|m| m.kind == FileKind::Dir);
    let mut above = place.at.match_indices('/').map(|(end, _)| &place.at[..end]).chain(is_dir.then_some(&*place.at));
    if let Some(other) = above.find(|dir| place.open.folder.is_other_folder(dir)) {
        return Ok(FileVerdict::blocked(format!("{} {}", format::printable(other), SkipReason::OtherFolder)));
    }
    if let Some(rule) = ignored_by(app, place, is_dir)? {
        return Ok(FileVerdict::new(FileState::Ignored, Some(rule)));
    }
    let state = read_state(app, &place.open.root)?;
    let base = state.and_then(|state| state.entries.get(&path).map(|entry| entry.base));
    let problem = known_problem(place, status, &path);
    let Some(meta) = meta else { return Ok(judge_missing(problem, base)) };
    if meta.is_mount {
        return Ok(FileVerdict::blocked(SkipReason::Mounted));
    }
    if is_dir {
        return Ok(FileVerdict::new(FileState::Folder, None));
    }
    let max_size = app.config()?.sync.max_file_size;
    let verdict = match blocking_fault(&meta, max_size, problem) {
        Some(why) => FileVerdict::blocked(why),
        None => judge_content(place, base),
    };
    Ok(FileVerdict { meta: Some(meta), ..verdict })
}

/// The problem that the agent reports for a path.
fn known_problem<'a>(place: &FolderPath, status: &'a Status, path: &RelPath) -> Option<&'a ProblemStatus> {
    let folder = status.folders.iter().find(|f| Path::new(&f.path) == resolve_links(&place.open.root))?;
    folder.problems.iter().find(|p| p.path == path.as_str() || p.path == ascii_name(&place.at))
}

fn judge_missing(problem: Option<&ProblemStatus>, base: Option<Base>) -> FileVerdict {
    let (state, why) = match (problem, base) {
        (Some(p), _) => return FileVerdict::blocked(&p.problem),
        (None, Some(Base::Synced(_))) => (FileState::WaitsForDelete, "it was deleted here"),
        (None, Some(Base::Detached(_))) => {
            (FileState::Absent, "it was deleted while it was not synced; it is downloaded again if the proxy has it")
        }
        (None, Some(Base::Seen(_))) => (FileState::Deleted, "it was deleted, here and elsewhere"),
        (None, None) => (FileState::Absent, "there is no such file here"),
    };
    FileVerdict::new(state, Some(why.to_owned()))
}

/// The reason why a file cannot be synced with any content.
fn blocking_fault(meta: &FileMeta, max_size: u64, problem: Option<&ProblemStatus>) -> Option<String> {
    if meta.kind != FileKind::File {
        return Some(SkipReason::NotAFile(kind_name(meta.kind)).to_string());
    }
    if meta.size > max_size {
        return Some(SkipReason::TooLarge(meta.size).to_string());
    }
    problem.map(|p| p.problem.clone())
}

fn judge_content(place: &FolderPath, base: Option<Base>) -> FileVerdict {
    let md5 = match digest(place.open.folder.disk(), &place.at, &mut Vec::new()) {
        Ok(Some(found)) => found.md5,
        Ok(None) => return FileVerdict::new(FileState::WaitsForUpload, Some(SkipReason::Changing.to_string())),
        Err(e) => return FileVerdict::blocked(SkipReason::Unreadable(e.to_string())),
    };
    let verdict = match base {
        Some(Base::Synced(base) | Base::Detached(base)) if base == md5 => FileVerdict::new(FileState::Synced, None),
        Some(Base::Synced(_) | Base::Detached(_)) => {
            FileVerdict::new(FileState::WaitsForUpload, Some("it was changed here".to_owned()))
        }
        Some(Base::Seen(_)) | None => FileVerdict::new(FileState::WaitsForUpload, Some("it is new here".to_owned())),
    };
    FileVerdict { md5: Some(md5), ..verdict }
}

/// The rule that ignores the file.
pub(in crate::cli::commands) fn ignored_by(
    app: &App,
    place: &FolderPath,
    is_dir: bool,
) -> anyhow::Result<Option<String>> {
    let config = app.config()?;
    let list = config.folders.iter().find(|f| f.path == place.open.root).map_or(&[][..], |f| &f.ignore);
    let text = match read_beginning(place.open.folder.disk(), IGNORE_FILE, MAX_RULES_BYTES) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => String::new(),
        read => String::from_utf8_lossy(&read.context(IGNORE_FILE)?).into_owned(),
    };
    deciding_rule(list, &text, &place.at, is_dir).map_err(|e| anyhow::anyhow!("{}: {e}", place.open.root.display()))
}

fn deciding_rule(list: &[String], text: &str, at: &str, is_dir: bool) -> Result<Option<String>, PatternError> {
    if !IgnoreRules::from_good_lines(list, Some(text))?.0.ignored(at, is_dir) {
        return Ok(None);
    }
    if IgnoreRules::new(&[], None)?.ignored(at, is_dir) {
        return Ok(Some("memsync never syncs such files: programs make them for their own use".to_owned()));
    }
    // The last pattern that matches decides, and it matches by itself too.
    for (i, line) in text.lines().enumerate().collect::<Vec<_>>().into_iter().rev() {
        if IgnoreRules::from_good_lines(&[], Some(line))?.0.ignored(at, is_dir) {
            return Ok(Some(format!("{IGNORE_FILE}, line {}: {}", i + 1, format::printable(line))));
        }
    }
    for pattern in list.iter().rev() {
        if IgnoreRules::new(std::slice::from_ref(pattern), None)?.ignored(at, is_dir) {
            return Ok(Some(format!("the folder's `ignore` list: {}", format::printable(pattern))));
        }
    }
    Ok(Some("the ignore rules".to_owned()))
}

/// The text, with colours. Ages count from `now`.
pub(super) fn file_status_text(file: &FileStatus, now: Timestamp) -> String {
    let path = format::path(&file.folder.join(&file.path));
    let (style, word) = match file.state {
        FileState::Synced if !file.conflict_copies.is_empty() => (format::BAD, "in conflict: both versions are kept"),
        FileState::Synced => (format::GOOD, "in sync"),
        FileState::WaitsForUpload => (format::BUSY, "waits for upload"),
        FileState::WaitsForDelete => (format::BUSY, "waits to be deleted on the proxy"),
        FileState::Deleted => (format::DIM, "deleted"),
        FileState::Ignored => (format::DIM, "ignored"),
        FileState::Blocked => (format::BAD, "not synced"),
        FileState::Folder => (format::DIM, "a folder; `memsync status` shows all of it"),
        FileState::Absent => (format::BAD, "not there"),
    };
    let mut out = format!("{}\n  {}\n", format::painted(format::BOLD, &path), format::painted(style, word));
    let mut line = |text: String| {
        out.push_str("  ");
        out.push_str(&text);
        out.push('\n');
    };
    if let Some(why) = &file.why {
        line(format::printable(why));
    }
    if let (Some(size), Some(at)) = (file.size, file.modified) {
        line(format!("{}, written {}", format::size(size), format::ago(now, at)));
    }
    if let Some(original) = &file.conflict_of {
        line(format!("a conflict copy of {}; settle it: memsync conflicts", format::printable(original)));
    }
    for copy in &file.conflict_copies {
        line(format!("in conflict with {}; settle it: memsync conflicts", format::printable(copy)));
    }
    if file.other_names > 0 {
        let names = format::count(usize::try_from(file.other_names).unwrap_or(usize::MAX), "other name");
        line(format!(
            "has {names} (hard links); the next full scan notices an edit through a link outside of the folder"
        ));
    }
    if file.earlier_versions > 0 {
        let kept = format::count(file.earlier_versions, "earlier version");
        line(format!("{kept}; see them: memsync history {path}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deciding_rule_is_named() {
        let list = ["*.tmp".to_owned(), "cache/".to_owned()];
        let file = "# mine\nsecret*\n!secret.md\n";
        let by = |at: &str| deciding_rule(&list, file, at, false).unwrap();
        assert_eq!(by("note.md"), None);
        assert_eq!(by("secret.md"), None);
        assert_eq!(by("n/secrets").as_deref(), Some(".memsyncignore, line 2: secret*"));
        assert_eq!(by("cache/x/y.md").as_deref(), Some("the folder's `ignore` list: cache/"));
        assert_eq!(by("a.tmp").as_deref(), Some("the folder's `ignore` list: *.tmp"));
        assert!(by(".DS_Store").unwrap().contains("never syncs"));
    }

    #[test]
    fn text_names_state_reason_and_history() {
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
        let text = file_status_text(&file, "2026-01-01T00:01:00Z".parse().unwrap());
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "/m/a.md\n  waits for upload\n  it was changed here\n  12 B, written 1 min ago\n  \
             2 earlier versions; see them: memsync history /m/a.md\n"
        );
        assert_eq!(file.exit(), Exit::Pending);
    }
}
