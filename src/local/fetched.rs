//! [`FetchedFile`]: content that a command fetched, on its way into the folder.
//!
//! The stage belongs to the process that holds the folder, which is often the agent. So a command writes fetched content
//! beside the stage, and asks for a copy of it with [`FolderChange::Put`](super::FolderChange::Put).

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::Folder;
use crate::disk::{Disk, DiskFile};
use crate::failpoint;

const FETCHED: &str = ".memsync/fetched";

/// A private file with fetched content. Drop removes it.
pub(crate) struct FetchedFile<D: Disk> {
    folder: Folder<D>,
    path: String,
}

impl<D: Disk> Folder<D> {
    /// Writes `content` to a private file. Removes the private files of commands that were killed.
    ///
    /// # Errors
    /// As the system calls.
    pub(crate) fn keep_fetched(&self, content: &[u8]) -> io::Result<FetchedFile<D>> {
        self.ensure_private()?;
        self.ensure_dir(FETCHED)?;
        for (name, _) in self.disk.list(FETCHED)? {
            if name.to_str().is_some_and(is_left_over) {
                match self.disk.unlink(&format!("{FETCHED}/{}", name.display())) {
                    // Another command was faster.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
            }
        }
        let path = format!("{FETCHED}/{}-{:016x}", std::process::id(), fastrand::u64(..));
        let fetched = FetchedFile { folder: self.clone(), path };
        let mut file = self.disk.create(&fetched.path)?;
        file.write_all(content)?;
        failpoint::pass("fetched.written");
        Ok(fetched)
    }
}

impl<D: Disk> FetchedFile<D> {
    /// Its path below the root.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl<D: Disk> Drop for FetchedFile<D> {
    fn drop(&mut self) {
        self.folder.discard_slot(&self.path);
    }
}

/// True for a file of a process that has ended.
fn is_left_over(name: &str) -> bool {
    let pid = name.split_once('-').and_then(|(pid, _)| pid.parse::<i32>().ok());
    pid.and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::tests::folder;

    #[test]
    fn fetched_file_lives_as_long_as_its_process() {
        let (disk, folder) = folder();
        let ended = {
            let mut child = std::process::Command::new("true").spawn().unwrap();
            child.wait().unwrap();
            format!("{FETCHED}/{}-0", child.id())
        };
        let first = folder.keep_fetched(b"first").unwrap();
        for left in [&ended, ".memsync/fetched/1-0"] {
            disk.user_write(left, "left").unwrap();
        }
        let second = folder.keep_fetched(b"second").unwrap();
        let names: Vec<String> = disk.user_tree(FETCHED).into_keys().collect();
        let mut expected = [first.path(), second.path(), ".memsync/fetched/1-0"].map(str::to_owned);
        expected.sort();
        assert_eq!(names, expected, "only files of ended processes are removed");
        drop((first, second));
        assert_eq!(disk.user_tree(FETCHED).len(), 1);
    }
}
