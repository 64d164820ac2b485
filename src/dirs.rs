//! The paths of everything that memsync keeps: config, state, logs, the proxy's data, the control socket.
//!
//! This file decides names. It creates nothing but the directory of a fallback socket.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use directories::ProjectDirs;

use crate::disk::whole::replace_private;

/// Longest path of a unix socket, without the final NUL.
const MAX_SOCKET_BYTES: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The suffix of a state container.
pub(crate) const CONTAINER_SUFFIX: &str = ".json";

/// Longest readable part of the names of a folder's state files.
const MAX_SLUG_BYTES: usize = 24;

/// The directories and files of one memsync installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    pub(crate) config_file: PathBuf,
    /// State containers, locks, status files, records.
    pub(crate) state: PathBuf,
    pub(crate) logs: PathBuf,
    /// The embedded proxy's data.
    pub(crate) proxy: PathBuf,
    /// The usual socket. [`Dirs::socket`] gives the real one.
    socket: PathBuf,
    /// The temporary directory, for a socket whose usual path is too long.
    tmp: PathBuf,
}

/// The state files of one folder, in [`Dirs::state`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FolderFiles {
    /// `<last name of the folder>-<8 hex digits of its path's hash>`, from the path at the first sync.
    pub(crate) name: String,
    pub(crate) container: PathBuf,
    pub(crate) lock: PathBuf,
    pub(crate) status: PathBuf,
    /// The directory of the activity journal.
    pub(crate) activity: PathBuf,
}

impl FolderFiles {
    /// The container's name in the state directory.
    pub(crate) fn container_name(&self) -> String {
        format!("{}{CONTAINER_SUFFIX}", self.name)
    }
}

impl Dirs {
    /// Everything below one directory (`MEMSYNC_HOME`). `tmp` is the temporary directory.
    pub fn below(home: &Path, tmp: &Path) -> Self {
        Self {
            config_file: home.join("config.toml"),
            state: home.join("state"),
            logs: home.join("logs"),
            proxy: home.join("proxy"),
            socket: home.join("memsync.sock"),
            tmp: tmp.to_owned(),
        }
    }

    /// The usual directories of the system: XDG on Linux, `~/Library` on macOS. `tmp` is the temporary directory.
    pub(crate) fn standard(project: &ProjectDirs, tmp: &Path) -> Self {
        let state = project.state_dir().unwrap_or(project.data_local_dir()).to_owned();
        let logs = match state.ancestors().nth(2) {
            Some(library) if cfg!(target_os = "macos") => library.join("Logs/memsync"),
            _ => state.join("logs"),
        };
        // `ProjectDirs` appends the project's name. The socket needs no directory of its own.
        let runtime = project.runtime_dir().and_then(Path::parent).unwrap_or(&state);
        Self {
            config_file: project.config_dir().join("config.toml"),
            socket: runtime.join("memsync.sock"),
            proxy: state.join("proxy"),
            logs,
            state,
            tmp: tmp.to_owned(),
        }
    }

    /// The files named after an absolute path. A folder that was moved may have its state under another name.
    pub(crate) fn folder(&self, path: &Path) -> FolderFiles {
        let hash = blake3::hash(path.as_os_str().as_bytes()).to_hex();
        let last = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let mut name: String =
            last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(MAX_SLUG_BYTES).collect();
        name = format!("{}-{}", name.trim_matches('-'), &hash[..8]);
        self.files_named(name)
    }

    /// The files of a name that [`Dirs::folder`] made.
    pub(crate) fn files_named(&self, name: String) -> FolderFiles {
        FolderFiles {
            container: self.state.join(format!("{name}{CONTAINER_SUFFIX}")),
            lock: self.state.join(format!("{name}.lock")),
            status: self.state.join(format!("{name}.status.json")),
            activity: self.state.join(format!("{name}.activity")),
            name,
        }
    }

    /// The file with the path of the socket, if the usual path is too long.
    fn socket_record(&self) -> PathBuf {
        self.state.join("socket")
    }

    fn socket_fits(&self) -> bool {
        self.socket.as_os_str().len() <= MAX_SOCKET_BYTES
    }

