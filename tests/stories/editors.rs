//! How editors save. Whatever they do, only whole contents become versions, and none looks like a deletion.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::left_out::left_out;
use crate::world::{Device, Files, World, eventually};

const SIZE: usize = 400_000;

/// A content that tells its version from the first byte to the last.
fn version(n: usize) -> Vec<u8> {
    format!("{n:07}\n").into_bytes().repeat(SIZE / 8)
}

/// Looks at the proxy and at the other device's file all the time.
struct Observer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(HashSet<Vec<u8>>, usize)>,
}

impl Observer {
    fn start(world: &World, file: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, ask) = (stop.clone(), world.asker());
        let thread = thread::spawn(move || {
            let (mut seen, mut missing) = (HashSet::new(), 0);
            let mut there = false;
            while !stopped.load(Ordering::Relaxed) {
                match ask("/blob/note.md") {
                    (200, body) => {
                        there = true;
                        seen.insert(body);
                    }
                    _ => missing += usize::from(there),
                }
                if let Ok(content) = fs::read(&file) {
                    seen.insert(content);
                }
            }
            (seen, missing)
        });
        Self { stop, thread }
    }

    /// Every content seen must be one of `written`, and the file always have been there.
    #[track_caller]
    fn saw_only(self, written: &[Vec<u8>]) {
        self.stop.store(true, Ordering::Relaxed);
        let (seen, missing) = self.thread.join().unwrap();
        for content in &seen {
            let first = String::from_utf8_lossy(&content[..content.len().min(8)]).into_owned();
            assert!(written.contains(content), "a content nobody wrote: {} bytes from {first:?}", content.len());
        }
        assert_eq!(missing, 0, "it never looked deleted");
        assert!(!seen.is_empty());
    }
}

/// How soon one save follows another.
#[derive(Clone, Copy, PartialEq)]
enum Pace {
    /// When the other device has the one before.
    Calm,
    AtOnce,
}

/// A machine that stalls in the midst of a save does not make a file quiet. One that was closed waits no longer for it.
const UNHURRIED: &str = "debounce = \"30s\"";

/// Saves with `save` many times, and looks that the other device gets the last and only whole ones.
fn saves_are_whole(pace: Pace, config: &str, saves: usize, save: impl Fn(&Device, &[u8])) {
    let world = World::new();
    let (a, b) = (world.device_with("a", config), world.device("b"));
    let written: Vec<Vec<u8>> = (0..=saves).map(version).collect();
    a.write("note.md", &written[0]);
    a.start();
    b.start();
    world.settle(&[&a, &b]);
    let observer = Observer::start(&world, b.at("note.md"));
    for content in &written[1..] {
        save(&a, content);
        if pace == Pace::Calm {
            eventually("b has it", || b.has("note.md", content));
        }
    }
    eventually("b has the last", || b.has("note.md", written.last().unwrap()));
    observer.saw_only(&written);
    let tree = world.settle(&[&a, &b]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["note.md"]);
    for old in b.kept() {
        assert!(written.contains(&old), "history has whole contents only: {} bytes", old.len());
    }
}

#[test]
fn a_save_by_renaming_the_old_one_away_as_vim_does() {
    for pace in [Pace::Calm, Pace::AtOnce] {
        saves_are_whole(pace, "", 6, as_vim);
    }
}

fn as_vim(a: &Device, content: &[u8]) {
    let probe = a.at("4913");
    fs::write(&probe, "").unwrap();
    fs::remove_file(&probe).unwrap();
    a.rename("note.md", "note.md~");
    fs::write(a.at("note.md"), content).unwrap();
    fs::remove_file(a.at("note.md~")).unwrap();
}

#[test]
fn a_save_by_renaming_a_new_one_over() {
    for pace in [Pace::Calm, Pace::AtOnce] {
        saves_are_whole(pace, "", 6, renamed_over);
    }
}

fn renamed_over(a: &Device, content: &[u8]) {
    let temporary = a.at(".goutputstream-X1Y2Z3");
    let mut file = File::create(&temporary).unwrap();
    for piece in content.chunks(50_000) {
        file.write_all(piece).unwrap();
    }
    file.sync_all().unwrap();
    fs::rename(temporary, a.at("note.md")).unwrap();
}

#[test]
fn a_save_by_truncating_and_writing_in_pieces() {
    saves_are_whole(Pace::Calm, UNHURRIED, 4, slowly);
}

#[test]
fn saves_in_pieces_one_right_after_the_other() {
    saves_are_whole(Pace::AtOnce, UNHURRIED, 6, slowly);
}

#[test]
fn a_save_by_rename_with_a_lock_and_an_auto_save_as_emacs_does() {
    for pace in [Pace::Calm, Pace::AtOnce] {
        saves_are_whole(pace, UNHURRIED, 6, as_emacs);
    }
}

