//! What is known of one path on each side at one moment.

use std::fmt;

use crate::digest::Md5;

/// What both sides last agreed on. A path without one was never synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Both sides held this content, durably.
    Synced(Md5),
    /// Both sides held this content, and the path has left the scope since: its absence here proves no deletion. In
    /// all other respects it is as `Synced`.
    Detached(Md5),
    /// We have obeyed this tombstone: the path is gone on both sides.
    Seen(Md5),
}

impl Base {
    /// The content that both sides agreed on; `None` for an obeyed tombstone.
    pub fn content(self) -> Option<Md5> {
        match self {
            Self::Synced(md5) | Self::Detached(md5) => Some(md5),
            Self::Seen(_) => None,
        }
    }

    /// True if the absence of the file would prove that it was deleted.
    pub fn is_synced(self) -> bool {
        matches!(self, Self::Synced(_))
    }
}

/// What the scan found at a path. A path without one is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// A readable regular file with this content.
    File(Md5),
    /// Invariant 5: unknown is not absent.
    Unknown(Unknown),
}

/// Why a path takes no part in a cycle (row 20).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unknown {
    /// The file or a folder above it could not be read; the text is the system's.
    Unreadable(String),
    /// The ignore rules leave it out. No problem: the user asked for it.
    Ignored,
    /// Larger than `max_file_size`, in bytes.
    TooLarge(u64),
    /// A symlink, socket, device or FIFO; the text says which.
    NotAFile(&'static str),
    /// A mount point, or a volume of its own. Everything below it is unknown.
    Mounted,
    /// A folder with a `.memsync/id` of its own. Everything below it is unknown.
    OtherFolder,
    /// A name that cannot be synced; the text says why.
    Name(String),
    /// Another name of the same path (letter case or Unicode form) is synced; the text says which.
    Collides(String),
    /// A file stands where a folder is wanted or the other way round; the text is the path in the way.
    Clash(String),
    /// It changed while it was read; the next scan looks again.
    Changing,
    /// Large, and new on both sides as far as was known: it is read when it is uploaded (row 4), or by the next scan.
    Unread,
    /// The first of the two scans that must miss a tracked file before it counts as deleted.
    Vanished,
    /// Its transfer takes long and goes on beside the cycles.
    InTransit,
    /// In quarantine after a failure; retried later.
    Quarantined(String),
}

impl Unknown {
    /// True if the path is out of the scope of sync, so that its base is detached (invariant 5). The other reasons last
    /// for a moment, or concern the proxy's side.
    pub fn leaves_scope(&self) -> bool {
        match self {
            Self::Unreadable(_)
            | Self::Ignored
            | Self::TooLarge(_)
            | Self::NotAFile(_)
            | Self::Mounted
            | Self::OtherFolder
            | Self::Name(_)
            | Self::Collides(_) => true,
            Self::Clash(_)
            | Self::Changing
            | Self::Unread
            | Self::Vanished
            | Self::InTransit
            | Self::Quarantined(_) => false,
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "cannot be read: {why}; give memsync's user the right to read it"),
            Self::Ignored => write!(f, "left out by the ignore rules"),
            Self::TooLarge(size) => {
                write!(f, "is {size} bytes, more than sync.max_file_size; raise it or move the file away")
            }
            Self::NotAFile(kind) => write!(f, "is a {kind}; only regular files are synced"),
            Self::Mounted => {
                write!(f, "is a mount point; what is mounted there is left out; sync it as a folder of its own")
            }
            Self::OtherFolder => write!(
                f,
                "is a memory folder of its own and left out; remove its .memsync to have it synced as a part of this one"
            ),
            Self::Name(why) => write!(f, "cannot be synced under this name: {why}; rename it"),
            Self::Collides(other) => {
                write!(
                    f,
                    "differs from {other} only in letter case or Unicode form, and that one is synced; rename this one"
                )
            }
            Self::Clash(other) => write!(f, "a file and a folder claim one name: {other} is in the way; rename one"),
            Self::Changing => write!(f, "is being written; will be looked at again"),
            Self::Unread => write!(f, "has not been read yet"),
            Self::Vanished => write!(f, "has just gone; will be looked at again"),
            Self::InTransit => write!(f, "is still being transferred; other files go on meanwhile"),
            Self::Quarantined(why) => f.write_str(why),
        }
    }
}

/// What the index's word is worth (invariant 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It may be late, or wrong: what it names was there once.
    Hints,
    /// It is what the blobs are (capability `strong-index`).
    Evidence,
}

/// What the index says of a path. A path without one is missing from it, which means nothing (invariant 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    Live(Md5),
    /// Deleted; the digest of what was deleted.
    Tombstone(Md5),
}
