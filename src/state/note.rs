//! Small files next to the container that other processes read, such as the last status.

use std::fs;
use std::io;
use std::path::Path;

use crate::disk::whole::replace_note;

/// Replaces the file at `path` (mode 0600) atomically. The new content is not made durable, because it is stale after a
/// crash anyway.
///
/// # Errors
/// As `open(2)`, `write(2)` and `rename(2)`.
pub(crate) fn write_note(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_note(path, content)
}

/// The content of the file at `path`, or `None` if there is none.
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub(crate) fn read_note(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
