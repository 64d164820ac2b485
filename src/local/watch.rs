//! [`FolderWatcher`]: turns the events of the filesystem into a [`DirtySet`].
//!
//! A hint may be late, doubled or wrong, because the scan checks each path. But no change may be lost without a word. If
//! the system cannot watch the folder (limits, unreadable folders, filesystems without events), the watcher asks for a full
//! scan at every poll interval, and reports the reason and a remedy. A scan compares sizes, inodes and times in
//! nanoseconds, so it is a better poll than notify's own poller, which compares seconds.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Config, ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use rustix::io::Errno;

use super::ScanScope;
use super::dirty::{DirtySet, TouchKind};
use super::ignore::IgnoreRules;
use super::scope::MAX_SCOPE_PATHS;
use crate::path::PRIVATE_DIR;

/// How to watch a folder.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Quiet time of a file that may still be open.
    pub debounce: Duration,
    /// Time between full scans while the system cannot watch.
    pub poll_interval: Duration,
    /// Poll without an attempt to watch.
    pub force_poll: bool,
    /// The paths that are not synced.
    pub rules: Arc<IgnoreRules>,
}

/// The folder cannot be watched at all.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct WatchError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// The way in which changes are noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchState {
    Inotify,
    FsEvents,
    /// By full scans, as configured.
    Poll,
    /// By full scans and the remaining events, because watching failed.
    Degraded {
        reason: String,
        /// An instruction for the user.
        remedy: String,
    },
}

impl WatchState {
    /// The word in `status --json`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Inotify => "inotify",
            Self::FsEvents => "fsevents",
            Self::Poll => "poll",
            Self::Degraded { .. } => "degraded",
        }
    }
}

#[cfg(target_os = "macos")]
const WATCHING: WatchState = WatchState::FsEvents;
#[cfg(not(target_os = "macos"))]
const WATCHING: WatchState = WatchState::Inotify;

/// The state that the notify thread and the caller share.
struct WatchShared {
    dirty: DirtySet,
    state: WatchState,
    /// When the next poll is due. `None` if polling is not needed.
    poll_at: Option<Instant>,
    poll_interval: Duration,
    rules: Arc<IgnoreRules>,
}

impl WatchShared {
    fn degrade(&mut self, (reason, remedy): (String, String), now: Instant) {
        self.state = WatchState::Degraded { reason, remedy };
        let at = now + self.poll_interval;
        self.poll_at = Some(self.poll_at.map_or(at, |before| before.min(at)));
    }

    /// Records an event below `root`. Returns true if the caller must set its timer anew.
    fn note(&mut self, root: &Path, event: &Event, now: Instant) -> bool {
        let touch = match event.kind {
            _ if event.need_rescan() => {
                return match event.paths.first().and_then(|path| below(root, path)) {
                    Some(dir) => self.dirty.touch_subtree(&dir, now),
                    None => self.dirty.touch_all(now),
                };
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => TouchKind::Closed,
            EventKind::Access(_) | EventKind::Other => return false,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => TouchKind::Finished,
            EventKind::Modify(ModifyKind::Metadata(_)) => TouchKind::Metadata,
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) => TouchKind::Writing,
        };
        let is_dir = event.kind == EventKind::Create(CreateKind::Folder);
        // A rename may be of a folder, to which the rules for files do not apply.
        let renamed = matches!(event.kind, EventKind::Modify(ModifyKind::Name(_)));
        let mut wake = false;
        for path in &event.paths {
            wake |= match below(root, path) {
                Some(path) if path.is_empty() => self.dirty.touch_all(now),
                // The folder's identity is gone. Every cycle checks it first.
                Some(path) if path == PRIVATE_DIR && touch == TouchKind::Finished => self.dirty.touch_all(now),
                Some(path)
                    if self.rules.ignored(&path, is_dir) && (is_dir || !renamed || self.rules.ignored(&path, true)) =>
                {
                    false
                }
                Some(path) if is_dir => self.dirty.touch_subtree(&path, now),
                Some(path) => self.dirty.touch(&path, touch, now),
                // The name is not UTF-8. The scan of its folder reports it to the user.
                None => match path.parent().and_then(|dir| below(root, dir)) {
                    Some(dir) if !self.rules.ignored(&dir, true) => self.dirty.touch_subtree(&dir, now),
                    Some(_) => false,
                    None => self.dirty.touch_all(now),
                },
            };
        }
        wake
    }
}

