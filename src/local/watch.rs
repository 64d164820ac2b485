//! [`FolderWatcher`]: turns what the system says about the folder into a [`DirtySet`].
//!
//! Its hints may be late, doubled or wrong, and the caller re-stats whatever it names; what it must not do is lose
//! a change without saying so. Where the system cannot watch (limits, unreadable folders, filesystems that tell
//! nothing), it asks for a full scan at every poll interval and says why and what to do about it. A scan compares
//! size, both times in nanoseconds and the inode, so it serves as the poll better than notify's own poller, which
//! compares seconds.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Config, ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use rustix::io::Errno;

use super::ScanScope;
use super::dirty::{DirtySet, MAX_PATHS, Touch};
use super::ignore::IgnoreRules;
use crate::path::PRIVATE_DIR;

/// How to watch.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Quiet time of a write that is not known to be finished.
    pub debounce: Duration,
    /// Time between full scans where the system cannot watch.
    pub poll_interval: Duration,
    /// Do not try to watch.
    pub force_poll: bool,
    /// Paths that take no part.
    pub rules: Arc<IgnoreRules>,
}

/// Why the folder cannot be watched at all.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct WatchError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// How changes are noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchState {
    Inotify,
    FsEvents,
    /// By full scans, as asked for.
    Poll,
    /// By full scans (and what the system still tells), although watching was asked for.
    Degraded {
        reason: String,
        /// What a person can do about it.
        remedy: String,
    },
}

impl WatchState {
    /// The word of `status --json`.
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

/// What the system's thread and the caller share.
struct Shared {
    dirty: DirtySet,
    state: WatchState,
    /// When the next full scan is due, where polling is needed.
    poll_at: Option<Instant>,
    poll_interval: Duration,
    rules: Arc<IgnoreRules>,
}

impl Shared {
    fn degrade(&mut self, (reason, remedy): (String, String), now: Instant) {
        self.state = WatchState::Degraded { reason, remedy };
        let at = now + self.poll_interval;
        self.poll_at = Some(self.poll_at.map_or(at, |before| before.min(at)));
    }

