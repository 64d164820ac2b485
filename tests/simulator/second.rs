//! A second process changes files of the folder while the first one sweeps and places downloads, without a lock. The
//! product has a lock. These tests show that no text is lost without it either.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use fastrand::Rng;
use jiff::Timestamp;
use memsync::digest::Md5;
use memsync::disk::{Disk, DiskFile, FileMeta};
use memsync::local::{FileMove, Folder, FolderChange};
use memsync::path::RelPath;
use memsync::testing::{SimDisk, StepFate, StepKind};

/// The steps that the second process may still take.
#[derive(Default)]
struct Pace {
    state: Mutex<PaceState>,
    changed: Condvar,
}

#[derive(Default)]
struct PaceState {
    steps: u64,
    /// It waits at a step, or has ended.
    waits: bool,
    ended: bool,
}

impl Pace {
    /// Called by the second process: returns when a step is allowed.
    fn step(&self) {
        let mut state = self.state.lock().unwrap();
        while state.steps == 0 {
            state.waits = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
        }
        state.steps -= 1;
        state.waits = false;
    }

    fn end(&self) {
        let mut state = self.state.lock().unwrap();
        (state.waits, state.ended) = (true, true);
        self.changed.notify_all();
    }

    /// Called by the first process: allows `steps` more steps. False: the second one has ended.
    fn advance(&self, steps: u64) -> bool {
        let mut state = self.state.lock().unwrap();
        state.steps = if state.ended { 0 } else { steps };
        self.changed.notify_all();
        while !(state.ended || (state.waits && state.steps == 0)) {
            state = self.changed.wait(state).unwrap();
        }
        !state.ended
    }
}

/// A disk whose every operation waits for permission.
struct Paced {
    disk: SimDisk,
    pace: Arc<Pace>,
}

struct PacedFile {
    file: <SimDisk as Disk>::File,
    pace: Arc<Pace>,
}

impl Paced {
    fn next(&self) -> &SimDisk {
        self.pace.step();
        &self.disk
    }

    fn file(&self, opened: io::Result<<SimDisk as Disk>::File>) -> io::Result<PacedFile> {
        opened.map(|file| PacedFile { file, pace: self.pace.clone() })
    }
}

impl DiskFile for PacedFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.pace.step();
        self.file.read(buf)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pace.step();
        self.file.write_all(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.pace.step();
        self.file.sync()
    }

    fn meta(&self) -> io::Result<FileMeta> {
        self.file.meta()
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file.set_mode(mode)
    }
}

impl Disk for Paced {
    type File = PacedFile;

    fn list(&self, dir: &str) -> io::Result<Vec<(OsString, FileMeta)>> {
        self.next().list(dir)
    }

    fn stat(&self, path: &str) -> io::Result<FileMeta> {
        self.next().stat(path)
    }

    fn open(&self, path: &str) -> io::Result<PacedFile> {
        self.file(self.next().open(path))
    }

    fn create(&self, path: &str) -> io::Result<PacedFile> {
        self.file(self.next().create(path))
    }

    fn append(&self, path: &str) -> io::Result<PacedFile> {
        self.file(self.next().append(path))
    }

    fn mkdir(&self, dir: &str) -> io::Result<()> {
        self.next().mkdir(dir)
    }

