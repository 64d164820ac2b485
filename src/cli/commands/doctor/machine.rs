//! The checks of this machine: folders, state, watch limits and free space.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};

use super::check::DoctorCheck;
use crate::agent::status::HaltStatus;
use crate::cli::exit::Exit;
use crate::cli::machine::state_files::open_dir;
use crate::cli::view::format;
use crate::config::FolderConfig;
use crate::path::PRIVATE_DIR;
use crate::state::{self, OpenOutcome, StateView};

/// Less free space is a failure.
const FAIL_BELOW_BYTES: u64 = 16 << 20;
/// Less free space is a warning.
const WARN_BELOW_BYTES: u64 = 512 << 20;
#[cfg(target_os = "linux")]
const MAX_WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";

/// A folder that is held until the user decides.
pub(super) fn check_halt(halt: &HaltStatus) -> DoctorCheck {
    let fix = halt.id.as_ref().map(|id| format!("memsync approve {id}"));
    DoctorCheck { fix, ..DoctorCheck::fail_with_error("folder", &halt.reason) }.exit(Exit::Halted)
}

pub(super) fn check_folder(path: &Path) -> DoctorCheck {
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DoctorCheck::fail("folder", format!("{shown} is missing"), "bring it back (mount its disk?), or make it")
        }
        Err(e) => DoctorCheck::fail("folder", format!("{shown}: {e}"), "give memsync's user the right to read it"),
        Ok(m) if !m.is_dir() => {
            DoctorCheck::fail("folder", format!("{shown} is no folder"), "set folder.path to the folder itself")
        }
        Ok(_) => match access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            Err(e) => {
                let fix = format!("chmod u+rwx '{shown}', or change its owner");
                DoctorCheck::fail("folder", format!("{shown}: {e}"), fix)
            }
            Ok(()) => check_identity(path),
        },
    }
}

fn check_identity(folder: &Path) -> DoctorCheck {
    let shown = folder.display();
    match std::fs::read_to_string(folder.join(PRIVATE_DIR).join("id")) {
        Ok(_) => DoctorCheck::ok("folder", format!("{shown}")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DoctorCheck::ok("folder", format!("{shown} (not synced yet: it gets its identity in the first sync)"))
        }
        Err(e) => DoctorCheck::fail(
            "folder",
            format!("{shown}: its identity cannot be read: {e}"),
            format!("give memsync's user the right to read {shown}/{PRIVATE_DIR}/id"),
        ),
    }
}

/// Reads the state container as an agent would, and changes nothing. `files` is the count of `memsync status`, if known.
pub(super) fn check_container(path: &Path, files: Option<usize>) -> DoctorCheck {
    let shown = path.display();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let found = match open_dir(path.parent().unwrap_or(path)) {
        Ok(Some(disk)) => state::peek(&disk, &name).map_err(|e| e.to_string()),
        Ok(None) => Ok(None),
        Err(e) => Err(e.to_string()),
    };
    let damaged = |left: &str| {
        let fix = "start the agent: it recovers what it can, keeps the damaged files and deletes none of your files";
        DoctorCheck::warn("state", format!("{shown} is damaged; {left}"), fix)
    };
    match found {
        Ok(None) if path.exists() => damaged("none of it can be read"),
        Ok(None) => DoctorCheck::ok("state", format!("{shown} is not there yet")),
        Ok(Some(StateView { opened: OpenOutcome::Recovered { from_backup: true, .. }, .. })) => {
            damaged("its backup is good")
        }
        Ok(Some(StateView { opened: OpenOutcome::Recovered { .. }, .. })) => damaged("not all of it can be read"),
        Ok(Some(view)) => {
            let tracked = || view.entries.values().filter(|e| e.base.content().is_some()).count();
            let files = files.unwrap_or_else(tracked);
            DoctorCheck::ok("state", format!("{shown} ({})", format::count(files, "file")))
        }
        Err(why) => DoctorCheck::fail(
            "state",
            format!("{shown}: {why}"),
            format!("use the newest memsync of this machine (`memsync --version`), as a user who may read '{shown}'"),
        ),
    }
}

#[cfg(target_os = "linux")]
pub(super) fn check_watches(folders: &[FolderConfig]) -> DoctorCheck {
    let limit = match std::fs::read_to_string(MAX_WATCHES).map(|text| text.trim().parse::<u64>()) {
        Ok(Ok(limit)) => limit,
        _ => return DoctorCheck::warn("watcher", format!("{MAX_WATCHES} cannot be read"), "mount /proc"),
    };
    check_watch_count(folders.iter().map(|f| count_directories(&f.path)).sum(), limit)
}

