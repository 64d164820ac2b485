//! Judges the state of one file, for `status PATH`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;

use crate::agent::status::{ProblemStatus, Status};
use crate::cli::app::App;
use crate::cli::folder::conflict_copies::{copies_of, original_of};
use crate::cli::folder::lookup::{FolderPath, find_path};
use crate::cli::machine::state_files;
use crate::cli::view::file_status::{FileState, FileStatus};
use crate::cli::view::format;
use crate::config::resolve_links;
use crate::digest::Md5;
use crate::disk::real::RealDisk;
use crate::disk::{Disk, DiskFile, FileKind, FileMeta};
use crate::local::Folder;
use crate::local::change::kind_name;
use crate::local::ignore::{IGNORE_FILE, IgnoreRules, PatternError};
use crate::local::source::digest;
use crate::path::{RelPath, ascii_name};
use crate::state;
use crate::sync::{Base, SkipReason};

/// Longest ignore file that is read.
const MAX_RULES_BYTES: usize = 1 << 20;

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
    let place = find_path(app, path, |folder, at| folder.versions(Some(at)).is_ok_and(|v| !v.is_empty()))?;
    let folder = &place.open.folder;
    let versions = folder.versions(Some(place.at.as_str()).filter(|at| !at.is_empty())).context(".memsync/history")?;
    let verdict =
        if place.at.is_empty() { FileVerdict::new(FileState::Folder, None) } else { judge(app, &place, status)? };
    // The name of a file that is gone is no conflict.
    let conflict_of = original_of(app, &place)?.filter(|_| verdict.meta.is_some());
    let conflict_copies = if place.at.is_empty() { Vec::new() } else { copies_of(app, &place)? };
    let regular = verdict.meta.filter(|m| m.kind == FileKind::File);
    Ok(FileStatus {
        folder: place.open.root.clone(),
        path: place.at.clone(),
        state: verdict.state,
        why: verdict.why,
        size: verdict.meta.map(|m| m.size),
        modified: verdict.meta.and_then(|m| Timestamp::from_nanosecond(i128::from(m.mtime_ns)).ok()),
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
    let base = read_base(app, place, &path)?;
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

/// The state on which both sides last agreed, from the state container.
fn read_base(app: &App, place: &FolderPath, path: &RelPath) -> anyhow::Result<Option<Base>> {
    let disk = match RealDisk::open(&resolve_links(&app.dirs.state)) {
        Ok(disk) => Arc::new(disk),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| app.dirs.state.display().to_string()),
    };
    let container = state_files::find(app, &place.open.root).container_name();
    Ok(state::peek(&disk, &container)?.and_then(|view| view.entries.get(path).map(|entry| entry.base)))
}

/// The rule that ignores the file.
fn ignored_by(app: &App, place: &FolderPath, is_dir: bool) -> anyhow::Result<Option<String>> {
    let config = app.config()?;
    let list = config.folders.iter().find(|f| f.path == place.open.root).map_or(&[][..], |f| &f.ignore);
    let text = read_ignore_file(&place.open.folder)?;
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

fn read_ignore_file(folder: &Folder<RealDisk>) -> anyhow::Result<String> {
    let read = || -> io::Result<String> {
        let mut file = folder.disk().open(IGNORE_FILE)?;
        let (mut text, mut buf) = (Vec::new(), vec![0; 8192]);
        while text.len() < MAX_RULES_BYTES {
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
}