    /// Notes an event below `root`. Gives whether the caller's timer must be set anew.
    fn note(&mut self, root: &Path, event: &Event, now: Instant) -> bool {
        let touch = match event.kind {
            _ if event.need_rescan() => {
                return match event.paths.first().and_then(|path| below(root, path)) {
                    Some(dir) => self.dirty.touch_subtree(&dir, now),
                    None => self.dirty.touch_all(now),
                };
            }
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Touch::Closed,
            EventKind::Access(_) | EventKind::Other => return false,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => Touch::Finished,
            EventKind::Modify(ModifyKind::Metadata(_)) => Touch::Metadata,
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) => Touch::Writing,
        };
        let is_dir = event.kind == EventKind::Create(CreateKind::Folder);
        // What a rename names may be a folder, to which the rules for files do not apply.
        let renamed = matches!(event.kind, EventKind::Modify(ModifyKind::Name(_)));
        let mut wake = false;
        for path in &event.paths {
            wake |= match below(root, path) {
                Some(path) if path.is_empty() => self.dirty.touch_all(now),
                // The folder's identity is gone. Every cycle checks it first.
                Some(path) if path == PRIVATE_DIR && touch == Touch::Finished => self.dirty.touch_all(now),
                Some(path)
                    if self.rules.ignored(&path, is_dir) && (is_dir || !renamed || self.rules.ignored(&path, true)) =>
                {
                    false
                }
                Some(path) if is_dir => self.dirty.touch_subtree(&path, now),
                Some(path) => self.dirty.touch(&path, touch, now),
                // No UTF-8: the scan of the folder it is in says so to the user.
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

/// Watches one folder. Dropping it ends the watch.
pub struct FolderWatcher {
    root: PathBuf,
    shared: Arc<Mutex<Shared>>,
    system: Option<RecommendedWatcher>,
}

impl FolderWatcher {
    /// Starts watching the folder `root`. `wake` is called, from another thread, whenever something is due
    /// earlier than [`FolderWatcher::next_due`] said before; it must not block.
    ///
    /// Changes from before the start are not told: start, then scan.
    ///
    /// # Errors
    /// When `root` is no folder that can be resolved. Failing to watch is no error but [`WatchState::Degraded`].
    pub fn start(root: &Path, options: WatchOptions, wake: impl Fn() + Send + 'static) -> Result<Self, WatchError> {
        let error = |source| WatchError { path: root.to_owned(), source };
        // Events name the resolved path.
        let path = fs::canonicalize(root).map_err(error)?;
        if !fs::metadata(&path).map_err(error)?.is_dir() {
            return Err(error(io::ErrorKind::NotADirectory.into()));
        }
        let now = Instant::now();
        let shared = Arc::new(Mutex::new(Shared {
            dirty: DirtySet::new(options.debounce, MAX_PATHS),
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
        let told = move |event: notify::Result<Event>| {
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
        match RecommendedWatcher::new(told, config) {
            Ok(system) => {
                self.system = Some(system);
                if let Err(error) = self.watch(&self.root.clone()) {
                    // At the limit, the watches got so far would only starve the other programs of this user.
                    if matches!(error.kind, ErrorKind::MaxFilesWatch) {
                        self.system = None;
                    }
                    lock(&self.shared).degrade(explain(&error), Instant::now());
                }
            }
            Err(error) => lock(&self.shared).degrade(explain(&error), Instant::now()),
        }
    }

    /// How changes are noticed now.
    pub fn state(&self) -> WatchState {
        lock(&self.shared).state.clone()
    }

    /// When to call [`FolderWatcher::take_due`] next; `None`: after the next wake. What it gives then may be nothing.
    pub fn next_due(&self) -> Option<Instant> {
        let shared = lock(&self.shared);
        shared.dirty.next_due().into_iter().chain(shared.poll_at).min()
    }

    /// Whether a change has been seen that was not yet taken. A poll that is to come is none.
    pub fn changes_wait(&self) -> bool {
        lock(&self.shared).dirty.next_due().is_some()
    }

    /// Replaces the rules. What they newly let in is for the caller to scan.
    pub fn set_rules(&self, rules: Arc<IgnoreRules>) {
        lock(&self.shared).rules = rules;
    }

    /// Takes what is due at `now`. May block for a moment: before it names a new folder it sees to it that the
    /// folder is watched, so that whatever the caller's scan misses is told later.
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
            // A folder that came by a rename, or that can be read only now.
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

    /// Watches a folder and all below it.
    fn watch(&mut self, dir: &Path) -> notify::Result<()> {
        let Some(system) = &mut self.system else { return Ok(()) };
        let mut tries = 0;
        loop {
            match system.watch(dir, RecursiveMode::Recursive) {
                // A folder below it went while notify walked, which ends its walk: the rest would go unwatched.
                Err(e) if is_gone(&e) && tries < 3 && fs::symlink_metadata(dir).is_ok_and(|m| m.is_dir()) => tries += 1,
                Err(e) => return Err(e),
                Ok(()) => break,
            }
        }
        if cfg!(target_os = "linux") && dir == self.root {
            // Staging and history are our own noise. Not there, not watched: fine as well.
            match system.unwatch(&dir.join(PRIVATE_DIR)) {
                Err(e) if !matches!(e.kind, ErrorKind::WatchNotFound) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// inotify watches folders one by one, and notify adds new ones only after it has told of them, giving up
    /// silently on the first that cannot be added. Adding them once more waits for its thread and shows errors.
    /// FSEvents watches the whole tree by itself.
    fn watch_again(&mut self, dir: &str, now: Instant) {
        if !cfg!(target_os = "linux") || self.system.is_none() {
            return;
        }
        let result = self.watch(&self.root.join(dir));
        let mut shared = lock(&self.shared);
        match result {
            Ok(()) if dir.is_empty() => {
                // All of it is watched: whatever stood in the way is mended.
                shared.state = WATCHING;
                shared.poll_at = None;
            }
            Ok(()) => {}
            // It went again; its removal is told. The root's is not, once its watch is gone.
            Err(e) if is_gone(&e) && !dir.is_empty() => {}
            Err(e) => shared.degrade(explain(&e), now),
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A panic while it was held leaves at worst a hint unnoted; the periodic scan makes up for it.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `path` relative to `root`; `None` where it is not below it or is no UTF-8.
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

/// Reason and remedy.
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