fn as_emacs(a: &Device, content: &[u8]) {
    let (lock, auto_save, backup) = (a.at(".#note.md"), a.at("#note.md#"), a.at("note.md~"));
    symlink("somebody@somewhere.4711:1700000000", &lock).unwrap();
    fs::write(&auto_save, content).unwrap();
    fs::rename(a.at("note.md"), &backup).unwrap();
    fs::write(a.at("note.md"), content).unwrap();
    fs::remove_file(auto_save).unwrap();
    fs::remove_file(lock).unwrap();
    fs::remove_file(backup).unwrap();
}

#[test]
fn a_save_by_emptying_and_writing_the_open_file_as_vs_code_does() {
    for pace in [Pace::Calm, Pace::AtOnce] {
        saves_are_whole(pace, UNHURRIED, 6, as_vs_code);
    }
}

fn as_vs_code(a: &Device, content: &[u8]) {
    let mut file = OpenOptions::new().read(true).write(true).open(a.at("note.md")).unwrap();
    file.set_len(0).unwrap();
    thread::sleep(Duration::from_millis(2));
    file.write_all(content).unwrap();
}

#[test]
fn a_save_by_writing_over_the_old_content_in_place_as_rsync_can() {
    for pace in [Pace::Calm, Pace::AtOnce] {
        saves_are_whole(pace, UNHURRIED, 4, over_the_old);
    }
}

fn over_the_old(a: &Device, content: &[u8]) {
    // Neither its size nor, at the end, its time tells.
    let time = fs::metadata(a.at("note.md")).unwrap().modified().unwrap();
    loop {
        let file = OpenOptions::new().write(true).open(a.at("note.md")).unwrap();
        let longest = piece_by_piece(&file, content);
        file.set_modified(time).unwrap();
        if longest <= LONGEST_PAUSE {
            break;
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_save_by_sed() {
    for pace in [Pace::Calm, Pace::AtOnce] {
        saves_are_whole(pace, UNHURRIED, 6, |a, content| {
            let line = String::from_utf8(content[..7].to_vec()).unwrap();
            let sed =
                Command::new("sed").args(["-i", &format!("s/^.*$/{line}/"), "note.md"]).current_dir(&a.folder).status();
            assert!(sed.unwrap().success());
        });
    }
}

#[test]
fn branches_are_checked_out_in_the_folder() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=one"]);
        git.env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", &a.home);
        git.args(args).current_dir(&a.folder).output()
    };
    match git(&["init"]) {
        Err(e) => return left_out(&format!("no git here: {e}")),
        Ok(out) => assert!(out.status.success(), "{out:?}"),
    }
    let git = |args: &[&str]| {
        let out = git(args).unwrap();
        assert!(out.status.success(), "{args:?}: {out:?}");
    };
    let branch = |n: usize, files: std::ops::Range<usize>| {
        let all = files.map(|file| (format!("topics/{file}.md"), format!("{file} on {n}").into_bytes()));
        let mut all: Files = all.collect();
        all.insert(".memsyncignore".to_owned(), b".git/\n".to_vec());
        all
    };
    let branches = [branch(1, 0..60), branch(2, 20..80)];
    for (name, files) in ["one", "two"].into_iter().zip(&branches) {
        git(&["checkout", "-b", name]);
        for old in a.tree().keys().filter(|path| path.starts_with("topics/")) {
            a.remove(old);
        }
        files.iter().for_each(|(path, content)| a.write(path, content));
        git(&["add", "-A"]);
        git(&["commit", "-m", name]);
    }
    let checked_out = |device: &Device| -> Files {
        device.tree().into_iter().filter(|(path, _)| !path.starts_with(".git/")).collect()
    };
    a.start();
    b.start();
    for n in [0, 1, 0, 1, 0] {
        git(&["checkout", ["one", "two"][n]]);
        eventually("b has the branch", || checked_out(&b) == branches[n]);
    }
    // Faster than anybody can follow: the last one counts.
    for n in [1, 0, 1, 0, 1] {
        git(&["checkout", ["one", "two"][n]]);
    }
    eventually("b has the last", || checked_out(&b) == branches[1]);
    a.wait();
    assert_eq!((checked_out(&a) == branches[1], a.copies(), b.copies()), (true, vec![], vec![]));
    git(&["diff", "--exit-code"]);
}

/// A machine that stalls makes a pause that is a pause to anybody: then the save is done once more.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

fn slowly(a: &Device, content: &[u8]) {
    let open = || OpenOptions::new().write(true).truncate(true).open(a.at("note.md")).unwrap();
    while piece_by_piece(&open(), content) > LONGEST_PAUSE {}
}

/// A slow program; gives its longest pause.
fn piece_by_piece(mut file: &File, content: &[u8]) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    for piece in content.chunks(10_000) {
        file.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(3));
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}
