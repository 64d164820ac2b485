use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::disk::FileKind;

mod power;

fn create(disk: &SimDisk, path: &str, bytes: &[u8]) -> SimFile {
    let mut file = disk.create(path).unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn synced(disk: &SimDisk, path: &str, bytes: &[u8]) {
    create(disk, path, bytes).sync().unwrap();
}

struct Reader(SimFile);

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

fn read(file: SimFile) -> Vec<u8> {
    let mut out = Vec::new();
    Reader(file).read_to_end(&mut out).unwrap();
    out
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.err().expect("it must fail").kind()
}

#[test]
#[expect(clippy::cognitive_complexity, reason = "each assertion counts as a branch")]
fn errors_are_those_of_the_system() {
    let d = SimDisk::new();
    d.user_write("f", "x").unwrap();
    d.user_write("dir/in", "y").unwrap();
    d.plant_symlink("link").unwrap();
    d.plant_other("pipe", "fifo").unwrap();
    assert_eq!(kind(d.stat("no")), ErrorKind::NotFound);
    assert_eq!(kind(d.stat("no/no")), ErrorKind::NotFound);
    assert_eq!(kind(d.stat("f/x")), ErrorKind::NotADirectory);
    assert_eq!(kind(d.stat("link/x")), ErrorKind::NotADirectory);
    assert_eq!(kind(d.list("f")), ErrorKind::NotADirectory);
    assert_eq!(kind(d.list("no")), ErrorKind::NotFound);
    for no_file in ["dir", "link", "pipe", ""] {
        assert_eq!(kind(d.open(no_file)), ErrorKind::InvalidInput, "{no_file:?}");
    }
    assert_eq!(kind(d.create("f")), ErrorKind::AlreadyExists);
    assert_eq!(kind(d.create("no/f")), ErrorKind::NotFound);
    assert_eq!(kind(d.mkdir("dir")), ErrorKind::AlreadyExists);
    assert_eq!(kind(d.mkdir("")), ErrorKind::AlreadyExists);
    assert_eq!(kind(d.rmdir("f")), ErrorKind::NotADirectory);
    assert_eq!(kind(d.rmdir("dir")), ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind(d.unlink("dir")), ErrorKind::IsADirectory);
    assert_eq!(kind(d.unlink("no")), ErrorKind::NotFound);
    assert_eq!(kind(d.rename("no", "x")), ErrorKind::NotFound);
    assert_eq!(kind(d.rename("f", "no/x")), ErrorKind::NotFound);
    assert_eq!(kind(d.rename("f", "dir")), ErrorKind::IsADirectory);
    assert_eq!(kind(d.rename("dir", "f")), ErrorKind::NotADirectory);
    assert_eq!(kind(d.rename("dir", "dir/sub")), ErrorKind::InvalidInput);
    d.mkdir("other").unwrap();
    assert_eq!(kind(d.rename("other", "dir")), ErrorKind::DirectoryNotEmpty);
    assert_eq!(kind(d.rename_new("f", "link")), ErrorKind::AlreadyExists);
    assert_eq!(kind(d.exchange("f", "no")), ErrorKind::NotFound);
    assert_eq!(kind(d.exchange("dir", "dir/in")), ErrorKind::InvalidInput);
    assert_eq!(kind(d.sync_dir("f")), ErrorKind::NotADirectory);
    assert_eq!(d.stat("link").unwrap().kind, FileKind::Symlink);
    assert_eq!(d.stat("pipe").unwrap().kind, FileKind::Other("fifo"));
    // All of these calls changed nothing.
    assert_eq!(d.user_tree("").into_keys().collect::<Vec<_>>(), ["dir/in", "f"]);
}

#[test]
fn names_move_and_inodes_stay() {
    let d = SimDisk::new();
    d.user_write("a", "1").unwrap();
    d.user_write("b", "2").unwrap();
    let (a, b) = (d.stat("a").unwrap().inode, d.stat("b").unwrap().inode);
    d.exchange("a", "b").unwrap();
    assert_eq!((d.stat("a").unwrap().inode, d.stat("b").unwrap().inode), (b, a));
    d.rename("a", "b").unwrap();
    assert_eq!((d.user_tree("").len(), d.stat("b").unwrap().inode), (1, b));
    d.rename("b", "b").unwrap();
    d.rename_new("b", "c").unwrap();
    d.unlink("c").unwrap();
    let fresh = create(&d, "a", b"").meta().unwrap().inode;
    assert!(fresh != a && fresh != b, "an inode number was used again");
    d.mkdir("x").unwrap();
    d.mkdir("y").unwrap();
    d.rename("x", "y").unwrap();
    assert_eq!(d.list("").unwrap().len(), 2);
}

#[test]
fn a_handle_outlives_its_name_and_sees_writes_in_place() {
    let d = SimDisk::new();
    d.user_write("a", "first").unwrap();
    let mut half = d.open("a").unwrap();
    let mut buf = [0; 2];
    assert_eq!(half.read(&mut buf).unwrap(), 2);
    d.user_write("a", "SECOND").unwrap();
    assert_eq!(read(half), b"COND", "a torn read, as on a real disk");
    let old = d.open("a").unwrap();
    d.user_replace("a", "third").unwrap();
    assert_eq!(read(old), b"SECOND");
    d.user_write("a", "").unwrap();
    let gone = d.open("a").unwrap();
    d.unlink("a").unwrap();
    assert_eq!(gone.meta().unwrap().size, 0);
}

#[test]
fn appending_goes_to_the_end() {
    let d = SimDisk::new();
    let mut one = d.append("log").unwrap();
    let mut two = d.append("log").unwrap();
    one.write_all(b"a").unwrap();
    two.write_all(b"b").unwrap();
    one.write_all(b"c").unwrap();
    assert_eq!(d.user_read("log").unwrap(), "abc");
    assert_eq!(d.stat("log").unwrap().mode, 0o600);
    let mut file = create(&d, "f", b"12");
    file.write_all(b"34").unwrap();
    assert_eq!(d.user_read("f").unwrap(), "1234");
}

#[test]
fn the_clock_marks_what_changed() {
    let d = SimDisk::new();
    d.set_time(10);
    d.user_write("a", "1").unwrap();
    d.set_time(20);
    d.rename("a", "b").unwrap();
    let m = d.stat("b").unwrap();
    assert_eq!((m.mtime_ns, m.ctime_ns), (10, 20));
    assert_eq!(d.stat("").unwrap().mtime_ns, 20);
    d.set_time(30);
    d.user_write("b", "2").unwrap();
    assert_eq!(d.stat("b").unwrap().mtime_ns, 30);
    d.set_time(40);
    d.open("b").unwrap().set_mode(0o600).unwrap();
    let m = d.stat("b").unwrap();
    assert_eq!((m.mtime_ns, m.ctime_ns, m.mode), (30, 40, 0o600));
    // Clocks are coarse: a change of the same length within one tick is invisible.
    let before = d.stat("b").unwrap();
    d.user_write("b", "3").unwrap();
    d.set_time(40);
    d.user_write("b", "4").unwrap();
    assert_eq!(d.stat("b").unwrap().inode, before.inode);
}

#[test]
fn unreadable_can_be_seen_but_not_opened() {
    let d = SimDisk::new();
    d.user_write("d/f", "x").unwrap();
    d.set_unreadable("d/f", true).unwrap();
    assert_eq!(kind(d.open("d/f")), ErrorKind::PermissionDenied);
    assert_eq!(d.stat("d/f").unwrap().size, 1);
    assert_eq!(d.user_read("d/f").unwrap(), "x");
    d.set_unreadable("d", true).unwrap();
    assert_eq!(kind(d.list("d")), ErrorKind::PermissionDenied);
    assert!(d.stat("d/f").is_ok());
    assert_eq!(d.user_tree("").len(), 1);
    d.plant_unreadable_is_absent(true);
    assert_eq!(kind(d.open("d/f")), ErrorKind::NotFound);
    assert_eq!(kind(d.stat("d/f")), ErrorKind::NotFound);
    assert_eq!(kind(d.list("d")), ErrorKind::NotFound);
    assert_eq!(d.list("").unwrap().len(), 0);
    d.set_unreadable("d", false).unwrap();
    d.set_unreadable("d/f", false).unwrap();
    assert_eq!(read(d.open("d/f").unwrap()), b"x");
}

/// Under random calls a power cut never makes a file appear twice or a synced, untouched one go.
#[test]
fn any_run_leaves_a_sound_tree() {
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let d = SimDisk::new();
        d.user_write("kept/f", "kept").unwrap();
        let names = ["a", "b", "c", "a/a", "a/b", "b/a", "b/b", "a/a/a", "b/a/b"];
        for round in 0..3 {
            let engine = d.handle();
            for _ in 0..20 {
                let (x, y) = (names[rng.usize(..names.len())], names[rng.usize(..names.len())]);
                // A random call may fail.
                let _ = match rng.u8(0..9) {
                    0 | 1 => engine.create(x).and_then(|mut f| f.write_all(x.as_bytes())),
                    2 | 3 => engine.mkdir(x),
                    4 => engine.rename(x, y),
                    5 => engine.exchange(x, y),
                    6 => engine.unlink(x),
                    7 => engine.rmdir(x),
                    _ => engine.sync_dir(x),
                };
            }
            d.power_cut(&mut rng);
            let engine = d.handle();
            let mut inodes = Vec::new();
            let mut dirs = vec![String::new()];
            while let Some(dir) = dirs.pop() {
                for (name, meta) in engine.list(&dir).unwrap() {
                    inodes.push(meta.inode);
                    let name = name.into_string().unwrap();
                    let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                    assert_eq!(engine.stat(&path).unwrap(), meta, "seed {seed}");
                    if meta.kind == FileKind::Dir {
                        dirs.push(path);
                    }
                }
            }
            let count = inodes.len();
            inodes.sort_unstable();
            inodes.dedup();
            assert_eq!(inodes.len(), count, "seed {seed}, round {round}: one inode under two names");
            assert_eq!(d.user_read("kept/f").unwrap(), "kept", "seed {seed}");
            // The surviving state is durable: a second power cut changes nothing.
            let before = d.user_tree("");
            d.power_cut(&mut rng);
            assert_eq!(d.user_tree(""), before, "seed {seed}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed| {
        let d = SimDisk::new();
        for i in 0..20 {
            drop(create(&d, &format!("f{i}"), b"content"));
        }
        d.power_cut(&mut Rng::with_seed(seed));
        d.user_tree("")
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_killed_process_changes_nothing_more() {
    let d = SimDisk::new();
    let engine = d.handle();
    let mut file = create(&engine, "f", b"1");
    let twin = engine.clone();
    engine.kill();
    assert_eq!(file.write_all(b"2").unwrap_err().to_string(), "killed");
    assert_eq!(twin.unlink("f").unwrap_err().kind(), ErrorKind::Other);
    assert!(!twin.is_alive() && d.is_alive());
    let next = d.handle();
    assert_eq!(read(next.open("f").unwrap()), b"1");
    let open = next.open("f").unwrap();
    d.sync_all().unwrap();
    d.power_cut(&mut Rng::with_seed(0));
    assert_eq!(open.meta().unwrap_err().to_string(), "killed");
    assert_eq!(next.stat("f").unwrap_err().to_string(), "killed");
    assert!(d.handle().stat("f").is_ok());
}

#[test]
fn the_hook_sees_every_step_and_may_act_before_it() {
    let d = SimDisk::new();
    d.user_write("f", "before").unwrap();
    let engine = d.handle();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    d.set_hook(Some(Box::new(move |op| {
        count.fetch_add(1, Ordering::SeqCst);
        match op.kind {
            StepKind::Open => op.disk.user_write(op.path, "raced").unwrap(),
            StepKind::Mkdir => return StepFate::Fail(ErrorKind::StorageFull),
            StepKind::Rename => {
                assert_eq!((op.path, op.to), ("f", Some("g")));
                return StepFate::Kill;
            }
            _ => {}
        }
        StepFate::Go
    })));
    assert_eq!(read(engine.open("f").unwrap()), b"raced");
    let after_reading = seen.load(Ordering::SeqCst);
    assert!(after_reading >= 3, "open and the reads");
    assert_eq!(kind(engine.mkdir("d")), ErrorKind::StorageFull);
    assert_eq!(kind(engine.stat("d")), ErrorKind::NotFound);
    assert_eq!(engine.rename("f", "g").unwrap_err().to_string(), "killed");
    assert_eq!(kind(engine.stat("f")), ErrorKind::Other);
    assert_eq!(seen.load(Ordering::SeqCst), after_reading + 3, "the dead take no steps");
    assert_eq!(d.ops(), after_reading as u64 + 3);
    d.set_hook(None);
    assert_eq!(d.user_tree("").into_keys().collect::<Vec<_>>(), ["f"]);
}

#[test]
fn the_power_may_fail_from_inside_the_hook_and_the_hook_may_go() {
    let d = SimDisk::new();
    d.set_hook(Some(Box::new(|op| {
        op.disk.power_cut(&mut Rng::with_seed(1));
        op.disk.set_hook(None);
        StepFate::Go
    })));
    let engine = d.handle();
    assert_eq!(engine.mkdir("d").unwrap_err().to_string(), "killed");
    assert!(d.handle().mkdir("d").is_ok());
}

#[test]
fn a_planted_displace_hides_what_the_user_wrote() {
    let aside = format!("{PRIVATE_DIR}/aside");
    for planted in [false, true] {
        for exchange in [false, true] {
            let d = SimDisk::new();
            d.plant_unverified_displace(planted);
            d.user_write("f", "seen").unwrap();
            d.user_mkdir(PRIVATE_DIR).unwrap();
            read(d.open("f").unwrap());
            d.user_write("f", "unseen").unwrap();
            if exchange {
                d.user_write(&aside, "staged").unwrap();
                d.exchange(&aside, "f").unwrap();
                assert_eq!(d.user_read("f").unwrap(), "staged");
            } else {
                d.rename_new("f", &aside).unwrap();
            }
            assert_eq!(d.user_read(&aside).unwrap(), if planted { "seen" } else { "unseen" });
        }
    }
}

#[test]
fn the_private_folder_is_listed_only_when_asked_for() {
    let d = SimDisk::new();
    d.user_write(".memsync/id", "1").unwrap();
    d.user_write("a/b", "2").unwrap();
    assert_eq!(d.user_tree("").into_keys().collect::<Vec<_>>(), ["a/b"]);
    assert_eq!(d.user_tree("a").into_keys().collect::<Vec<_>>(), ["a/b"]);
    assert_eq!(d.user_tree(".memsync").into_keys().collect::<Vec<_>>(), [".memsync/id"]);
    assert!(d.user_tree("no").is_empty());
}
