//! The files in the state directory: the state of each folder, and small text files, such as the id of this machine.
//!
//! The identity in a folder decides which state is its own. So a folder keeps its state when its path in the config
//! changes: through a symlink, or by another spelling.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::cli::app::App;
use crate::config::{FolderConfig, create_private, create_private_dir, resolve_links};
use crate::dirs::{CONTAINER_SUFFIX, FolderFiles};
use crate::disk::real::RealDisk;
use crate::disk::whole::replace_private;
use crate::disk::{Disk, DiskFile};
use crate::local;
use crate::state::{self, StateView};

const JOURNAL_SUFFIX: &str = ".json.journal";
const STATUS_SUFFIX: &str = ".status.json";
/// The record of the machine's id. It lives as long as the state directory.
const DEVICE_ID: &str = "device-id";
const MAX_RECORD_BYTES: usize = 4096;

struct ContainerLookup<'a> {
    app: &'a App,
    disk: Arc<RealDisk>,
}

/// The state files of the configured folder at `path`.
pub(crate) fn find(app: &App, path: &Path) -> FolderFiles {
    let by_path = || app.dirs.folder(path);
    let folders = app.config().map(|config| config.folders.as_slice()).unwrap_or_default();
    let Ok(disk) = RealDisk::open(&resolve_links(&app.dirs.state)) else { return by_path() };
    let dir = ContainerLookup { app, disk: Arc::new(disk) };
    let Some(id) = identity(path) else { return dir.first_that_exists(path).unwrap_or_else(by_path) };
    if let Some(own) = dir.named_by_path(path, &id) {
        return own;
    }
    let others = folders.iter().filter(|f| f.path != path);
    dir.belonging_to(&id, others).or_else(|| dir.first_that_exists(path)).unwrap_or_else(by_path)
}

/// Reads the state of the configured folder at `path`. `None` if it has none yet.
pub(crate) fn read_state(app: &App, path: &Path) -> anyhow::Result<Option<StateView>> {
    let dir = &app.dirs.state;
    let Some(disk) = open_dir(dir).with_context(|| dir.display().to_string())? else { return Ok(None) };
    Ok(state::peek(&disk, &find(app, path).container_name())?)
}

/// `None` if the directory is missing.
pub(crate) fn open_dir(dir: &Path) -> io::Result<Option<Arc<RealDisk>>> {
    match RealDisk::open(&resolve_links(dir)) {
        Ok(disk) => Ok(Some(Arc::new(disk))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

impl ContainerLookup<'_> {
    /// The files named after the path as spelled, and after the path with its symlinks resolved.
    fn candidates(&self, path: &Path) -> [FolderFiles; 2] {
        [self.app.dirs.folder(path), self.app.dirs.folder(&resolve_links(path))]
    }

    fn first_that_exists(&self, path: &Path) -> Option<FolderFiles> {
        self.candidates(path).into_iter().find(|files| {
            let exists = |suffix: &str| self.disk.stat(&format!("{}{suffix}", files.name)).is_ok();
            exists(CONTAINER_SUFFIX) || exists(JOURNAL_SUFFIX)
        })
    }

    /// The files named after the path, if they belong to the folder `id`.
    fn named_by_path(&self, path: &Path, id: &str) -> Option<FolderFiles> {
        self.candidates(path).into_iter().find(|files| self.folder_id(&files.name).as_deref() == Some(id))
    }

    /// The files of any name that belong to the folder `id`. A copy of a folder has the same identity, so the files of
    /// `others` do not count.
    fn belonging_to<'f>(&self, id: &str, others: impl Iterator<Item = &'f FolderConfig>) -> Option<FolderFiles> {
        let taken: Vec<FolderFiles> =
            others.filter_map(|other| self.named_by_path(&other.path, &identity(&other.path)?)).collect();
        let names = self.disk.list("").ok()?.into_iter().filter_map(|(name, _)| shared_name(name.to_str()?));
        let mut free = names.filter(|name| taken.iter().all(|files| files.name != *name));
        let found = free.find(|name| self.folder_id(name).as_deref() == Some(id))?;
        Some(self.app.dirs.files_named(found))
    }

    /// The folder that a container belongs to. `None` for a container that cannot be read; opening it gives the error.
    fn folder_id(&self, name: &str) -> Option<String> {
        let view = state::peek(&self.disk, &format!("{name}{CONTAINER_SUFFIX}")).ok().flatten();
        view.and_then(|view| view.header.folder_id)
    }
}

/// The identity of the folder at `path`. `None` if it cannot be read; opening the folder gives the error.
fn identity(path: &Path) -> Option<String> {
    let disk = RealDisk::open(&resolve_links(path)).ok()?;
    local::Folder::new(Arc::new(disk), "", 0).identity().ok().flatten()
}

/// The name that state files share, if `file` is a container or its journal.
fn shared_name(file: &str) -> Option<String> {
    let name = file.strip_suffix(JOURNAL_SUFFIX).or_else(|| file.strip_suffix(CONTAINER_SUFFIX))?;
    (!file.ends_with(STATUS_SUFFIX)).then(|| name.to_owned())
}

/// The text of a record, trimmed. `None` if there is no such file.
pub(crate) fn read_record(dir: &Path, name: &str) -> anyhow::Result<Option<String>> {
    let read = || {
        let text = read_beginning(&RealDisk::open(&resolve_links(dir))?, name, MAX_RECORD_BYTES)?;
        String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
    };
    match read() {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| dir.join(name).display().to_string()),
    }
}

