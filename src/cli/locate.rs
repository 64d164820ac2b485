//! Which configured folder a path of the user belongs to.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::app::App;
use super::exit::{Exit, Failure};
use crate::config;
use crate::disk::Disk;
use crate::disk::real::RealDisk;
use crate::local::Folder;
use crate::path::RelPath;

/// A configured folder, open.
pub struct Open {
    pub root: PathBuf,
    pub folder: Folder<RealDisk>,
}

/// A path in a folder.
pub struct Place {
    pub open: Open,
    /// As it is called on the disk, below the root; empty for the root itself.
    pub at: String,
}

impl Place {
    /// The name on the wire.
    ///
    /// # Errors
    /// Where the path cannot be synced under its name, or is the folder itself.
    pub fn path(&self) -> anyhow::Result<RelPath> {
        RelPath::from_disk(&self.at).map_err(|e| {
            let shown = self.open.root.join(&self.at);
            Failure::new(Exit::Usage, format!("{}: {e}", shown.display())).into()
        })
    }

    /// The absolute path.
    pub fn absolute(&self) -> PathBuf {
        self.open.root.join(&self.at)
    }
}

/// Opens every configured folder.
///
/// # Errors
/// When one is not there.
pub fn folders(app: &App) -> anyhow::Result<Vec<Open>> {
    let config = app.config()?;
    config.folders.iter().map(|f| open(app, f)).collect()
}

fn open(app: &App, folder: &config::Folder) -> anyhow::Result<Open> {
    let device = app.config()?.device.clone();
    let root = real(&folder.path);
    let disk = RealDisk::open(&root)
        .with_context(|| format!("{}: the folder cannot be opened; is it mounted?", folder.path.display()))?;
    Ok(Open { folder: Folder::new(Arc::new(disk), &device, fastrand::u64(..)), root: folder.path.clone() })
}

/// The configured folder that `dir` names.
///
/// # Errors
/// When none does.
pub fn configured<'a>(app: &'a App, dir: &Path) -> anyhow::Result<&'a config::Folder> {
    let folders = &app.config().map_err(anyhow::Error::from)?.folders;
    let wanted = real(&std::path::absolute(dir)?);
    folders.iter().find(|f| real(&f.path) == wanted).ok_or_else(|| outside(dir, folders))
}

/// Finds `path`: absolute, relative to the working folder, or relative to a configured folder. `known` says whether
/// a folder has anything under a name, to choose among several.
///
/// # Errors
/// When the path is in none of the folders, or could be in several.
pub fn find(app: &App, path: &Path, known: impl Fn(&Folder<RealDisk>, &str) -> bool) -> anyhow::Result<Place> {
    let folders = &app.config()?.folders;
    let absolute = real_name(&std::path::absolute(path).with_context(|| format!("{}: no path", path.display()))?);
    // The innermost folder comes first, should one ever lie in another.
    let mut inside: Vec<_> =
        folders.iter().filter_map(|f| Some((f, absolute.strip_prefix(real(&f.path)).ok()?.to_owned()))).collect();
    inside.sort_by_key(|(_, rest)| rest.components().count());
    if let Some((folder, rest)) = inside.first() {
        return Ok(Place { open: open(app, folder)?, at: name_below(path, rest)? });
    }
    if path.is_absolute() || path.components().any(|c| !matches!(c, Component::Normal(_))) {
        return Err(outside(path, folders));
    }
    let at = name_below(path, path)?;
    let mut places = Vec::new();
    for folder in folders {
        places.push(Place { open: open(app, folder)?, at: at.clone() });
    }
    if places.len() > 1 {
        places.retain(|p| exists(&p.open.folder, &at) || known(&p.open.folder, &at));
    }
    match (places.pop(), places.is_empty()) {
        (Some(place), true) => Ok(place),
        (None, _) => Err(outside(path, folders)),
        (Some(_), false) => {
            let why = format!("{}: several folders have it; name it by its absolute path", path.display());
            Err(Failure::new(Exit::Usage, why).into())
        }
    }
}

fn exists(folder: &Folder<RealDisk>, at: &str) -> bool {
    folder.disk().stat(at).is_ok()
}

fn name_below(path: &Path, rest: &Path) -> anyhow::Result<String> {
    let text = rest.to_str().ok_or_else(|| {
        Failure::new(Exit::Usage, format!("{}: the name is not UTF-8, so it takes no part in sync", path.display()))
    })?;
    if text.is_empty() {
        return Ok(String::new());
    }
    // Refuses what leaves the folder or is private to memsync; the form on the disk is kept.
    RelPath::from_disk(text).map_err(|e| Failure::new(Exit::Usage, format!("{}: {e}", path.display())))?;
    Ok(text.to_owned())
}

fn outside(path: &Path, folders: &[config::Folder]) -> anyhow::Error {
    let all: Vec<_> = folders.iter().map(|f| f.path.display().to_string()).collect();
    let why = format!("{} is in none of the synced folders ({})", path.display(), all.join(", "));
    Failure::new(Exit::Usage, why).into()
}

/// As [`real`], but the last name is the file itself, also where it is a symlink.
fn real_name(path: &Path) -> PathBuf {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => real(path),
    }
}

/// `path` with the symlinks of its longest part that exists resolved.
pub fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        match ancestor.canonicalize() {
            Ok(resolved) => {
                return match path.strip_prefix(ancestor) {
                    // Joining nothing would leave a trailing `/`.
                    Ok(rest) if rest.as_os_str().is_empty() => resolved,
                    Ok(rest) => resolved.join(rest),
                    Err(_) => path.to_owned(),
                };
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => break,
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_as_far_as_there_is_something() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        std::fs::create_dir(home.join("real")).unwrap();
        std::os::unix::fs::symlink("real", home.join("link")).unwrap();
        let shown = |path: &Path| path.to_str().unwrap().strip_prefix(home.to_str().unwrap()).unwrap().to_owned();
        assert_eq!(shown(&real(&home.join("link"))), "/real");
        assert_eq!(shown(&real(&home.join("link/new/deep"))), "/real/new/deep");
        assert_eq!(shown(&real(&home.join("new"))), "/new");
        assert_eq!(shown(&real_name(&home.join("link"))), "/link", "a file that is a link is itself");
    }
}