/// Watches one folder, until it is dropped.
pub struct FolderWatcher {
    root: PathBuf,
    shared: Arc<Mutex<WatchShared>>,
    system: Option<RecommendedWatcher>,
}

impl FolderWatcher {
    /// Starts to watch the folder `root`. Another thread calls `wake` whenever a path is due earlier than
    /// [`FolderWatcher::next_due`] has said; `wake` must not block. Earlier changes cause no events, so scan after the start.
    ///
    /// # Errors
    /// `root` is no folder. A failure to watch it is no error but [`WatchState::Degraded`].
    pub fn start(root: &Path, options: WatchOptions, wake: impl Fn() + Send + 'static) -> Result<Self, WatchError> {
        let error = |source| WatchError { path: root.to_owned(), source };
        // Events have the resolved path.
        let path = fs::canonicalize(root).map_err(error)?;
        if !fs::metadata(&path).map_err(error)?.is_dir() {
            return Err(error(io::ErrorKind::NotADirectory.into()));
        }
        let now = Instant::now();
        let shared = Arc::new(Mutex::new(WatchShared {
            dirty: DirtySet::new(options.debounce, MAX_SCOPE_PATHS),
            state: if options.force_poll { WatchState::Poll } else { WATCHING },
            poll_at: options.force_poll.then(|| now + options.poll_interval),
            poll_interval: options.poll_interval,
            rules: options.rules,
        }));
        let mut watcher = Self { root: path, shared, system: None };
        if !options.force_poll {
            watcher.start_system(wake);
        }
        Ok(watcher)
    }

    fn start_system(&mut self, wake: impl Fn() + Send + 'static) {
        let (root, shared) = (self.root.clone(), Arc::clone(&self.shared));
        let on_event = move |event: notify::Result<Event>| {
            let now = Instant::now();
            let mut shared = lock(&shared);
            let earlier = match event {
                Ok(event) => shared.note(&root, &event, now),
                Err(error) => {
                    shared.degrade(explain(&error), now);
                    shared.dirty.touch_all(now);
                    true
                }
            };
            drop(shared);
            if earlier {
                wake();
            }
        };
        let config = Config::default().with_follow_symlinks(false);
        match RecommendedWatcher::new(on_event, config) {
            Ok(system) => {
                self.system = Some(system);
                if let Err(error) = self.watch(&self.root.clone()) {
                    // At the limit, a partial watch would only starve the user's other programs.
                    if matches!(error.kind, ErrorKind::MaxFilesWatch) {
                        self.system = None;
                    }
                    lock(&self.shared).degrade(explain(&error), Instant::now());
                }
            }
            Err(error) => lock(&self.shared).degrade(explain(&error), Instant::now()),
        }
    }

    /// The way in which changes are noticed now.
    pub fn state(&self) -> WatchState {
        lock(&self.shared).state.clone()
    }

    /// When to call [`FolderWatcher::take_due`] next. It may return nothing then. `None`: after the next wake.
    pub fn next_due(&self) -> Option<Instant> {
        let shared = lock(&self.shared);
        shared.dirty.next_due().into_iter().chain(shared.poll_at).min()
    }

    /// True if a change was seen that has not been taken yet. A future poll does not count.
    pub fn changes_wait(&self) -> bool {
        lock(&self.shared).dirty.next_due().is_some()
    }

    /// Replaces the rules. The caller scans the paths that they now admit.
    pub(crate) fn set_rules(&self, rules: Arc<IgnoreRules>) {
        lock(&self.shared).rules = rules;
    }

    /// Takes the paths that are due at `now`. May block for a moment: it watches a new folder before it returns it, so that
    /// an event follows every change that the scan misses.
    pub fn take_due(&mut self, now: Instant) -> ScanScope {
        let (mut due, polled) = {
            let mut shared = lock(&self.shared);
            let polled = shared.poll_at.is_some_and(|at| at <= now);
            if polled {
                shared.poll_at = Some(now + shared.poll_interval);
            }
            (shared.dirty.due(now), polled)
        };
        due.full |= polled;
        for path in &due.paths {
            // A folder that was moved here, or has just become readable.
            if fs::symlink_metadata(self.root.join(path)).is_ok_and(|meta| meta.is_dir()) {
                due.subtrees.insert(path.clone());
            }
        }
        due.tidy();
        if due.full {
            self.watch_again("", now);
        }
        for dir in &due.subtrees {
            self.watch_again(dir, now);
        }
        due
    }

