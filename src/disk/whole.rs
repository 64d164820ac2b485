//! Writes small files whole: to a temporary name, synced, then renamed. A crash leaves the old file or the new one, never
//! half of it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::failpoint;

/// The mode of files that only the user may read.
const PRIVATE: u32 = 0o600;
/// The mode of other new files, without the bits of the umask.
const PUBLIC: u32 = 0o666;

/// Creates the file `path` (mode 0600) with the content `bytes`, durably. Creates missing folders like
/// [`create_private_dir`].
///
/// # Errors
/// `AlreadyExists`, or as the system calls.
pub fn create_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    create_private_dir(dir_of(path))?;
    place(path, create_beside(path)?, bytes, |fresh| rename_new(fresh, path))
}

/// Renames a file to a free name.
fn rename_new(fresh: &Path, path: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, fresh, CWD, path, RenameFlags::NOREPLACE) {
        // The filesystem has no exclusive rename, but hard links.
        Err(e) if super::is_unsupported(e) => {
            fs::hard_link(fresh, path)?;
            fs::remove_file(fresh)
        }
        other => Ok(other?),
    }
}

/// Like [`create_private`], but replaces an existing file.
///
/// # Errors
/// As the system calls. The old file stays then.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_private_dir(dir_of(path))?;
    place(path, create_beside(path)?, bytes, |fresh| fs::rename(fresh, path))
}

/// Appends lines to the file `path`, which is made with mode 0600 if it is missing. If a crash cut its last line short, the
/// new lines begin on a line of their own. Nothing is made durable.
///
/// # Errors
/// As the system calls. A part of the lines may be in the file then.
pub(crate) fn append_lines(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(PRIVATE).open(path)?;
    if file.metadata()?.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    file.write_all(lines)
}

/// Replaces the file at `path` (mode 0600) atomically for its readers. The new content is not made durable.
///
/// # Errors
/// As the system calls.
pub(crate) fn replace_note(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (fresh, mut file) = create_beside(path)?;
    let placed = file.write_all(bytes).and_then(|()| fs::rename(&fresh, path));
    placed.inspect_err(|_| discard(&fresh))
}

/// Replaces a file of the user, or creates it, durably. The file keeps its mode, and a symlink to a file stays. A symlink
/// that leads nowhere is replaced. No other file in the folder is touched.
///
/// # Errors
/// `InvalidInput` if a folder, a device or a pipe has this name; else as the system calls. The old file stays then.
pub(crate) fn replace_of_user(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let old = match fs::metadata(path) {
        Ok(old) if !old.is_file() => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        Ok(old) => Some(old),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let target = if old.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
    let mode = if old.is_some() { PRIVATE } else { PUBLIC };
    place(&target, create_new(unique_beside(&target), mode)?, bytes, |fresh| {
        if let Some(old) = old {
            fs::set_permissions(fresh, old.permissions())?;
        }
        fs::rename(fresh, &target)
    })
}

/// Removes a file of [`create_private`], and its folder.
///
/// # Errors
/// As `unlink(2)` and `rmdir(2)`.
pub(crate) fn remove_with_folder(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    fs::remove_dir(dir_of(path))
}

/// Creates a file of the user, durably. No other file in the folder is touched.
///
/// # Errors
/// `AlreadyExists` if anything has this name; else as the system calls.
pub(crate) fn create_of_user(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    place(path, create_new(unique_beside(path), PUBLIC)?, bytes, |fresh| rename_new(fresh, path))
}

/// A path for a temporary file beside a file of the user. The built-in ignore patterns know such a name, and no other file
/// has it.
fn unique_beside(path: &Path) -> PathBuf {
    let unique = format!("{:032x}", fastrand::u128(..));
    let parts = [&unique[..8], &unique[8..12], &unique[12..16], &unique[16..20], &unique[20..]];
    path.with_file_name(format!(".tmp-{}-{}", std::process::id(), parts.join("-")))
}

/// Reads a file or a pipe. `None` if it has more than `limit` bytes.
pub(crate) fn read_up_to(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Creates a folder and the missing folders above it, with mode 0700. An existing folder keeps its mode.
///
/// # Errors
/// As `mkdir(2)`.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes `bytes` to a new file, and gives it the name `path` by `rename`.
fn place(
    path: &Path,
    (fresh, mut file): (PathBuf, File),
    bytes: &[u8],
    rename: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    failpoint::pass("file.begun");
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    failpoint::pass("file.written");
    written.and_then(|()| rename(&fresh)).inspect_err(|_| discard(&fresh))?;
    failpoint::pass("file.placed");
    File::open(dir_of(path))?.sync_all()
}

/// Creates an empty private file `<name>.tmp.<process>` next to `path`. Removes those of dead processes, so it is only for
/// memsync's own folders: a user's file may have such a name.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let mark = format!("{name}.tmp.");
    remove_leftovers(dir_of(path), &mark)?;
    create_new(path.with_file_name(format!("{mark}{}", std::process::id())), PRIVATE)
}

fn create_new(fresh: PathBuf, mode: u32) -> io::Result<(PathBuf, File)> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
    Ok((fresh, file))
}

