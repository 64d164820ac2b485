//! [`Disk`]: the few filesystem operations that the folder and the container are built on.
//!
//! [`real::RealDisk`] is the implementation. Tests use a simulated disk, which loses unsynced data. Paths
//! are relative to the root the disk was opened on, `/`-separated, `""` for the root itself, and already
//! validated. No operation follows a symlink, in any component, and none leaves the root. A path that crosses a mount
//! point fails with `CrossesDevices`, except that `list` and `stat` show the mount point itself.

use std::ffi::OsString;
use std::io;

pub mod boot;
pub mod real;
pub mod whole;

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    File,
    Dir,
    Symlink,
    /// Sockets, devices, FIFOs: the name of the kind for people.
    Other(&'static str),
}

/// What `lstat` says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMeta {
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Bytes that it takes on the disk.
    pub allocated: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub inode: u64,
    /// Names that it has.
    pub links: u64,
    /// The filesystem it is on.
    pub device: u64,
    /// Something is mounted here: a filesystem, a folder or a single file. `false` where the system does not say.
    pub is_mount: bool,
    /// Permission bits.
    pub mode: u32,
}

/// An open regular file.
pub trait DiskFile: Send {
    /// Reads at the file's position; 0 at the end.
    ///
    /// # Errors
    /// As `read(2)`.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    /// # Errors
    /// As `write(2)`.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the content (not the name) durable: `fsync`, on macOS `F_FULLFSYNC`.
    ///
    /// # Errors
    /// As `fsync(2)`.
    fn sync(&self) -> io::Result<()>;
    /// # Errors
    /// As `fstat(2)`.
    fn meta(&self) -> io::Result<FileMeta>;
    /// # Errors
    /// As `fchmod(2)`.
    fn set_mode(&self, mode: u32) -> io::Result<()>;
    /// Whether some program has the file, which is open here for reading, open for writing. `false` where the system
    /// does not tell.
    fn is_open_for_writing(&self) -> bool {
        false
    }
}

/// Filesystem operations below one root.
pub trait Disk: Send + Sync + 'static {
    type File: DiskFile;

    /// The names in a folder with what each is, in no order. A name that goes while it is listed is left out.
    ///
    /// # Errors
    /// As `opendir(3)`; `NotFound` when the folder is gone.
    fn list(&self, dir: &str) -> io::Result<Vec<(OsString, FileMeta)>>;
    /// # Errors
    /// As `lstat(2)`.
    fn stat(&self, path: &str) -> io::Result<FileMeta>;
    /// Opens a regular file for reading. Never blocks on a FIFO.
    ///
    /// # Errors
    /// As `open(2)`; `InvalidInput` when it is no regular file.
    fn open(&self, path: &str) -> io::Result<Self::File>;
    /// Creates a file that must not exist, for writing and reading, mode 0666 less the umask.
    ///
    /// # Errors
    /// As `open(2)`; `AlreadyExists`.
    fn create(&self, path: &str) -> io::Result<Self::File>;
    /// Opens a file for appending, creating it (0600) where it is missing.
    ///
    /// # Errors
    /// As `open(2)`.
    fn append(&self, path: &str) -> io::Result<Self::File>;
    /// # Errors
    /// As `mkdir(2)`.
    fn mkdir(&self, dir: &str) -> io::Result<()>;
    /// # Errors
    /// As `rmdir(2)`.
    fn rmdir(&self, dir: &str) -> io::Result<()>;
    /// Removes a file's name.
    ///
    /// # Errors
    /// As `unlink(2)`.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Renames, replacing what stands at `to`.
    ///
    /// # Errors
    /// As `rename(2)`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Renames; nothing may stand at `to`.
    ///
    /// # Errors
    /// `AlreadyExists`; otherwise as `rename(2)`.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;
    /// Exchanges two names in one step.
    ///
    /// # Errors
    /// As `renameat2(2)` with `RENAME_EXCHANGE`; `Unsupported` where the filesystem cannot.
    fn exchange(&self, a: &str, b: &str) -> io::Result<()>;
    /// Makes the names in one folder durable.
    ///
    /// # Errors
    /// As `fsync(2)`.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Makes everything on the root's filesystem durable: `syncfs`.
    ///
    /// # Errors
    /// As `syncfs(2)`.
    fn sync_all(&self) -> io::Result<()>;
    /// Names this start of the machine: with the same one nothing was lost that had not been made durable. `None` where
    /// nothing tells.
    fn boot_id(&self) -> Option<String> {
        None
    }
}

/// What must be unchanged for a file's digest to be trusted without reading it again.
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
