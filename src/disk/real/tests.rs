use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;

use tempfile::TempDir;

use super::RealDisk;
use crate::disk::{Disk, DiskFile, FileKind};

/// Runs a test once for each way to resolve a path.
fn each_way(test: impl Fn(&RealDisk, &Path)) {
    for beneath in [true, false] {
        let dir = TempDir::new().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut disk = RealDisk::open(&root).unwrap();
        disk.beneath &= beneath;
        test(&disk, &root);
    }
}

fn put(disk: &RealDisk, path: &str, content: &str) {
    disk.create(path).unwrap().write_all(content.as_bytes()).unwrap();
}

fn error<T>(result: io::Result<T>) -> io::ErrorKind {
    match result {
        Ok(_) => panic!("should have been refused"),
        Err(e) => e.kind(),
    }
}

/// As root, runs the test in a copy of this program as another user, because permissions do not bind root. Returns false if
/// this is no root.
fn another_user_ran(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    // The other user may not be able to read the program's own folder.
    let dir = TempDir::new().unwrap();
    let copy = dir.path().join("tests");
    // Another process writes the copy. A file that this process has open for writing cannot run while a child of another
    // test still holds it.
    let copied = std::process::Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let module = module_path!().split_once("::").unwrap().1;
    let mut command = std::process::Command::new(copy);
    command.args(["--exact", &format!("{module}::{test}")]).env_clear().current_dir("/").uid(65_534).gid(65_534);
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    true
}

fn fifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn writes_and_reads_back() {
    each_way(|disk, root| {
        disk.mkdir("a").unwrap();
        disk.mkdir("a/b").unwrap();
        let mut file = disk.create("a/b/c.md").unwrap();
        file.write_all(b"hello").unwrap();
        file.sync().unwrap();
        disk.sync_dir("a/b").unwrap();
        disk.sync_dir("").unwrap();
        disk.sync_all().unwrap();
        assert_eq!(error(disk.create("a/b/c.md")), io::ErrorKind::AlreadyExists);

        let mut file = disk.open("a/b/c.md").unwrap();
        let mut buf = [0; 16];
        assert_eq!(file.read(&mut buf).unwrap(), 5);
        assert_eq!(file.read(&mut buf).unwrap(), 0);
        assert_eq!(&buf[..5], b"hello");

        let real = fs::metadata(root.join("a/b/c.md")).unwrap();
        let meta = disk.stat("a/b/c.md").unwrap();
        assert_eq!(meta, file.meta().unwrap());
        assert_eq!((meta.kind, meta.size, meta.inode, meta.device), (FileKind::File, 5, real.ino(), real.dev()));
        assert_eq!(meta.mtime_ns, real.mtime() * 1_000_000_000 + real.mtime_nsec());
        assert_eq!(meta.ctime_ns, real.ctime() * 1_000_000_000 + real.ctime_nsec());

        file.set_mode(0o640).unwrap();
        assert_eq!(disk.stat("a/b/c.md").unwrap().mode, 0o640);

        disk.unlink("a/b/c.md").unwrap();
        assert_eq!(error(disk.stat("a/b/c.md")), io::ErrorKind::NotFound);
        assert_eq!(error(disk.open("a/b/c.md")), io::ErrorKind::NotFound);
        assert_eq!(error(disk.rmdir("a")), io::ErrorKind::DirectoryNotEmpty);
        disk.rmdir("a/b").unwrap();
        disk.rmdir("a").unwrap();
        assert!(disk.list("").unwrap().is_empty());
        assert_eq!(disk.stat("").unwrap().kind, FileKind::Dir);
    });
}

#[test]
fn append_creates_a_private_file_and_adds_to_its_end() {
    each_way(|disk, root| {
        disk.append("log").unwrap().write_all(b"one").unwrap();
        disk.append("log").unwrap().write_all(b"two").unwrap();
        assert_eq!(fs::read(root.join("log")).unwrap(), b"onetwo");
        assert_eq!(disk.stat("log").unwrap().mode, 0o600);
    });
}

