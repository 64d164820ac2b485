//! [`Disk`]: the filesystem operations that the folder and the container need.
//!
//! [`real::RealDisk`] is the implementation. Tests use a simulated disk that loses unsynced data. Paths are validated,
//! `/`-separated and relative to the root of the disk; `""` is the root. No operation follows a symlink in any component or
//! leaves the root. A path across a mount point fails with `CrossesDevices`, except that `list` and `stat` show the mount
//! point itself.

use std::ffi::OsString;
use std::io;

use rustix::io::Errno;

pub mod boot;
pub mod real;
pub mod whole;

/// Bytes per read.
const READ_BYTES: usize = 256 * 1024;

/// The kind of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    File,
    Dir,
    Symlink,
    /// A socket, device or FIFO; the text is the name of the kind for people.
    Other(&'static str),
}

/// The metadata of a path, as `lstat` returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMeta {
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Bytes allocated on the disk.
    pub allocated: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub inode: u64,
    /// Number of hard links.
    pub links: u64,
    /// The filesystem.
    pub device: u64,
    /// A mount point of a filesystem, a folder or a single file. `false` if the system does not say.
    pub is_mount: bool,
    /// Permission bits.
    pub mode: u32,
}

/// An open regular file.
pub trait DiskFile: Send {
    /// Reads at the file's position. Returns 0 at the end.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the content durable, but not the name: `fsync`, on macOS `F_FULLFSYNC`.
    fn sync(&self) -> io::Result<()>;
    fn meta(&self) -> io::Result<FileMeta>;
    fn set_mode(&self, mode: u32) -> io::Result<()>;
    /// True if a program has this file open for writing. Call it only on a file opened for reading. `false` if the system
    /// does not say.
    fn is_open_for_writing(&self) -> bool {
        false
    }
}

/// The content of an open file, from its position on. `None` if it is longer than `max_bytes`.
///
/// # Errors
/// As `read(2)`.
pub(crate) fn read_file_up_to<F: DiskFile>(file: &mut F, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let (mut content, mut buf) = (Vec::new(), vec![0; READ_BYTES.min(max_bytes.saturating_add(1))]);
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(Some(content)),
            n => content.extend_from_slice(&buf[..n]),
        }
        if content.len() > max_bytes {
            return Ok(None);
        }
    }
}

/// Filesystem operations below one root. Their errors are those of the system calls, except where stated.
pub trait Disk: Send + Sync + 'static {
    type File: DiskFile;

    /// The names in a folder with their metadata, unsorted. Skips a name that is removed meanwhile.
    ///
    /// # Errors
    /// As `opendir(3)`; `NotFound` if the folder is gone.
    fn list(&self, dir: &str) -> io::Result<Vec<(OsString, FileMeta)>>;
    fn stat(&self, path: &str) -> io::Result<FileMeta>;
    /// Opens a regular file for reading. Never blocks on a FIFO.
    ///
    /// # Errors
    /// As `open(2)`; `InvalidInput` if it is no regular file.
    fn open(&self, path: &str) -> io::Result<Self::File>;
    /// Creates a new file for writing and reading, with mode 0666 less the umask.
    ///
    /// # Errors
    /// As `open(2)`; `AlreadyExists`.
    fn create(&self, path: &str) -> io::Result<Self::File>;
    /// Opens a file for appending. Creates it (0600) if it is missing.
    fn append(&self, path: &str) -> io::Result<Self::File>;
    fn mkdir(&self, dir: &str) -> io::Result<()>;
    fn rmdir(&self, dir: &str) -> io::Result<()>;
    /// Removes a file's name.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Renames a path, and replaces a file at `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Renames a path to a free one.
    ///
    /// # Errors
    /// `AlreadyExists`; otherwise as `rename(2)`.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;
    /// Exchanges two names in one step.
    ///
    /// # Errors
    /// As `renameat2(2)` with `RENAME_EXCHANGE`; `Unsupported` if the filesystem cannot do it.
    fn exchange(&self, a: &str, b: &str) -> io::Result<()>;
    /// Makes the names in one folder durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Makes the whole filesystem of the root durable: `syncfs`.
    fn sync_all(&self) -> io::Result<()>;
    /// Identifies the boot of the machine. Unsynced data survives until the next boot. `None` if the system does not say.
    fn boot_id(&self) -> Option<String> {
        None
    }
}

/// The metadata that proves, if unchanged, that a file still has its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// Bytes.
    pub size: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub inode: u64,
}

impl From<&FileMeta> for FileStat {
    fn from(m: &FileMeta) -> Self {
        Self { size: m.size, mtime_ns: m.mtime_ns, ctime_ns: m.ctime_ns, inode: m.inode }
    }
}

/// True if the filesystem or the system lacks an operation.
fn is_unsupported(e: Errno) -> bool {
    // EOPNOTSUPP and ENOTSUP are one number on Linux and two on macOS.
    e == Errno::INVAL || e == Errno::NOSYS || e == Errno::NOTSUP || e == Errno::OPNOTSUPP
}