/// Removes the files `<mark><process>` of dead processes and of this one.
fn remove_leftovers(dir: &Path, mark: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.strip_prefix(mark)?.parse::<i32>().ok()) else { continue };
        let is_alive = Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH));
        if !is_alive || u32::try_from(pid) == Ok(std::process::id()) {
            match fs::remove_file(entry.path()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn discard(fresh: &Path) {
    // The caller reports the first error. The next write removes a file that stays.
    let _ = fs::remove_file(fresh);
}

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn file_is_created_whole_and_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/token");
        create_private(&path, b"first").unwrap();
        assert_eq!(create_private(&path, b"second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        replace_private(&path, b"third").unwrap();
        replace_note(&path, b"fourth").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"fourth");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file is left");
    }

    #[test]
    fn file_of_the_user_keeps_its_mode_and_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link] = ["note.md", "link.md"].map(|name| dir.path().join(name));
        replace_of_user(&path, b"first").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let plain = dir.path().join("plain");
        fs::write(&plain, "").unwrap();
        assert_eq!(mode(&path), mode(&plain), "the umask decides");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace_of_user(&link, b"second").unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o640, b"second".to_vec()));
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(replace_of_user(dir.path(), b"x").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn new_file_of_the_user_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link, plain] = ["note.md", "link.md", "plain"].map(|name| dir.path().join(name));
        create_of_user(&path, b"first").unwrap();
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for taken in [&path, &link, dir.path()] {
            assert_eq!(create_of_user(taken, b"second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"first".to_vec(), mode(&plain)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "a temporary file is left");
    }

    #[test]
    fn file_of_the_user_beside_the_replaced_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let [path, beside] = ["note.md", "note.md.tmp.2147483646"].map(|name| dir.path().join(name));
        fs::write(&beside, "mine").unwrap();
        replace_of_user(&path, b"merged").unwrap();
        assert_eq!(fs::read(&beside).unwrap(), b"mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a temporary file is left");
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note.md");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_up_to(&path, 5).unwrap(), Some(b"12345".to_vec()));
        assert_eq!(read_up_to(&path, 4).unwrap(), None);
        assert_eq!(read_up_to(Path::new("/dev/null"), 4).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn leftover_of_a_dead_process_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dead = {
            let mut child = std::process::Command::new("true").spawn().unwrap();
            child.wait().unwrap();
            child.id()
        };
        let names = [format!("token.tmp.{dead}"), "token.tmp.1".to_owned(), "token.tmp.note".to_owned()];
        names.iter().for_each(|name| fs::write(dir.path().join(name), "").unwrap());
        replace_private(&dir.path().join("token"), b"x").unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["token", "token.tmp.1", "token.tmp.note"]);
    }
}
