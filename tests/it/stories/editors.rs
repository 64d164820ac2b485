//! The ways in which editors save. Only whole contents become versions, and no save looks like a deletion.

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

use crate::common::left_out::left_out;
use crate::common::world::{Device, Files, World, eventually};

const SIZE: usize = 400_000;

/// A content in which every line has the number of its version.
fn version(n: usize) -> Vec<u8> {
    format!("{n:07}\n").into_bytes().repeat(SIZE / 8)
}

/// Reads the file on the proxy and on the other device all the time.
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

    /// Checks that every content was one of `written`, and that the file was never missing.
    #[track_caller]
    fn saw_only(self, written: &[Vec<u8>]) {
        self.stop.store(true, Ordering::Relaxed);
        let (seen, missing) = self.thread.join().unwrap();
        for content in &seen {
            let first = String::from_utf8_lossy(&content[..content.len().min(8)]).into_owned();
            assert!(written.contains(content), "a partial content: {} bytes from {first:?}", content.len());
        }
        assert_eq!(missing, 0, "the file was never missing");
        assert!(!seen.is_empty());
    }
}

/// The time between two saves.
#[derive(Clone, Copy, PartialEq)]
enum SaveInterval {
    /// Until the other device has the last save.
    UntilSynced,
    None,
}

/// A debounce that a stalled machine does not reach in the middle of a save. A closed file does not wait for it.
const LONG_DEBOUNCE: &str = "debounce = \"30s\"";

/// Saves many times with `save`. The other device must get the last content, and only whole ones.
fn saves_are_whole(interval: SaveInterval, config: &str, saves: usize, save: impl Fn(&Device, &[u8])) {
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
        if interval == SaveInterval::UntilSynced {
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
fn vim_save_keeps_whole_contents() {
    for interval in [SaveInterval::UntilSynced, SaveInterval::None] {
        saves_are_whole(interval, "", 6, save_like_vim);
    }
}

fn save_like_vim(a: &Device, content: &[u8]) {
    let probe = a.at("4913");
    fs::write(&probe, "").unwrap();
    fs::remove_file(&probe).unwrap();
    a.rename("note.md", "note.md~");
    fs::write(a.at("note.md"), content).unwrap();
    fs::remove_file(a.at("note.md~")).unwrap();
}

#[test]
fn rename_over_keeps_whole_contents() {
    for interval in [SaveInterval::UntilSynced, SaveInterval::None] {
        saves_are_whole(interval, "", 6, save_by_rename);
    }
}

fn save_by_rename(a: &Device, content: &[u8]) {
    let temporary = a.at(".goutputstream-X1Y2Z3");
    let mut file = File::create(&temporary).unwrap();
    for piece in content.chunks(50_000) {
        file.write_all(piece).unwrap();
    }
    file.sync_all().unwrap();
    fs::rename(temporary, a.at("note.md")).unwrap();
}

#[test]
fn slow_save_keeps_whole_contents() {
    saves_are_whole(SaveInterval::UntilSynced, LONG_DEBOUNCE, 4, save_slowly);
}

#[test]
fn slow_saves_in_a_row_keep_whole_contents() {
    saves_are_whole(SaveInterval::None, LONG_DEBOUNCE, 6, save_slowly);
}

#[test]
fn emacs_save_keeps_whole_contents() {
    for interval in [SaveInterval::UntilSynced, SaveInterval::None] {
        saves_are_whole(interval, LONG_DEBOUNCE, 6, save_like_emacs);
    }
}

fn save_like_emacs(a: &Device, content: &[u8]) {
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
fn vs_code_save_keeps_whole_contents() {
    for interval in [SaveInterval::UntilSynced, SaveInterval::None] {
        saves_are_whole(interval, LONG_DEBOUNCE, 6, save_like_vs_code);
    }
}

fn save_like_vs_code(a: &Device, content: &[u8]) {
    let mut file = OpenOptions::new().read(true).write(true).open(a.at("note.md")).unwrap();
    file.set_len(0).unwrap();
    thread::sleep(Duration::from_millis(2));
    file.write_all(content).unwrap();
}

#[test]
fn overwriting_in_place_keeps_whole_contents() {
    for interval in [SaveInterval::UntilSynced, SaveInterval::None] {
        saves_are_whole(interval, LONG_DEBOUNCE, 4, overwrite_in_place);
    }
}

fn overwrite_in_place(a: &Device, content: &[u8]) {
    // The save changes neither size nor mtime.
    let time = fs::metadata(a.at("note.md")).unwrap().modified().unwrap();
    loop {
        let file = OpenOptions::new().write(true).open(a.at("note.md")).unwrap();
        let longest = write_in_pieces(&file, content);
        file.set_modified(time).unwrap();
        if longest <= MAX_PAUSE {
            break;
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn sed_save_keeps_whole_contents() {
    for interval in [SaveInterval::UntilSynced, SaveInterval::None] {
        saves_are_whole(interval, LONG_DEBOUNCE, 6, |a, content| {
            let line = String::from_utf8(content[..7].to_vec()).unwrap();
            let sed =
                Command::new("sed").args(["-i", &format!("s/^.*$/{line}/"), "note.md"]).current_dir(&a.folder).status();
            assert!(sed.unwrap().success());
        });
    }
}

#[test]
fn git_checkouts_in_the_folder_propagate() {
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
    // The other device cannot follow these. Only the last one counts.
    for n in [1, 0, 1, 0, 1] {
        git(&["checkout", ["one", "two"][n]]);
    }
    eventually("b has the last", || checked_out(&b) == branches[1]);
    a.wait();
    assert_eq!((checked_out(&a) == branches[1], a.copies(), b.copies()), (true, vec![], vec![]));
    git(&["diff", "--exit-code"]);
}

/// A stalled machine pauses a save longer than this. Then the save is repeated.
const MAX_PAUSE: Duration = Duration::from_millis(500);

fn save_slowly(a: &Device, content: &[u8]) {
    let open = || OpenOptions::new().write(true).truncate(true).open(a.at("note.md")).unwrap();
    while write_in_pieces(&open(), content) > MAX_PAUSE {}
}

/// Writes in pieces, as a slow program does. Returns the longest pause.
fn write_in_pieces(mut file: &File, content: &[u8]) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    for piece in content.chunks(10_000) {
        file.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(3));
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}