    /// Watches a folder with everything below it.
    fn watch(&mut self, dir: &Path) -> notify::Result<()> {
        let Some(system) = &mut self.system else { return Ok(()) };
        let mut tries = 0;
        loop {
            match system.watch(dir, RecursiveMode::Recursive) {
                // notify ends its walk if a folder below is removed meanwhile. The rest would not be watched.
                Err(e) if is_gone(&e) && tries < 3 && fs::symlink_metadata(dir).is_ok_and(|m| m.is_dir()) => tries += 1,
                Err(e) => return Err(e),
                Ok(()) => break,
            }
        }
        if cfg!(target_os = "linux") && dir == self.root {
            // Our own writes to the stage and the history need no events.
            match system.unwatch(&dir.join(PRIVATE_DIR)) {
                Err(e) if !matches!(e.kind, ErrorKind::WatchNotFound) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Watches a folder once more. inotify watches each folder by itself. notify adds a new folder only after the event for
    /// it, and stops silently at the first failure. A second call waits for its thread and returns the error. FSEvents
    /// watches whole trees.
    fn watch_again(&mut self, dir: &str, now: Instant) {
        if !cfg!(target_os = "linux") || self.system.is_none() {
            return;
        }
        let result = self.watch(&self.root.join(dir));
        let mut shared = lock(&self.shared);
        match result {
            Ok(()) if dir.is_empty() => {
                // The whole folder is watched again.
                shared.state = WATCHING;
                shared.poll_at = None;
            }
            Ok(()) => {}
            // The folder was removed, and an event will say so. The root has no event for that.
            Err(e) if is_gone(&e) && !dir.is_empty() => {}
            Err(e) => shared.degrade(explain(&e), now),
        }
    }
}

fn lock(shared: &Mutex<WatchShared>) -> MutexGuard<'_, WatchShared> {
    // A panic of another thread can lose a hint at worst. The periodic scan makes up for it.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `path` relative to `root`. `None` if it is not below `root` or not UTF-8.
fn below(root: &Path, path: &Path) -> Option<String> {
    let path = path.strip_prefix(root).ok()?;
    let mut text = String::with_capacity(path.as_os_str().len());
    for component in path.components() {
        let Component::Normal(name) = component else { return None };
        if !text.is_empty() {
            text.push('/');
        }
        text.push_str(name.to_str()?);
    }
    Some(text)
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(e) => e.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The reason and the remedy, as text for the user.
fn explain(error: &notify::Error) -> (String, String) {
    let path = error.paths.first().map_or_else(|| "the folder".to_owned(), |path| path.display().to_string());
    match &error.kind {
        ErrorKind::MaxFilesWatch => (
            "the system's limit of inotify watches is reached (one is needed for every folder)".to_owned(),
            "sudo sysctl fs.inotify.max_user_watches=524288, and the same line in /etc/sysctl.d/ to keep it; then \
             restart memsync"
                .to_owned(),
        ),
        ErrorKind::Io(e) if e.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => (
            "the system's limit of inotify instances or of open files is reached".to_owned(),
            "sudo sysctl fs.inotify.max_user_instances=1024, and the same line in /etc/sysctl.d/ to keep it (or raise \
             `ulimit -n`); then restart memsync"
                .to_owned(),
        ),
        ErrorKind::Io(e) if e.kind() == io::ErrorKind::PermissionDenied => (
            format!("{path} cannot be watched: {e}"),
            format!("give memsync's user the right to read {path}, or move it out of the folder"),
        ),
        _ if is_gone(error) => (format!("{path} is not there"), format!("bring {path} back")),
        other => {
            let why = match other {
                ErrorKind::Io(e) => e.to_string(),
                ErrorKind::Generic(why) => why.clone(),
                _ => error.to_string(),
            };
            (format!("{path} cannot be watched: {why}"), "see `memsync doctor`".to_owned())
        }
    }
}

#[cfg(test)]
#[path = "watch/tests.rs"]
mod tests;