    /// The agent's socket, for clients.
    ///
    /// # Errors
    /// `NotFound` if the usual path is too long and no agent has recorded another.
    pub(crate) fn socket(&self) -> io::Result<PathBuf> {
        if self.socket_fits() {
            return Ok(self.socket.clone());
        }
        let path = PathBuf::from(std::fs::read_to_string(self.socket_record())?);
        if path.is_absolute() && path.parent().is_some_and(is_private_dir) {
            Ok(path)
        } else {
            // With write access to the directory, another user could answer instead of the agent.
            let why = format!("{} does not name a socket that only you can reach", self.socket_record().display());
            Err(io::Error::new(io::ErrorKind::NotFound, why))
        }
    }

    /// The socket for the agent to bind. If the usual path is too long, this makes a private directory in the temporary
    /// directory and records it for [`Dirs::socket`]. [`Dirs::state`] must exist.
    pub(crate) fn socket_to_bind(&self) -> io::Result<PathBuf> {
        match self.socket() {
            Ok(path) => Ok(path),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                let dir = self.tmp.join(format!("memsync-{:016x}", fastrand::u64(..)));
                DirBuilder::new().mode(0o700).create(&dir)?;
                let path = dir.join("sock");
                replace_private(&self.socket_record(), path.as_os_str().as_bytes())?;
                Ok(path)
            }
            Err(e) => Err(e),
        }
    }
}

/// True if `dir` is a directory that only this user can access, and no symlink.
fn is_private_dir(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir).is_ok_and(|m| {
        m.is_dir() && m.uid() == rustix::process::getuid().as_raw() && m.permissions().mode() & 0o077 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_holds_everything() {
        let dirs = Dirs::below(Path::new("/h"), Path::new("/tmp"));
        assert_eq!(dirs.config_file, Path::new("/h/config.toml"));
        assert_eq!(
            (&*dirs.state, &*dirs.logs, &*dirs.proxy),
            (Path::new("/h/state"), Path::new("/h/logs"), Path::new("/h/proxy"))
        );
        assert_eq!(dirs.socket().unwrap(), Path::new("/h/memsync.sock"));
    }

    #[test]
    fn folder_names_differ_between_paths() {
        let dirs = Dirs::below(Path::new("/h"), Path::new("/tmp"));
        let a = dirs.folder(Path::new("/home/ana/My Memory"));
        assert!(a.name.starts_with("my-memory-") && a.name.len() == "my-memory-".len() + 8, "{}", a.name);
        assert_eq!(a, dirs.folder(Path::new("/home/ana/My Memory")));
        assert_ne!(a.name, dirs.folder(Path::new("/home/bo/My Memory")).name);
        assert_eq!(a.container, Path::new("/h/state").join(format!("{}.json", a.name)));
        assert!(dirs.folder(Path::new("/x/ÜÜ")).name.is_ascii());
        assert!(dirs.folder(&Path::new("/x").join("y".repeat(255))).name.len() <= MAX_SLUG_BYTES + 9);
    }

    #[test]
    fn long_socket_path_falls_back_to_a_record() {
        let tmp = tempfile::tempdir().unwrap();
        let home = tmp.path().join("x".repeat(MAX_SOCKET_BYTES));
        let dirs = Dirs::below(&home, tmp.path());
        assert_eq!(dirs.socket().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir_all(&dirs.state).unwrap();
        let bound = dirs.socket_to_bind().unwrap();
        assert!(bound.as_os_str().len() <= MAX_SOCKET_BYTES);
        std::os::unix::net::UnixListener::bind(&bound).unwrap();
        assert_eq!(dirs.socket().unwrap(), bound);
        assert_eq!(dirs.socket_to_bind().unwrap(), bound, "a second start uses the recorded socket");

        // A directory that others may write to is not trusted.
        std::fs::set_permissions(bound.parent().unwrap(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(dirs.socket().is_err());
        assert_ne!(dirs.socket_to_bind().unwrap(), bound);
    }

    #[test]
    fn socket_path_of_exactly_the_limit_fits() {
        let name = "/memsync.sock".len();
        let longest = format!("/{}", "x".repeat(MAX_SOCKET_BYTES - name - 1));
        assert_eq!(
            Dirs::below(Path::new(&longest), Path::new("/tmp")).socket().unwrap().as_os_str().len(),
            MAX_SOCKET_BYTES
        );
        assert!(Dirs::below(Path::new(&format!("{longest}x")), Path::new("/tmp")).socket().is_err());
    }
}
