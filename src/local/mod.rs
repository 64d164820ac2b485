//! The folder: everything that touches the user's files.
