//! The result of a merge, and the reasons why a person must decide.

use super::driver::MergeDriver;

/// The result of a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeOutcome {
    /// The text that both machines get.
    Clean(Vec<u8>),
    /// Keep both versions.
    Conflict(ConflictReason),
}

/// Why two versions are not merged. The reason does not depend on which version is local.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum ConflictReason {
    #[error("files of this kind are not merged")]
    NotMerged,
    #[error("a version is larger than 1 MiB")]
    TooLarge,
    #[error("a version has more than 50,000 lines")]
    TooManyLines,
    #[error("a version is not text in UTF-8")]
    NotText,
    #[error("a version contains conflict markers")]
    Markers,
    #[error("one version is empty")]
    Emptied,
    #[error("a version is not valid {0}")]
    Unparsable(MergeDriver),
    #[error("a version is nested too deeply")]
    TooDeep,
    #[error("the merged text would not be valid {0}")]
    Broken(MergeDriver),
    #[error("the key {0:?} is there twice")]
    KeyTwice(String),
    #[error("both versions changed line {0} of the common base")]
    SameLine(usize),
    #[error("both versions changed {0:?}")]
    SameKey(String),
    #[error("one version removed {0:?} and the other changed it")]
    RemovedAndChanged(String),
    #[error("both versions added {0:?} with different texts")]
    AddedTwice(String),
    #[error("both versions changed the same fenced block")]
    SameBlock,
    #[error("both versions put their lines in another order")]
    Reordered,
    #[error("the numbers of a list would not count on")]
    Numbering,
    #[error("a row would not fit the table around it")]
    TableShape,
    #[error("a line would move below another heading or item")]
    Misplaced,
    #[error("the heading {0:?} would be there twice")]
    HeadingTwice(String),
    #[error("the index would have two rows for {0:?}")]
    RowTwice(String),
    #[error("both versions moved or renamed one entry, each in its own way")]
    MovedApart,
    #[error("both versions counted on from the same number")]
    Counter,
    #[error("no common base is known, and the texts differ too much")]
    NoBase,
    #[error("the merged text would lose a line, or have one that no version has")]
    CheckFailed,
}

pub(super) type Merged<T> = Result<T, ConflictReason>;
