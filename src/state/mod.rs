//! The state of one folder, kept across restarts. Its core is the base: the content that both sides last agreed on.
//!
//! [`Container`] holds the base in memory and in a few files of one directory: the container itself (JSON or
//! MessagePack), its predecessor `.bak`, and a journal of the commits since. [`FolderLock`] ensures that one agent
//! works on a folder. `format` defines the container file and `journal` the journal file. `load` says how the files fit
//! together after any crash or damage. This module does not decide when the base may advance.

mod activity;
mod container;
mod format;
mod journal;
mod load;
mod lock;
mod notes;
mod pause;
mod shadow;
mod state_dir;
mod types;

pub use activity::{ActivityEntry, ActivityJournal, JournalPosition};
pub use container::Container;
pub use load::StateView;
pub(crate) use load::peek;
pub use lock::{FolderLock, LockError};
pub use notes::{UploadNote, UploadNotes};
pub use pause::Pause;
pub(crate) use pause::read_note;
pub use shadow::{MAX_SHADOW_TEXT, ShadowReader, ShadowTexts};
pub use types::{
    BaseChange, BaseEntry, CopyLink, OpenOutcome, RemoteState, StateError, StateFormat, StateHeader, StateOptions,
};

#[cfg(test)]
mod tests;
