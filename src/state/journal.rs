//! The journal file. Pure: `container` writes it and `load` reads it.
//!
//! Each commit is one line, so it is whole or missing: the CRC-32 of the rest of the line in 8 hex digits, a space,
//! JSON. The first line is the [`JournalHead`] with the fingerprint of the container that the journal extends. A step
//! is absolute (set, forget), so a second replay of it changes nothing.

use std::str::from_utf8;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::path::RelPath;

use super::format::{DecodeError, Fingerprint};
use super::notes::{StoredNotes, UploadNotes};
use super::types::{BaseChange, BaseEntries, BaseEntry, StateHeader, StoredEntry, VERSION};

/// The first line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalHead {
    /// As in the container.
    pub(super) version: u64,
    /// The container that the steps continue.
    pub(super) extends: Fingerprint,
    /// The file `.bak` when the journal was begun.
    pub(super) backup: Option<BackupLink>,
}

/// A backup, and its distance from the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BackupLink {
    pub(super) container: Fingerprint,
    /// The commits of the previous journal that must be replayed on the backup to get the container that this journal
    /// extends. `None`: the previous journal does not lead to that container.
    pub(super) commits: Option<usize>,
}

impl BackupLink {
    /// A backup from which no known journal leads on.
    pub(super) fn unconnected(container: Fingerprint) -> Self {
        Self { container, commits: None }
    }
}

/// One step of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JournalStep {
    Set(StoredEntry),
    Forget(RelPath),
    Header(Box<HeaderStep>),
    /// Forgets every entry and upload.
    Clear,
}

/// A header, and the uploads recorded with it. An older build ignores an unknown field, but takes a journal with an
/// unknown step for damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeaderStep {
    #[serde(flatten)]
    pub(super) header: StateHeader,
    /// Additional uploads. A later step for the same path settles them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uploads: Option<StoredNotes>,
}

impl From<&StateHeader> for JournalStep {
    fn from(header: &StateHeader) -> Self {
        Self::Header(Box::new(HeaderStep { header: header.clone(), uploads: None }))
    }
}

impl From<&BaseChange> for JournalStep {
    fn from(change: &BaseChange) -> Self {
        match change {
            BaseChange::Set(path, entry) => Self::set(path, entry),
            BaseChange::Forget(path) => Self::Forget(path.clone()),
        }
    }
}

impl JournalStep {
    /// A step that sets one entry.
    pub(super) fn set(path: &RelPath, entry: &BaseEntry) -> Self {
        Self::Set(StoredEntry::new(path, entry))
    }

    /// Applies the step. Returns the new header, if it has one.
    pub(super) fn apply(self, entries: &mut BaseEntries, noted: &mut UploadNotes) -> Option<StateHeader> {
        match self {
            Self::Set(stored) => {
                let (path, entry) = stored.split();
                BaseChange::Set(path, entry).apply(entries, noted);
            }
            Self::Forget(path) => BaseChange::Forget(path).apply(entries, noted),
            Self::Header(step) => {
                let HeaderStep { header, uploads } = *step;
                uploads.into_iter().for_each(|stored| noted.read(stored));
                return Some(header);
            }
            Self::Clear => {
                entries.clear();
                noted.clear();
            }
        }
        None
    }
}

/// The end of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JournalEnd {
    Whole,
    /// The last line is incomplete: its write was cut off, and never acknowledged.
    Torn,
    /// A complete line has wrong content. The commits are those before it.
    Damaged,
}

/// The content of a journal with a readable head.
#[derive(Debug)]
pub(super) struct JournalContent {
    pub(super) head: JournalHead,
    pub(super) commits: Vec<Vec<JournalStep>>,
    pub(super) end: JournalEnd,
}

/// Appends one line. The serialiser's signature has an error, but no head or step causes one.
pub(super) fn encode_line(out: &mut Vec<u8>, content: &impl Serialize) -> serde_json::Result<()> {
    let json = serde_json::to_vec(content)?;
    out.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json)).as_bytes());
    out.extend_from_slice(&json);
    out.push(b'\n');
    Ok(())
}

/// Reads a journal up to its first incomplete or damaged line.
pub(super) fn decode(bytes: &[u8]) -> Result<JournalContent, DecodeError> {
    let mut lines = bytes.split_inclusive(|&b| b == b'\n');
    let head: JournalHead = lines.next().and_then(line_content).and_then(parse).ok_or(DecodeError::Damaged)?;
    if head.version > u64::from(VERSION) {
        return Err(DecodeError::Future(head.version));
    }
    let mut commits = Vec::new();
    let mut end = JournalEnd::Whole;
    for line in lines {
        match line_content(line).and_then(parse) {
            Some(steps) => commits.push(steps),
            None => {
                end = if line.ends_with(b"\n") { JournalEnd::Damaged } else { JournalEnd::Torn };
                break;
            }
        }
    }
    Ok(JournalContent { head, commits, end })
}

/// The JSON of a complete line with a correct checksum.
fn line_content(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = line.strip_suffix(b"\n")?.split_at_checked(9)?;
    let sum = from_utf8(sum.strip_suffix(b" ")?).ok()?;
    let plain = sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (plain && u32::from_str_radix(sum, 16) == Ok(crc32fast::hash(json))).then_some(json)
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}
