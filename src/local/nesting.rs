//! Refuses a memory folder inside another one. Two agents would sync the inner folder into itself without end.

use std::fs;
use std::path::{Path, PathBuf};

use super::identity::ID_FILE;

/// Why a folder cannot become a memory folder.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NestedFolder {
    #[error(
        "{} is inside {}, which is a memory folder already; sync that one alone, or choose a folder outside of it; \
         if it is synced no more, remove {}",
        inner.display(), outer.display(), outer.join(crate::path::PRIVATE_DIR).display()
    )]
    Inside { inner: PathBuf, outer: PathBuf },
    #[error(
        "{} holds {}, which is a memory folder already; choose another folder, or remove {} to have it synced as a \
         part of this one",
        outer.display(), inner.display(), inner.join(crate::path::PRIVATE_DIR).display()
    )]
    Around { inner: PathBuf, outer: PathBuf },
}

/// Checks that no memory folder is above `root`. For a new memory folder, checks that none is below it either. `root` may
/// be missing and contains no symlinks. The scan of an existing memory folder excludes those below it, so an inner folder
/// that comes later does not stop its sync.
///
/// # Errors
/// The other memory folder.
pub(crate) fn check_nesting(root: &Path) -> Result<(), NestedFolder> {
    if let Some(outer) = root.ancestors().skip(1).find(|dir| has_identity(dir)) {
        return Err(NestedFolder::Inside { inner: root.to_owned(), outer: outer.to_owned() });
    }
    if has_identity(root) {
        return Ok(());
    }
    find_inner(root).map_or(Ok(()), |inner| Err(NestedFolder::Around { inner, outer: root.to_owned() }))
}

fn has_identity(dir: &Path) -> bool {
    dir.join(ID_FILE).symlink_metadata().is_ok_and(|meta| meta.is_file())
}

/// The first memory folder below `root`. Skips folders that cannot be listed: the scan reports them.
fn find_inner(root: &Path) -> Option<PathBuf> {
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if has_identity(&entry.path()) {
                return Some(entry.path());
            }
            open.push(entry.path());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(dir: &Path) {
        fs::create_dir_all(dir.join(".memsync")).unwrap();
        fs::write(dir.join(ID_FILE), "id\n").unwrap();
    }

    #[test]
    fn folder_inside_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner) = (dir.path().join("outer"), dir.path().join("outer/a/inner"));
        folder(&outer);
        let refused = NestedFolder::Inside { inner: inner.clone(), outer: outer.clone() };
        assert_eq!(check_nesting(&inner), Err(refused), "also before it is made");
        assert_eq!(check_nesting(&outer), Ok(()));
        assert_eq!(check_nesting(&dir.path().join("outer-2")), Ok(()));
    }

    #[test]
    fn folder_around_another_is_refused_until_it_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner) = (dir.path().join("outer"), dir.path().join("outer/a/inner"));
        folder(&inner);
        let refused = NestedFolder::Around { inner, outer: outer.clone() };
        assert_eq!(check_nesting(&outer), Err(refused));
        folder(&outer);
        assert_eq!(check_nesting(&outer), Ok(()));
    }
}
