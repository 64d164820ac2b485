//! Everything that touches the user's files.
//!
//! [`Folder`] is the root with its private `.memsync/`. [`watch`] says where something may have changed, and [`scan`] finds
//! the content of the folder. [`moves`] creates, replaces and removes files, and never overwrites an edit. [`history`] keeps
//! the files that the moves displaced. This module decides nothing: the plan says which file to change.

pub mod change;
pub mod conflicts;
pub mod dirty;
mod edit;
pub(crate) mod fetched;
mod folder;
pub mod history;
pub mod identity;
pub mod ignore;
pub mod moves;
pub mod nesting;
pub mod pattern;
pub mod scan;
mod scope;
pub mod source;
pub mod stage;
pub mod stat_trust;
mod touched;
mod tree;
mod tree_update;
pub mod watch;

pub use change::{ChangeError, ChangeOutcome, EditAction, EditCondition, EditOutcome, FolderChange};
pub use folder::Folder;
pub use identity::RootError;
pub use moves::{FileMove, MoveOutcome, MoveReport};
pub use scope::ScanScope;
pub use touched::TouchedPaths;
pub use tree::{LocalEntry, LocalTree};

#[cfg(test)]
mod tests;