    fn rmdir(&self, dir: &str) -> io::Result<()> {
        self.next().rmdir(dir)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.next().unlink(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.next().rename(from, to)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.next().rename_new(from, to)
    }

    fn exchange(&self, a: &str, b: &str) -> io::Result<()> {
        self.next().exchange(a, b)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.next().sync_dir(dir)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.next().sync_all()
    }
}

const PATHS: [&str; 2] = ["a.md", "n/b.md"];
/// Contents that the commands write. No other process changes them.
const SOURCES: [&str; 3] = ["v1", "v2", "v3"];

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

/// Contents that users wrote and did not overwrite.
#[derive(Default)]
struct Written {
    all: BTreeSet<Bytes>,
    count: u32,
}

impl Written {
    fn edit(&mut self, disk: &SimDisk, path: &str) {
        if let Ok(old) = disk.user_read(path) {
            self.all.remove(&old);
        }
        self.count += 1;
        let content = Bytes::from(format!("written {}", self.count));
        if disk.user_write(path, content.clone()).is_ok() {
            self.all.insert(content);
        }
    }
}

/// The second process makes a few changes in turn, until it is done or dies.
fn run_commands(disk: SimDisk, pace: Arc<Pace>, mut rng: Rng) {
    let folder = Folder::new(Arc::new(Paced { disk, pace: pace.clone() }), "second", rng.u64(..));
    for _ in 0..rng.usize(1..4) {
        let at = PATHS[rng.usize(..PATHS.len())].to_owned();
        let change = match rng.u8(..4) {
            0 => FolderChange::Trash { at },
            _ => FolderChange::Put { from: SOURCES[rng.usize(..SOURCES.len())].to_owned(), at },
        };
        // It may lose a race or die. Only the contents count.
        let _ = folder.change(&change, now());
    }
    pace.end();
}

/// How the first process sweeps the stage.
type Sweep = fn(&Folder<SimDisk>) -> io::Result<()>;

fn sweep(folder: &Folder<SimDisk>) -> io::Result<()> {
    folder.sweep(now()).map(drop)
}

/// Removes everything that it listed, without a second check.
fn sweep_blindly(folder: &Folder<SimDisk>) -> io::Result<()> {
    const STAGE: &str = ".memsync/stage";
    let listed = folder.disk().list(STAGE)?;
    folder.disk().sync_all()?;
    for name in listed.iter().filter_map(|(name, _)| name.to_str()).filter(|name| !name.ends_with(".intent")) {
        match folder.disk().unlink(&format!("{STAGE}/{name}")) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// The first process sweeps, and replaces a file as sync does.
fn run_agent(disk: &SimDisk, rng: &mut Rng, sweep: Sweep) {
    let folder = Folder::new(Arc::new(disk.handle()), "first", rng.u64(..));
    if sweep(&folder).is_err() || rng.bool() {
        return;
    }
    let at = PATHS[rng.usize(..PATHS.len())];
    let Ok(Some(found)) = memsync::local::source::digest(folder.disk(), at, &mut Vec::new()) else { return };
    let content = Bytes::from(format!("download {}", rng.u64(..)));
    let staged = folder.stage().and_then(|mut staging| {
        staging.write(content.clone())?;
        staging.finish(Md5::of(&content))
    });
    if let Ok(staged) = staged {
        let path = RelPath::parse(at).unwrap();
        // It may lose a race or die, too.
        let _ =
            folder.perform(vec![FileMove::Replace { path, at: at.to_owned(), staged, expect: found.md5 }], &[], now());
    }
}

/// Runs both processes at once, with the timing of a seed.
fn run(seed: u64, sweep: Sweep) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let disk = SimDisk::new();
    let written = Arc::new(Mutex::new(Written::default()));
    PATHS.iter().for_each(|path| written.lock().unwrap().edit(&disk, path));
    for source in SOURCES {
        disk.user_write(source, source.to_owned()).map_err(|e| e.to_string())?;
    }
    let pace = Arc::new(Pace::default());
    let second = disk.handle();
    let commands = {
        let (disk, pace, rng) = (second.clone(), pace.clone(), rng.fork());
        std::thread::spawn(move || run_commands(disk, pace, rng))
    };
    let no_exchange = rng.u8(..4) == 0;
    let (mut chance, edits, paced) = (rng.fork(), written.clone(), pace.clone());
    disk.set_hook(Some(Box::new(move |op| {
        paced.advance(if chance.bool() { chance.u64(..6) } else { 0 });
        match chance.u8(..100) {
            0 => return StepFate::Kill,
            1 => second.kill(),
            2 => edits.lock().unwrap().edit(op.disk, PATHS[chance.usize(..PATHS.len())]),
            _ => {}
        }
        let fails = no_exchange && op.kind == StepKind::Exchange;
        if fails { StepFate::Fail(ErrorKind::Unsupported) } else { StepFate::Go }
    })));
    for _ in 0..rng.usize(1..5) {
        run_agent(&disk, &mut rng, sweep);
    }
    disk.set_hook(None);
    pace.advance(u64::MAX);
    commands.join().map_err(|_| "the second process panicked".to_owned())?;
    let folder = Folder::new(Arc::new(disk.handle()), "first", rng.u64(..));
    // The last sweep may leave work for a second one, such as a copy for history.
    for _ in 0..2 {
        folder.sweep(now()).map_err(|e| format!("the sweep: {e}"))?;
    }
    let stage = disk.user_tree(".memsync/stage");
    if !stage.is_empty() {
        return Err(format!("the stage still holds {stage:?}"));
    }
    let safe: BTreeSet<Bytes> =
        disk.user_tree("").into_values().chain(disk.user_tree(".memsync/history").into_values()).collect();
    match written.lock().unwrap().all.iter().find(|content| !safe.contains(*content)) {
        Some(lost) => Err(format!("lost: {lost:?}")),
        None => Ok(()),
    }
}

#[test]
fn nothing_is_lost_beside_a_second_process() {
    let first = super::number("MEMSYNC_SIM_SEED").unwrap_or(1);
    let count = super::number("MEMSYNC_SIM_SCHEDULES").unwrap_or(5_000).min(100_000);
    for seed in first..first + count {
        if let Err(why) = run(seed, sweep) {
            panic!("seed {seed}: {why}");
        }
    }
}

#[test]
fn planted_bug_sweep_without_another_look_loses_a_file() {
    let lost = (1..5_000).find(|seed| run(*seed, sweep_blindly).is_err_and(|why| why.starts_with("lost: ")));
    assert!(lost.is_some(), "no schedule lost a file by it");
}
