//! The state of one path: in the base, in the folder and on the proxy.

use std::fmt;

use crate::digest::Md5;

/// The content that both sides last agreed on. A path without a base was never synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Both sides held this content, durably.
    Synced(Md5),
    /// Both sides held this content, and the path has left the scope since. Its absence in the folder proves no
    /// deletion. In all other respects it is like `Synced`.
    Detached(Md5),
    /// We have obeyed this tombstone: the path is gone on both sides.
    Seen(Md5),
}

impl Base {
    /// The content that it is about, live or deleted.
    pub fn md5(self) -> Md5 {
        let (Self::Synced(md5) | Self::Detached(md5) | Self::Seen(md5)) = self;
        md5
    }

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

/// The state of a path in the folder, as the scan found it. A path without a state is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalState {
    /// A readable regular file with this content.
    File(Md5),
    /// Invariant 5: unknown is not absent.
    Unknown(SkipReason),
}

/// The reason why a cycle skips a path (row 20).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SkipReason {
    /// The file or a folder above it could not be read. The text is the system's error.
    Unreadable(String),
    /// An ignore rule matches. The user asked for it, so it is no problem.
    Ignored,
    /// Larger than `max_file_size`, in bytes.
    TooLarge(u64),
    /// A symlink, socket, device or FIFO, as the text says.
    NotAFile(&'static str),
    /// A mount point, or a volume of its own. Everything below it is unknown.
    Mounted,
    /// A folder with a `.memsync/id` of its own. Everything below it is unknown.
    OtherFolder,
    /// The name cannot be synced, for the reason in the text.
    Name(String),
    /// Another spelling of the path (letter case or Unicode form) is synced, namely the one in the text.
    Collides(String),
    /// Several files have this path in different Unicode forms, and it is not known which one is synced. The text names
    /// them.
    Ambiguous(String),
    /// A file is in the place of a folder, or a folder in the place of a file. The text is the path in the way.
    Clash(String),
    /// It changed while it was read. The next scan reads it again.
    Changing,
    /// A large new file. The upload reads it (row 4), or the next scan.
    Unread,
    /// One scan has missed this tracked file. A second scan must miss it before it counts as deleted.
    Vanished,
    /// A long transfer is under way beside the cycles.
    InTransit,
    /// In quarantine after a failure. A later cycle retries it.
    Quarantined(String),
}

impl SkipReason {
    /// True if the path is out of the scope of sync, so that its base is detached (invariant 5). The other reasons are
    /// temporary, or concern the proxy.
    pub fn leaves_scope(&self) -> bool {
        match self {
            Self::Unreadable(_)
            | Self::Ignored
            | Self::TooLarge(_)
            | Self::NotAFile(_)
            | Self::Mounted
            | Self::OtherFolder
            | Self::Name(_)
            | Self::Collides(_)
            | Self::Ambiguous(_) => true,
            Self::Clash(_)
            | Self::Changing
            | Self::Unread
            | Self::Vanished
            | Self::InTransit
            | Self::Quarantined(_) => false,
        }
    }
}

impl fmt::Display for SkipReason {
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
            Self::Ambiguous(names) => write!(
                f,
                "is the name of several files that differ only in Unicode form ({names}), and memsync does not know which \
                 of them it has synced; rename all but one"
            ),
            Self::Clash(other) => write!(f, "a file and a folder claim one name: {other} is in the way; rename one"),
            Self::Changing => write!(f, "is being written; will be looked at again"),
            Self::Unread => write!(f, "has not been read yet"),
            Self::Vanished => write!(f, "has just gone; will be looked at again"),
            Self::InTransit => write!(f, "is still being transferred; other files go on meanwhile"),
            Self::Quarantined(why) => f.write_str(why),
        }
    }
}

/// How far the index can be trusted (invariant 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexTrust {
    /// It may be late or wrong. An entry only shows that the content was there at some time.
    Hints,
    /// It always agrees with the blobs (capability `strong-index`).
    Evidence,
}

/// The state of a path in the index. A path without a state is missing from the index, which proves nothing (invariant
/// 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteSide {
    Live(Md5),
    /// Deleted, with the digest of the deleted content.
    Tombstone(Md5),
}
