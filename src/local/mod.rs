//! The folder: everything that touches the user's files.

pub mod dirty;
pub mod ignore;
pub mod watch;