/// FSEvents watches a whole tree and has no such limit.
#[cfg(not(target_os = "linux"))]
pub(super) fn check_watches(_folders: &[FolderConfig]) -> DoctorCheck {
    DoctorCheck::ok("watcher", "no limit on this system")
}

#[cfg(target_os = "linux")]
fn check_watch_count(directories: u64, limit: u64) -> DoctorCheck {
    let what = format!("folders to watch: {directories}; allowed to all programs of this user together: {limit}");
    // Other programs of the user need watches as well.
    if directories < limit / 2 {
        return DoctorCheck::ok("watcher", what);
    }
    let more = (directories * 4).max(524_288);
    let fix = format!(
        "sudo sysctl fs.inotify.max_user_watches={more} (and in /etc/sysctl.d/ to keep it); until then memsync polls"
    );
    DoctorCheck::warn("watcher", what, fix)
}

/// The number of directories at and below `root`. One that cannot be listed counts once.
#[cfg(target_os = "linux")]
fn count_directories(root: &Path) -> u64 {
    let mut open = vec![root.to_owned()];
    let mut count = 0;
    while let Some(dir) = open.pop() {
        count += 1;
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        open.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    count
}

/// Checks the filesystem with the least space among those that memsync writes to.
pub(super) fn check_free_space<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> DoctorCheck {
    let free = |path: &PathBuf| {
        let there = path.ancestors().find(|p| p.exists())?;
        let fs = statvfs(there).ok()?;
        Some((fs.f_bavail.saturating_mul(fs.f_frsize), path.clone()))
    };
    match paths.filter_map(free).min() {
        None => DoctorCheck::warn("disk", "the free space is not known", "see `df`"),
        Some((bytes, path)) => {
            let what = format!("{} MiB free at {}", bytes >> 20, path.display());
            match bytes {
                ..FAIL_BELOW_BYTES => DoctorCheck::fail("disk", what, "free some space: memsync cannot write safely"),
                FAIL_BELOW_BYTES..WARN_BELOW_BYTES => {
                    DoctorCheck::warn("disk", what, "free some space; history.max_size limits the history")
                }
                _ => DoctorCheck::ok("disk", what),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::CheckVerdict;
    use super::*;

    #[test]
    fn check_folder_judges_each_kind_of_file() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| check_folder(&tmp.path().join(name));
        assert_eq!(at("missing").verdict, CheckVerdict::Fail);
        std::fs::write(tmp.path().join("file"), "").unwrap();
        assert_eq!(at("file").verdict, CheckVerdict::Fail);
        std::fs::create_dir_all(tmp.path().join("dir/.memsync")).unwrap();
        assert!(at("dir").what.contains("not synced yet"));
        std::fs::write(tmp.path().join("dir/.memsync/id"), "x").unwrap();
        assert_eq!((at("dir").verdict, at("dir").what.contains("yet")), (CheckVerdict::Ok, false));
        std::os::unix::fs::symlink(tmp.path().join("dir"), tmp.path().join("link")).unwrap();
        assert_eq!(at("link").verdict, CheckVerdict::Ok);
        std::os::unix::fs::symlink(tmp.path().join("nowhere"), tmp.path().join("dangling")).unwrap();
        assert_eq!(at("dangling").verdict, CheckVerdict::Fail);
    }

    #[test]
    fn check_container_judges_damage_and_versions() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("c.json");
        assert_eq!(check_container(&path, None).verdict, CheckVerdict::Ok);
        assert_eq!(check_container(&tmp.path().join("none/c.json"), None).verdict, CheckVerdict::Ok);
        for damage in ["", "nonsense"] {
            std::fs::write(&path, damage).unwrap();
            let check = check_container(&path, None);
            assert_eq!(check.verdict, CheckVerdict::Warn, "{damage:?}: {}", check.what);
        }
        std::fs::write(&path, r#"{"version":99}"#).unwrap();
        let newer = check_container(&path, None);
        assert!(newer.verdict == CheckVerdict::Fail && newer.what.contains("version 99"), "{}", newer.what);
        assert_eq!(check_container(tmp.path(), None).verdict, CheckVerdict::Fail);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn check_watch_count_leaves_half_to_other_programs() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("a/b/c")).unwrap();
        std::os::unix::fs::symlink(tmp.path(), tmp.path().join("a/loop")).unwrap();
        assert_eq!(count_directories(tmp.path()), 4);
        assert_eq!(check_watch_count(10, 100).verdict, CheckVerdict::Ok);
        let tight = check_watch_count(90, 100);
        assert_eq!(tight.verdict, CheckVerdict::Warn);
        assert!(tight.fix.unwrap().contains("max_user_watches=524288"));
    }
}
