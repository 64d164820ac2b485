//! The state of one file, for `status PATH`.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::format;
use crate::cli::exit::Exit;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FileState {
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
pub(crate) struct FileStatus {
    pub(crate) folder: PathBuf,
    /// Relative to the folder.
    pub(crate) path: String,
    pub(crate) state: FileState,
    /// The reason for a state other than synced.
    pub(crate) why: Option<String>,
    /// Bytes.
    pub(crate) size: Option<u64>,
    pub(crate) modified: Option<Timestamp>,
    pub(crate) md5: Option<String>,
    /// The original, if this file is a conflict copy.
    pub(crate) conflict_of: Option<String>,
    /// The conflict copies of this file, relative to the folder.
    pub(crate) conflict_copies: Vec<String>,
    /// Versions in the history of this machine.
    pub(crate) earlier_versions: usize,
    /// Hard links to the same file, in this folder or outside.
    pub(crate) other_names: u64,
}

impl FileStatus {
    pub(crate) fn exit(&self) -> Exit {
        match self.state {
            _ if self.conflict_of.is_some() || !self.conflict_copies.is_empty() => Exit::Conflicts,
            FileState::WaitsForUpload | FileState::WaitsForDelete | FileState::Blocked => Exit::Pending,
            FileState::Absent => Exit::Error,
            FileState::Synced | FileState::Deleted | FileState::Ignored | FileState::Folder => Exit::Done,
        }
    }
}

/// The text, with colours. Ages count from `now`.
pub(crate) fn file_status_text(file: &FileStatus, now: Timestamp) -> String {
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
