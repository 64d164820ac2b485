//! Small files beside the container that other processes read, such as the last status.

use std::fs;
use std::io;
use std::path::Path;

use crate::disk::whole::replace_note;

/// Replaces the file at `path` (mode 0600): a reader sees the old content or the new, never half of it. It is not
/// made durable, because what it says is stale after a crash.
///
/// # Errors
/// As creating, writing or renaming a file does.
pub fn write_note(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_note(path, content)
}

/// The content of the file at `path`, `None` where there is none.
///
/// # Errors
/// As reading a file does.
pub fn read_note(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