/// Writes a record atomically, unless it has this text already.
pub(crate) fn write_record(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    if read_record(dir, name).ok().flatten().as_deref() == Some(text) {
        return Ok(());
    }
    let path = dir.join(name);
    replace_private(&path, format!("{text}\n").as_bytes()).with_context(|| path.display().to_string())
}

/// The id of this machine. The first call makes a random one, and the state directory if it is missing.
pub(crate) fn device_id(app: &App) -> anyhow::Result<String> {
    let dir = &app.dirs.state;
    create_private_dir(dir).with_context(|| format!("{}: the state directory cannot be made", dir.display()))?;
    let path = dir.join(DEVICE_ID);
    let fresh = format!("{}\n", random_hex::<16>()?);
    let made = match read_record(dir, DEVICE_ID)?.as_deref() {
        // A killed process may have left an empty file.
        Some("") => replace_private(&path, fresh.as_bytes()),
        Some(_) => Ok(()),
        None => create_private(&path, fresh.as_bytes()),
    };
    match made {
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.with_context(|| path.display().to_string())?,
    }
    let id = read_record(dir, DEVICE_ID)?.unwrap_or_default();
    anyhow::ensure!(!id.is_empty(), "{}: is empty; remove it, and memsync makes another", path.display());
    Ok(id)
}

/// `N` random bytes in hex, fit for a secret.
pub(crate) fn random_hex<const N: usize>() -> anyhow::Result<String> {
    let mut bytes = [0; N];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The content of a small file, up to about `limit` bytes.
pub(crate) fn read_beginning(disk: &RealDisk, name: &str, limit: usize) -> io::Result<Vec<u8>> {
    let (mut file, mut content, mut buf) = (disk.open(name)?, Vec::new(), [0; 4096]);
    while content.len() < limit {
        match file.read(&mut buf)? {
            0 => break,
            n => content.extend_from_slice(&buf[..n]),
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_is_recognized_by_its_name() {
        for (file, name) in [
            ("notes-0a1b2c3d.json", Some("notes-0a1b2c3d")),
            ("notes-0a1b2c3d.json.journal", Some("notes-0a1b2c3d")),
            ("notes-0a1b2c3d.json.bak", None),
            ("notes-0a1b2c3d.status.json", None),
            ("notes-0a1b2c3d.lock", None),
            ("device-id", None),
        ] {
            assert_eq!(shared_name(file).as_deref(), name, "{file}");
        }
    }
}
