//! Small files beside the container that other processes read, such as the last status.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces the file at `path` (mode 0600): a reader sees the old content or the new, never half of it. It is not
/// made durable; what it says is stale after a crash anyway.
///
/// # Errors
/// As creating, writing or renaming a file does.
pub fn write_note(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension(format!("tmp.{}", std::process::id()));
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    fs::rename(&fresh, path)
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
