//! [`FolderLock`]: one agent per folder. It works on a real path, and goes with the process that holds it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Held for as long as the value lives; the system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// Why the lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// `pid`: of the process that holds it, where it has said so.
    #[error("another memsync works on this folder{}", .pid.map(|p| format!(" (process {p})")).unwrap_or_default())]
    Held { pid: Option<u32> },
    #[error("cannot lock {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl FolderLock {
    /// Takes the lock file at `path`, which is created (0600) and left in place, without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] when another process, or another `Lock` of this one, has it.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = Vec::new();
                file.take(32).read_to_end(&mut text).map_err(failed)?;
                return Err(LockError::Held { pid: String::from_utf8_lossy(&text).trim().parse().ok() });
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        // The file is not removed on release: a third process could hold the removed one while a fourth makes
        // and locks a new one.
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_at_a_time_and_the_holder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.lock");
        std::fs::write(&path, "4294967295 left by a process that died").unwrap();
        let lock = FolderLock::acquire(&path).unwrap();
        match FolderLock::acquire(&path) {
            Err(e @ LockError::Held { pid }) => {
                assert_eq!(pid, Some(std::process::id()));
                assert!(e.to_string().contains(&std::process::id().to_string()));
            }
            other => panic!("{other:?}"),
        }
        drop(lock);
        FolderLock::acquire(&path).unwrap();
    }

    #[test]
    fn the_file_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.lock");
        let _lock = FolderLock::acquire(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no/such/notes.lock");
        assert!(FolderLock::acquire(&path).unwrap_err().to_string().contains("no/such"));
    }
}
