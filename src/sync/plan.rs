//! [`Plan`]: the actions that a cycle decided on, and their effect on the base.

use crate::digest::Md5;
use crate::path::RelPath;

use super::snapshot::SkipReason;

/// The content that the proxy must hold for a write to happen (invariant 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precondition {
    /// The path must not exist. On our proxy a tombstone counts as absent. Other proxies may differ.
    New,
    /// The path must hold this content, or be its tombstone.
    Holds(Md5),
}

/// One action on one path. The fields hold the state that the plan is based on. Apply checks it again before each
/// write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Rows 2, 11, 21: fetch and create. Never replaces anything.
    Download { remote: Md5 },
    /// Rows 3, 10: base := seen.
    RecordSeen { tombstone: Md5 },
    /// Rows 4, 8, 16, 19. `tombstone`: the content to expect after a 412 to [`Precondition::New`].
    Upload { local: Md5, precondition: Precondition, tombstone: Option<Md5> },
    /// Row 4 for a file without a known digest. The upload computes it, so that the file is read once. No other row can
    /// apply, because the path has no base and no entry in the index.
    UploadUnread,
    /// Rows 5, 17: make the local file durable, then base := its content.
    Adopt { local: Md5 },
    /// Rows 6, 18, and with an index of hints 5 and 17: fetch. The proxy's content keeps the name, unless it equals the
    /// local content or base, or is absent.
    Conflict { local: Md5, base: Option<Md5> },
    /// Rows 7, 14: fetch; 404 → trash, the same content → heal the index (row 14) or adopt, other → replace or
    /// conflict.
    Trash { local: Md5, base: Option<Md5>, tombstone: Md5 },
    /// Row 9, and with an index of hints row 10.
    DeleteRemote { base: Md5 },
    /// Row 13: fetch; the same content → heal the index, other → replace.
    Replace { base: Md5 },
    /// Row 15: fetch; heal, replace, trash or upload.
    Probe { base: Md5 },
    /// Row 20.
    Skip(SkipReason),
}

impl Action {
    /// The side on which a file disappears, as the gates count it.
    pub fn deletes(&self) -> Option<Side> {
        match self {
            Self::DeleteRemote { .. } => Some(Side::Remote),
            Self::Trash { .. } => Some(Side::Local),
            _ => None,
        }
    }

    /// The content of the file that disappears.
    pub fn deleted(&self) -> Option<Md5> {
        match self {
            Self::DeleteRemote { base: md5 } | Self::Trash { local: md5, .. } => Some(*md5),
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

/// One planned action, with the row of the table that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanStep {
    pub path: RelPath,
    /// 1 to 22.
    pub row: u8,
    pub action: Action,
}

/// The steps of one cycle in the order of their paths. Rows 1, 12 and 22 make no step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<PlanStep>,
}
