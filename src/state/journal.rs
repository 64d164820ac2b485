//! What a journal file looks like. Pure; `container` writes it, `load` reads it.
//!
//! A line for each commit, so that a commit is there whole or not at all: the CRC-32 of the rest of the line
//! in 8 hex digits, a space, JSON. The first line is the [`Head`], which names the container that the journal
//! extends by its fingerprint. Steps are absolute (set, forget), so replaying one twice does no harm.

use std::str::from_utf8;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::path::RelPath;

use super::format::{Entries, Fingerprint, WireEntry};
use super::{BaseChange, StateHeader, UploadNotes, VERSION, WireNotes};

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub version: u64,
    /// The container that the steps go on from.
    pub extends: Fingerprint,
    /// What stood at `.bak` when the journal was begun.
    pub backup: Option<Backup>,
}

/// What is known of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    pub container: Fingerprint,
    /// So many commits of the journal before this one lead from the backup to the container that this journal
    /// extends; `None` when they do not lead there.
    pub commits: Option<usize>,
}

impl Backup {
    /// One from which no journal is known to lead on.
    pub fn apart(container: Fingerprint) -> Self {
        Self { container, commits: None }
    }
}

impl Head {
    pub fn new(extends: Fingerprint, backup: Option<Backup>) -> Self {
        Self { version: VERSION.into(), extends, backup }
    }
}

/// One step of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Set(WireEntry),
    Forget(RelPath),
    Header(Box<HeaderStep>),
    /// Forgets every entry and upload.
    Clear,
}

/// A header, and the uploads that were noted with it. They come with a header because older builds pass over fields that
/// they do not know, and take a journal with an unknown step for damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderStep {
    #[serde(flatten)]
    pub header: StateHeader,
    /// Added to those noted before. A later step for the same path settles them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploads: Option<WireNotes>,
}

impl From<&StateHeader> for Step {
    fn from(header: &StateHeader) -> Self {
        Self::Header(Box::new(HeaderStep { header: header.clone(), uploads: None }))
    }
}

impl From<&BaseChange> for Step {
    fn from(change: &BaseChange) -> Self {
        match change {
            BaseChange::Set(path, entry) => Self::Set(WireEntry::new(path, entry)),
            BaseChange::Forget(path) => Self::Forget(path.clone()),
        }
    }
}

impl Step {
    /// Carries the step out. Gives the header that it puts in place of the one before.
    pub fn apply(self, entries: &mut Entries, noted: &mut UploadNotes) -> Option<StateHeader> {
        match self {
            Self::Set(wire) => {
                let (path, entry) = wire.split();
                noted.settle(&path);
                entries.insert(path, entry);
            }
            Self::Forget(path) => {
                noted.settle(&path);
                entries.remove(&path);
            }
            Self::Header(step) => {
                let HeaderStep { header, uploads } = *step;
                uploads.into_iter().for_each(|wire| noted.read(wire));
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

/// How a journal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Whole,
    /// The last line has no end: a write that was cut off, and never acknowledged.
    Torn,
    /// A line that was written whole is not what was written; the commits are those before it.
    Damaged,
}

/// A journal whose first line could be read.
#[derive(Debug)]
pub struct Journal {
    pub head: Head,
    pub commits: Vec<Vec<Step>>,
    pub end: End,
}

/// Why there is no journal in the bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum NoJournal {
    Damaged,
    /// The version it says it has.
    Future(u64),
}

/// Appends one line.
///
/// # Errors
/// None that a head or step could cause; the type is the serialiser's.
pub fn encode_line(out: &mut Vec<u8>, content: &impl Serialize) -> serde_json::Result<()> {
    let json = serde_json::to_vec(content)?;
    out.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json)).as_bytes());
    out.extend_from_slice(&json);
    out.push(b'\n');
    Ok(())
}

pub fn decode(bytes: &[u8]) -> Result<Journal, NoJournal> {
    let mut lines = bytes.split_inclusive(|&b| b == b'\n');
    let head: Head = lines.next().and_then(line_content).and_then(parse).ok_or(NoJournal::Damaged)?;
    if head.version > u64::from(VERSION) {
        return Err(NoJournal::Future(head.version));
    }
    let mut commits = Vec::new();
    let mut end = End::Whole;
    for line in lines {
        match line_content(line).and_then(parse) {
            Some(steps) => commits.push(steps),
            None => {
                end = if line.ends_with(b"\n") { End::Damaged } else { End::Torn };
                break;
            }
        }
    }
    Ok(Journal { head, commits, end })
}

/// The JSON of a line that is there to its end and is what was written.
fn line_content(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = line.strip_suffix(b"\n")?.split_at_checked(9)?;
    let sum = from_utf8(sum.strip_suffix(b" ")?).ok()?;
    let plain = sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (plain && u32::from_str_radix(sum, 16) == Ok(crc32fast::hash(json))).then_some(json)
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}
