//! The folder: everything that touches the user's files.
//!
//! [`Folder`] knows the root and its private `.memsync/`; [`scan`] finds what is there; [`moves`] replaces, creates
//! and removes files so that nothing unseen is ever overwritten; [`history`] keeps what they displaced; [`watch`]
//! tells where to look. It decides nothing: which file to touch is the plan's business.

pub mod change;
pub mod dirty;
pub mod folder;
pub mod history;
pub mod ignore;
pub mod moves;
pub mod nesting;
pub mod scan;
mod scope;
pub mod source;
pub mod stage;
pub mod tree;
pub mod watch;

pub use change::{ChangeError, ChangeOutcome, FolderChange};
pub use folder::{Folder, RootError};
pub use moves::{FileMove, MoveOutcome, MoveReport};
pub use scope::ScanScope;
pub use tree::{LocalEntry, LocalTree, TouchedPaths};

#[cfg(test)]
mod tests;