#[test]
fn symlink_as_parent_is_refused() {
    each_way(|disk, root| {
        let outside = TempDir::new().unwrap();
        fs::create_dir(outside.path().join("sub")).unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        fs::write(outside.path().join("sub/secret"), "s").unwrap();
        symlink(outside.path(), root.join("link")).unwrap();
        fs::create_dir(root.join("inside")).unwrap();
        fs::write(root.join("inside/file"), "f").unwrap();
        symlink("inside", root.join("alias")).unwrap();
        put(disk, "mine", "m");

        for path in ["link/secret", "link/sub/secret", "alias/file"] {
            assert_eq!(error(disk.stat(path)), io::ErrorKind::NotADirectory, "{path}");
            assert!(disk.open(path).is_err(), "{path}");
            assert!(disk.append(path).is_err(), "{path}");
            assert!(disk.unlink(path).is_err(), "{path}");
            assert!(disk.rename(path, "stolen").is_err(), "{path}");
            assert!(disk.rename_new("mine", &format!("{path}.new")).is_err(), "{path}");
            assert!(disk.rename("mine", path).is_err(), "{path}");
            assert!(disk.exchange("mine", path).is_err(), "{path}");
            assert!(disk.create(&format!("{path}.new")).is_err(), "{path}");
            assert!(disk.mkdir(&format!("{path}.new")).is_err(), "{path}");
        }
        for dir in ["link", "link/sub", "alias"] {
            assert_eq!(error(disk.list(dir)), io::ErrorKind::NotADirectory, "{dir}");
            assert!(disk.sync_dir(dir).is_err(), "{dir}");
            assert!(disk.rmdir(dir).is_err(), "{dir}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
        assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"s");
        assert_eq!(fs::read(root.join("inside/file")).unwrap(), b"f");
    });
}

#[test]
fn path_that_leaves_the_root_is_refused() {
    each_way(|disk, root| {
        fs::write(root.parent().unwrap().join("outside"), "o").unwrap();
        disk.mkdir("a").unwrap();
        put(disk, "mine", "m");
        for path in ["..", "../outside", "a/../../outside", "a/../mine", "a/..", "/etc/passwd", "./mine", "a//b", "a/"]
        {
            assert_eq!(error(disk.stat(path)), io::ErrorKind::InvalidInput, "{path}");
            assert_eq!(error(disk.open(path)), io::ErrorKind::InvalidInput, "{path}");
            assert_eq!(error(disk.create(path)), io::ErrorKind::InvalidInput, "{path}");
            assert_eq!(error(disk.list(path)), io::ErrorKind::InvalidInput, "{path}");
            assert_eq!(error(disk.mkdir(path)), io::ErrorKind::InvalidInput, "{path}");
            assert_eq!(error(disk.rename("mine", path)), io::ErrorKind::InvalidInput, "{path}");
            assert_eq!(error(disk.unlink(path)), io::ErrorKind::InvalidInput, "{path}");
        }
        assert!(disk.open("a\0b").is_err());
        for result in [disk.unlink(""), disk.rmdir(""), disk.mkdir(""), disk.rename("", "x"), disk.rename("mine", "")] {
            assert_eq!(error(result), io::ErrorKind::InvalidInput);
        }
    });
}

#[test]
fn open_refuses_special_files_without_blocking() {
    each_way(|disk, root| {
        put(disk, "target", "t");
        symlink("target", root.join("link")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        fifo(&root.join("fifo"));
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        disk.mkdir("dir").unwrap();
        for (name, kind) in [
            ("link", FileKind::Symlink),
            ("dangling", FileKind::Symlink),
            ("fifo", FileKind::Other("FIFO")),
            ("socket", FileKind::Other("socket")),
            ("dir", FileKind::Dir),
        ] {
            assert_eq!(disk.stat(name).unwrap().kind, kind);
            assert_eq!(error(disk.open(name)), io::ErrorKind::InvalidInput, "{name}");
            assert_eq!(error(disk.append(name)), io::ErrorKind::InvalidInput, "{name}");
            assert_eq!(error(disk.create(name)), io::ErrorKind::AlreadyExists, "{name}");
        }
        assert!(!root.join("nowhere").exists());
        // A rename or removal acts on the symlink itself.
        disk.rename("link", "moved").unwrap();
        disk.unlink("moved").unwrap();
        assert_eq!(fs::read(root.join("target")).unwrap(), b"t");
    });
}

#[test]
fn rename_new_never_replaces() {
    each_way(|disk, root| {
        put(disk, "a", "a");
        put(disk, "b", "b");
        disk.mkdir("dir").unwrap();
        disk.mkdir("empty").unwrap();
        for to in ["b", "empty"] {
            assert_eq!(error(disk.rename_new("a", to)), io::ErrorKind::AlreadyExists);
            assert_eq!(error(disk.rename_new("dir", to)), io::ErrorKind::AlreadyExists);
        }
        disk.rename_new("a", "dir/c").unwrap();
        assert_eq!(fs::read(root.join("dir/c")).unwrap(), b"a");
        assert_eq!(fs::read(root.join("b")).unwrap(), b"b");
        assert!(!root.join("a").exists());
        assert_eq!(error(disk.rename_new("a", "z")), io::ErrorKind::NotFound);
        disk.rename("dir/c", "b").unwrap();
        assert_eq!(fs::read(root.join("b")).unwrap(), b"a");
    });
}

#[test]
fn rename_new_by_link_never_replaces() {
    each_way(|disk, root| {
        put(disk, "a", "a");
        put(disk, "b", "b");
        disk.mkdir("dir").unwrap();
        disk.mkdir("empty").unwrap();
        let by_link = |from: &str, to: &str| {
            let (from, to) = (disk.parent(from).unwrap(), disk.parent(to).unwrap());
            disk.rename_new_by_link((&from.0, from.1), (&to.0, to.1))
        };
        for to in ["b", "empty"] {
            assert_eq!(error(by_link("a", to)), io::ErrorKind::AlreadyExists);
            assert_eq!(error(by_link("dir", to)), io::ErrorKind::AlreadyExists);
        }
        by_link("a", "dir/c").unwrap();
        by_link("dir", "dir2").unwrap();
        assert_eq!(fs::read(root.join("dir2/c")).unwrap(), b"a");
        assert!(!root.join("a").exists() && !root.join("dir").exists());
        // The symlink itself moves, not its target.
        symlink("b", root.join("link")).unwrap();
        by_link("link", "link2").unwrap();
        assert_eq!(disk.stat("link2").unwrap().kind, FileKind::Symlink);
    });
}

#[test]
fn exchange_swaps_in_one_step() {
    each_way(|disk, root| {
        put(disk, "a", "a");
        disk.mkdir("dir").unwrap();
        put(disk, "dir/b", "b");
        let before = (disk.stat("a").unwrap().inode, disk.stat("dir/b").unwrap().inode);
        disk.exchange("a", "dir/b").unwrap();
        assert_eq!((disk.stat("dir/b").unwrap().inode, disk.stat("a").unwrap().inode), before);
        assert_eq!(fs::read(root.join("a")).unwrap(), b"b");
        assert_eq!(error(disk.exchange("a", "missing")), io::ErrorKind::NotFound);
        assert_eq!(fs::read(root.join("a")).unwrap(), b"b");
    });
}

#[test]
fn list_has_every_name_of_a_large_folder_once() {
    each_way(|disk, root| {
        // Long names fill several buffers.
        let long = "n".repeat(180);
        for i in 0..2_000 {
            fs::write(root.join(format!("{long}{i}")), i.to_string()).unwrap();
        }
        let listed: BTreeMap<_, _> = disk.list("").unwrap().into_iter().collect();
        assert_eq!(listed.len(), 2_000);
        for (name, meta) in &listed {
            assert_eq!(*meta, disk.stat(name.to_str().unwrap()).unwrap());
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn list_has_names_that_are_not_utf8() {
    each_way(|disk, root| {
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9.md");
        fs::write(root.join(name), "x").unwrap();
        let listed = disk.list("").unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].0.as_os_str(), listed[0].1.kind), (name, FileKind::File));
    });
}

#[test]
fn unreadable_folder_is_an_error_and_not_empty() {
    if another_user_ran("unreadable_folder_is_an_error_and_not_empty") {
        return;
    }
    each_way(|disk, root| {
        disk.mkdir("dir").unwrap();
        put(disk, "dir/file", "f");
        fs::set_permissions(root.join("dir"), Permissions::from_mode(0o000)).unwrap();
        assert_eq!(error(disk.list("dir")), io::ErrorKind::PermissionDenied);
        assert_eq!(error(disk.stat("dir/file")), io::ErrorKind::PermissionDenied);
        fs::set_permissions(root.join("dir"), Permissions::from_mode(0o700)).unwrap();
        assert_eq!(disk.list("dir").unwrap().len(), 1);
        assert_eq!(error(disk.list("gone")), io::ErrorKind::NotFound);
        assert_eq!(error(disk.list("dir/file")), io::ErrorKind::NotADirectory);
    });
}

#[test]
fn root_is_recognised_after_it_was_moved() {
    each_way(|disk, root| {
        put(disk, "a", "a");
        let first = disk.root_identity().unwrap();
        assert!(first.is_same());

        let away = root.with_file_name("away");
        fs::rename(root, &away).unwrap();
        let moved = disk.root_identity().unwrap();
        assert_eq!((moved.opened, moved.now), (first.opened, None));
        // The handle still works. The caller must check the identity.
        assert_eq!(disk.stat("a").unwrap().size, 1);

        symlink(&away, root).unwrap();
        let linked = disk.root_identity().unwrap();
        assert!(!linked.is_same());
        assert_eq!(linked.now.unwrap().0, FileKind::Symlink);
        assert_eq!(error(RealDisk::open(root)), io::ErrorKind::NotADirectory);

        fs::remove_file(root).unwrap();
        fs::create_dir(root).unwrap();
        let replaced = disk.root_identity().unwrap();
        assert!(!replaced.is_same());
        assert_eq!(replaced.now.unwrap().0, FileKind::Dir);

        fs::remove_dir(root).unwrap();
        fs::rename(&away, root).unwrap();
        assert_eq!(disk.root_identity().unwrap(), first);
    });
}

#[test]
fn removed_root_does_not_look_empty() {
    each_way(|disk, root| {
        fs::remove_dir(root).unwrap();
        assert_eq!(error(disk.list("")), io::ErrorKind::NotFound);
        assert_eq!(error(disk.create("a")), io::ErrorKind::NotFound);
        assert_eq!(error(RealDisk::open(root)), io::ErrorKind::NotFound);
    });
}

#[test]
fn private_folder_is_closed_to_other_users() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("state/memsync");
    RealDisk::create_private(&root).unwrap();
    for path in [&root, &dir.path().join("state")] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    }
    let disk = RealDisk::create_private(&root).unwrap();
    assert_eq!(disk.path(), root);
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(RealDisk::create_private(&dir.path().join("file")).is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn file_open_for_writing_is_recognised() {
    each_way(|disk, root| {
        put(disk, "a", "content");
        let file = disk.open("a").unwrap();
        let other = disk.open("a").unwrap();
        assert!(!file.is_open_for_writing() && !other.is_open_for_writing(), "readers do not count");
        let writer = fs::OpenOptions::new().append(true).open(root.join("a")).unwrap();
        assert!(file.is_open_for_writing());
        drop(writer);
        assert!(!file.is_open_for_writing());
        // The check blocks no writer.
        drop(fs::OpenOptions::new().append(true).open(root.join("a")).unwrap());
    });
}

/// A bind mount that ends when the value is dropped.
#[cfg(target_os = "linux")]
struct BindMount(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl BindMount {
    fn new(from: &Path, at: std::path::PathBuf) -> Option<Self> {
        let done = std::process::Command::new("mount").arg("--bind").args([from, &at]).output();
        done.is_ok_and(|out| out.status.success()).then_some(Self(at))
    }
}

#[cfg(target_os = "linux")]
impl Drop for BindMount {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn operation_beyond_a_mount_point_is_refused() {
    each_way(|disk, root| {
        let outside = root.with_file_name("outside");
        fs::create_dir_all(outside.join("sub")).unwrap();
        fs::write(outside.join("file"), "outside").unwrap();
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        put(disk, "file", "inside");
        let mounts =
            (BindMount::new(&outside, root.join("dir")), BindMount::new(&outside.join("file"), root.join("file")));
        let (Some(_dir), Some(_file)) = mounts else { return println!("left out: this user cannot mount") };
        let listed: BTreeMap<_, _> = disk.list("").unwrap().into_iter().map(|(n, m)| (n, m.is_mount)).collect();
        assert_eq!(listed.into_iter().collect::<Vec<_>>(), [("dir".into(), true), ("file".into(), true)]);
        assert!(disk.stat("dir").unwrap().is_mount && disk.stat("file").unwrap().is_mount);
        let crossed = io::ErrorKind::CrossesDevices;
        assert_eq!(error(disk.list("dir")), crossed);
        assert_eq!(error(disk.open("file")), crossed);
        assert_eq!(error(disk.open("dir/file")), crossed);
        assert_eq!(error(disk.stat("dir/sub")), crossed);
        assert_eq!(error(disk.list("dir/sub")), crossed);
        assert_eq!(error(disk.create("dir/new")), crossed);
        assert_eq!(error(disk.mkdir("dir/new")), crossed);
        assert_eq!(error(disk.unlink("dir/file")), crossed);
        assert_eq!(error(disk.rename("file", "dir/moved")), crossed);
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 2);
    });
}
