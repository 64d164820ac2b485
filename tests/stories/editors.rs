//! How editors save. Whatever they do, only whole contents become versions, and none looks like a deletion.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::world::{Device, World, eventually};

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
    saves_are_whole(Pace::Calm, "debounce = \"1500ms\"", 4, slowly);
}

#[test]
fn saves_in_pieces_one_right_after_the_other() {
    saves_are_whole(Pace::AtOnce, "debounce = \"1500ms\"", 6, slowly);
}

fn slowly(a: &Device, content: &[u8]) {
    // A stalled machine makes a pause that is a pause to anybody: then once more.
    while in_pieces(&a.at("note.md"), content) > Duration::from_millis(500) {}
}

/// A slow program; gives its longest pause.
fn in_pieces(at: &Path, content: &[u8]) -> Duration {
    let mut file = OpenOptions::new().write(true).truncate(true).open(at).unwrap();
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    for piece in content.chunks(10_000) {
        file.write_all(piece).unwrap();
        thread::sleep(Duration::from_millis(3));
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}
