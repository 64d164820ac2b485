//! [`Plan`]: what a cycle decided, and what each action does to the base.

use crate::digest::Md5;
use crate::path::RelPath;

use super::snapshot::Unknown;

/// What the server must hold for a write to happen (invariant 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precondition {
    /// The path must not exist. A tombstone counts as not existing on our proxy; elsewhere it may not.
    New,
    /// The path must hold exactly this content, or be the tombstone of it.
    Holds(Md5),
}

/// One action on one path. The fields say what the plan saw; apply checks it again before it writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Rows 2, 11, 21: fetch and create; never over something that stands there.
    Download { remote: Md5 },
    /// Rows 3, 10: base := seen.
    RecordSeen { tombstone: Md5 },
    /// Rows 4, 8, 16, 19. `tombstone`: what to send after a 412 to [`Precondition::New`].
    Upload { local: Md5, precondition: Precondition, tombstone: Option<Md5> },
    /// Row 4 for a file that is digested while it is uploaded, so that it is read once. Nothing else can be meant: what
    /// the digest would tell apart is a base or something on the proxy, and there is none.
    UploadUnread,
    /// Rows 5, 17: make the local file durable, then base := its content.
    Adopt { local: Md5 },
    /// Rows 6, 18, and of an index of hints 5 and 17: fetch; the server keeps the name unless it holds what we hold or
    /// what base was, or nothing.
    Conflict { local: Md5, base: Option<Md5> },
    /// Rows 7, 14: fetch; 404 → trash, the same content → heal the index (row 14) or adopt, other → replace or conflict.
    Obey { local: Md5, base: Option<Md5>, tombstone: Md5 },
    /// Row 9, and of an index of hints 10.
    DeleteRemote { base: Md5 },
    /// Row 13: fetch; the same content → heal the index, other → replace.
    Replace { base: Md5 },
    /// Row 15: fetch; heal, replace, trash or upload.
    Probe { base: Md5 },
    /// Row 20.
    Skip(Unknown),
}

impl Action {
    /// Whether a file disappears on one side, as the gates count it.
    pub fn deletes(&self) -> Option<Side> {
        match self {
            Self::DeleteRemote { .. } => Some(Side::Remote),
            Self::Obey { .. } => Some(Side::Local),
            _ => None,
        }
    }

    /// The content that disappears with the file.
    pub fn deleted(&self) -> Option<Md5> {
        match self {
            Self::DeleteRemote { base: md5 } | Self::Obey { local: md5, .. } => Some(*md5),
            _ => None,
        }
    }
}

/// The side on which an action removes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    Local,
    Remote,
}

/// One planned action and the row of the table that asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub path: RelPath,
    /// 1 to 22.
    pub row: u8,
    pub action: Action,
}

/// The steps of one cycle in the order of their paths. Rows 1, 12 and 22 (nothing) are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
}
