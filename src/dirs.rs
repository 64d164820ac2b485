//! Where things live: config, state containers, the embedded proxy's data, logs, the control socket.
//!
//! It decides names; except for the fall-back socket's folder it creates nothing. The places the system
//! suggests and the environment are passed in.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use directories::ProjectDirs;

use crate::disk::whole::replace_private;

/// Longest path a unix socket can have, in bytes without the closing NUL.
#[cfg(target_os = "macos")]
const MAX_SOCKET_PATH: usize = 103;
/// Longest path a unix socket can have, in bytes without the closing NUL.
#[cfg(not(target_os = "macos"))]
const MAX_SOCKET_PATH: usize = 107;

/// Ends the name of a state container.
pub const CONTAINER: &str = ".json";

/// Longest readable part of a folder's file names, in bytes.
const MAX_SLUG: usize = 24;

/// The places of one memsync installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    pub config_file: PathBuf,
    /// State containers, locks, status files.
    pub state: PathBuf,
    pub logs: PathBuf,
    /// The embedded proxy's data.
    pub proxy: PathBuf,
    /// Where the socket should be; see [`Dirs::socket`] for where it is.
    socket: PathBuf,
    /// For a socket whose path would be too long.
    tmp: PathBuf,
}

/// The names of what is kept of one folder, below [`Dirs::state`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderFiles {
    /// `<last name of the folder>-<8 hex digits of its path's hash>`, by the path at which it was synced first.
    pub name: String,
    pub container: PathBuf,
    pub lock: PathBuf,
    pub status: PathBuf,
}

impl Dirs {
    /// Everything below one folder (`MEMSYNC_HOME`). `tmp`: the temporary directory.
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

    /// Where the system keeps such things: XDG on Linux, `~/Library` on macOS. `tmp`: the temporary directory.
    pub fn standard(project: &ProjectDirs, tmp: &Path) -> Self {
        let state = project.state_dir().unwrap_or(project.data_local_dir()).to_owned();
        let logs = match state.ancestors().nth(2) {
            Some(library) if cfg!(target_os = "macos") => library.join("Logs/memsync"),
            _ => state.join("logs"),
        };
        // The crate appends the project's name; one socket needs no folder of its own.
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

    /// The files that a path (absolute) names. A folder that has an identity may have its state under another name.
    pub fn folder(&self, path: &Path) -> FolderFiles {
        let hash = blake3::hash(path.as_os_str().as_bytes()).to_hex();
        let last = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let mut name: String =
            last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(MAX_SLUG).collect();
        name = format!("{}-{}", name.trim_matches('-'), &hash[..8]);
        self.files_named(name)
    }

    /// The files that share a name, as [`Dirs::folder`] makes one.
    pub fn files_named(&self, name: String) -> FolderFiles {
        FolderFiles {
            container: self.state.join(format!("{name}{CONTAINER}")),
            lock: self.state.join(format!("{name}.lock")),
            status: self.state.join(format!("{name}.status.json")),
            name,
        }
    }

    /// The file that says where the socket is, when its path would be too long for the system.
    fn socket_record(&self) -> PathBuf {
        self.state.join("socket")
    }

    fn socket_fits(&self) -> bool {
        self.socket.as_os_str().len() <= MAX_SOCKET_PATH
    }

    /// Where a client finds the agent's socket.
    ///
    /// # Errors
    /// `NotFound` when the usual path is too long and no agent has recorded another.
    pub fn socket(&self) -> io::Result<PathBuf> {
        if self.socket_fits() {
            return Ok(self.socket.clone());
        }
        let path = PathBuf::from(std::fs::read_to_string(self.socket_record())?);
        if path.is_absolute() && path.parent().is_some_and(is_ours_alone) {
            Ok(path)
        } else {
            // Whoever may write in the folder could answer in the agent's place.
            let why = format!("{} does not name a socket that only you can reach", self.socket_record().display());
            Err(io::Error::new(io::ErrorKind::NotFound, why))
        }
    }

    /// Where the agent binds its socket. Where the usual path is too long, a private folder is made in the
    /// temporary directory and recorded, so that [`Dirs::socket`] finds it; [`Dirs::state`] must exist.
    ///
    /// # Errors
    /// As `mkdir(2)` and `write(2)`.
    pub fn socket_to_bind(&self) -> io::Result<PathBuf> {
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

/// Whether `dir` is a real folder that belongs to this user and lets nobody else in.
fn is_ours_alone(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir).is_ok_and(|m| {
        m.is_dir() && m.uid() == rustix::process::getuid().as_raw() && m.permissions().mode() & 0o077 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memsync_home_holds_everything() {
        let dirs = Dirs::below(Path::new("/h"), Path::new("/tmp"));
        assert_eq!(dirs.config_file, Path::new("/h/config.toml"));
        assert_eq!(
            (&*dirs.state, &*dirs.logs, &*dirs.proxy),
            (Path::new("/h/state"), Path::new("/h/logs"), Path::new("/h/proxy"))
        );
        assert_eq!(dirs.socket().unwrap(), Path::new("/h/memsync.sock"));
    }

    #[test]
    fn the_names_of_a_folder_tell_paths_apart() {
        let dirs = Dirs::below(Path::new("/h"), Path::new("/tmp"));
        let a = dirs.folder(Path::new("/home/ana/My Memory"));
        assert!(a.name.starts_with("my-memory-") && a.name.len() == "my-memory-".len() + 8, "{}", a.name);
        assert_eq!(a, dirs.folder(Path::new("/home/ana/My Memory")));
        assert_ne!(a.name, dirs.folder(Path::new("/home/bo/My Memory")).name);
        assert_eq!(a.container, Path::new("/h/state").join(format!("{}.json", a.name)));
        assert!(dirs.folder(Path::new("/x/ÜÜ")).name.is_ascii());
        assert!(dirs.folder(&Path::new("/x").join("y".repeat(255))).name.len() <= MAX_SLUG + 9);
    }

    #[test]
    fn a_socket_path_that_is_too_long_falls_back_and_is_found_again() {
        let tmp = tempfile::tempdir().unwrap();
        let home = tmp.path().join("x".repeat(MAX_SOCKET_PATH));
        let dirs = Dirs::below(&home, tmp.path());
        assert_eq!(dirs.socket().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir_all(&dirs.state).unwrap();
        let bound = dirs.socket_to_bind().unwrap();
        assert!(bound.as_os_str().len() <= MAX_SOCKET_PATH);
        std::os::unix::net::UnixListener::bind(&bound).unwrap();
        assert_eq!(dirs.socket().unwrap(), bound);
        assert_eq!(dirs.socket_to_bind().unwrap(), bound, "the second start takes the same");

        // A folder that others may write in is not trusted.
        std::fs::set_permissions(bound.parent().unwrap(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(dirs.socket().is_err());
        assert_ne!(dirs.socket_to_bind().unwrap(), bound);
    }

    #[test]
    fn a_socket_path_of_exactly_the_limit_fits() {
        let name = "/memsync.sock".len();
        let longest = format!("/{}", "x".repeat(MAX_SOCKET_PATH - name - 1));
        assert_eq!(
            Dirs::below(Path::new(&longest), Path::new("/tmp")).socket().unwrap().as_os_str().len(),
            MAX_SOCKET_PATH
        );
        assert!(Dirs::below(Path::new(&format!("{longest}x")), Path::new("/tmp")).socket().is_err());
    }
}
