//! [`Worker`]: one thread a folder. It opens the folder, has it run ([`super::turns`]), and opens it again when it was
//! moved, replaced or damaged. Requests, files and the connection for events are all served by this thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::{Timestamp, Unit};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::local::watch::{Options as WatchOptions, Watcher};
use crate::protocol::capability;
use crate::remote::http::HttpRemote;
use crate::state::{Lock, Pause};
use crate::sync::Plan;

use super::change::{ChangeRequest, change_closed};
use super::conditions::{Conditions, LogLine};
use super::last_known::note;
use super::session::{FolderSetup, OpenError, Session};
use super::shared::{Shared, lock};
use super::standstill::Standstill;
use super::status::{FolderStatus, ProxyStatus, State};
use super::turns::{FIRST_RETRY, Running};

/// How soon a folder that could not be opened is tried again.
const REOPEN: Duration = Duration::from_secs(2);
/// The longest such wait; each try in vain doubles it.
const LONGEST_REOPEN: Duration = Duration::from_secs(15);

/// A status that stays the same is noted again after this time, for its age.
const NOTE: Duration = Duration::from_secs(300);

/// A pause that lasts.
#[derive(Debug, Clone, Copy)]
pub struct Paused {
    /// `None`: it ends when the user resumes.
    pub(super) until: Option<Instant>,
    /// The same, on the wall clock.
    pub(super) shown: Option<Timestamp>,
}

impl Paused {
    /// `None`: the pause is over.
    pub(super) fn of(pause: &Pause) -> Option<Self> {
        let left = pause.left(Timestamp::now());
        let until = left.and_then(|left| Instant::now().checked_add(left));
        (left != Some(Duration::ZERO)).then_some(Self { until, shown: pause.until })
    }
}

/// Why nothing is synced during a pause, and what ends it.
pub(super) fn pause_reason(until: Option<Timestamp>) -> String {
    match until.and_then(|at| at.round(Unit::Second).ok()) {
        Some(at) => format!("paused until {at}; `memsync resume` goes on sooner"),
        None => "paused; `memsync resume` goes on".to_owned(),
    }
}

/// Where the outcome of an approval goes; false: no such plan.
type ApprovalAnswer = oneshot::Sender<Result<bool, String>>;

/// What a worker can be told.
pub enum Command {
    /// A full scan and cycles until nothing is left or one fails; then the answer.
    Sync(oneshot::Sender<()>),
    /// What a cycle would do now, or what keeps it from being found out.
    Plan(oneshot::Sender<Result<Plan, Standstill>>),
    Pause(Pause),
    Resume,
    Approve {
        id: String,
        reject: bool,
        answer: ApprovalAnswer,
    },
    Reload(Box<FolderSetup>),
    Change(ChangeRequest),
    Stop,
}

/// How a session came to its end.
pub(super) enum Ended {
    Stop,
    /// Open it anew, with these settings if any.
    Reopen {
        setup: Option<Box<FolderSetup>>,
        wait: bool,
    },
}

/// How the wait before the folder is opened again ended.
enum Rested {
    Stop,
    Reopen,
    /// A person approved of the folder as it is now.
    Approved {
        id: String,
        answer: ApprovalAnswer,
    },
}

/// The thread's own.
pub struct Worker {
    pub setup: FolderSetup,
    pub shared: Arc<Shared>,
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// Wakes the worker: the watcher, server events, USR1.
    pub wake: Arc<Notify>,
    /// Set by the owner: the end, even in the midst of a scan.
    quit: Arc<AtomicBool>,
    /// Held from start to end.
    _lock: Lock,
    /// The last note without its times, and when it was written.
    last_note: Option<(FolderStatus, Instant)>,
    conditions: Conditions,
    pub(super) paused: Option<Paused>,
    /// Commands that came while a cycle ran.
    pub(super) backlog: VecDeque<Command>,
    reopen: Duration,
}

impl Worker {
    pub fn new(
        setup: FolderSetup,
        shared: Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
        wake: Arc<Notify>,
        quit: Arc<AtomicBool>,
        lock: Lock,
    ) -> Self {
        Self {
            setup,
            shared,
            commands,
            wake,
            quit,
            _lock: lock,
            last_note: None,
            conditions: Conditions::default(),
            paused: None,
            backlog: VecDeque::new(),
            reopen: REOPEN,
        }
    }

    /// The next command, those first that have waited; `None` when nobody can send one any more.
    pub(super) async fn next_command(&mut self) -> Option<Command> {
        match self.backlog.pop_front() {
            Some(command) => Some(command),
            None => self.commands.recv().await,
        }
    }

    /// A command that is there already.
    pub(super) fn waiting_command(&mut self) -> Option<Command> {
        self.backlog.pop_front().or_else(|| self.commands.try_recv().ok())
    }

    /// Until told to stop.
    pub async fn run(mut self) {
        let mut rested = Rested::Reopen;
        loop {
            let opened = match std::mem::replace(&mut rested, Rested::Reopen) {
                Rested::Stop => break,
                Rested::Reopen => Session::open(&self.setup),
                Rested::Approved { id, answer } => self.open_approved(&id, answer),
            };
            let ended = match opened {
                Ok(mut session) => {
                    session.engine.obey(self.quit.clone());
                    let began = Instant::now();
                    let ended = self.session(session).await;
                    if began.elapsed() > LONGEST_REOPEN {
                        self.reopen = REOPEN;
                    }
                    ended
                }
                Err(e) => {
                    self.not_opened(&e);
                    Ended::Reopen { setup: None, wait: true }
                }
            };
            match ended {
                Ended::Stop => break,
                Ended::Reopen { setup, wait } => {
                    if let Some(setup) = setup {
                        self.take_over(*setup);
                    }
                    if wait {
                        rested = self.rest().await;
                    }
                }
            }
        }
        self.shared.set(|s| {
            s.state = State::Stopped;
            s.in_sync = false;
            s.reason = Some("the agent was stopped".to_owned());
        });
        self.last_note = None;
        self.note();
    }

    /// Opens a folder that a person approved of, and tells whether that worked. Without such a halt it is opened as usual.
    fn open_approved(&mut self, id: &str, answer: ApprovalAnswer) -> Result<Session, OpenError> {
        let approved = Session::open_approved(&self.setup, id);
        let outcome = approved.as_ref().map(Option::is_some).map_err(ToString::to_string);
        let _ = answer.send(outcome); // The caller may have gone.
        let Some(session) = approved? else { return Session::open(&self.setup) };
        let root = session.root.path().to_owned();
        tracing::info!(folder = %root.display(), "approved: this is the folder from now on");
        self.shared.set_halts(Vec::new());
        self.shared.set(|s| {
            s.path = root.display().to_string();
            s.state = State::Syncing;
            s.reason = None;
            s.halt = None;
        });
        self.setup.root = root;
        Ok(session)
    }

    fn take_over(&mut self, setup: FolderSetup) {
        self.setup = setup;
        self.reopen = REOPEN;
        let mut proxy = lock(&self.shared.proxy);
        if proxy.url != self.setup.http.origin {
            *proxy = ProxyStatus::unasked(&self.setup.http.origin);
        }
        drop(proxy);
        self.shared.set(|s| s.namespace.clone_from(&self.setup.namespace));
    }

    fn not_opened(&mut self, e: &OpenError) {
        tracing::debug!(folder = %self.setup.root.display(), "{e}");
        self.stand_still(Standstill::from(e));
    }

    /// The folder is not synced for now.
    pub(super) fn stand_still(&mut self, why: Standstill) {
        self.shared.set_halts(why.halt.iter().cloned().collect());
        self.shared.set(|s| {
            s.in_sync = false;
            s.state = why.state;
            s.waits_for = why.waits_for;
            s.reason = Some(why.reason);
            s.halt = why.halt;
        });
        self.note();
        self.log_conditions();
    }

    /// Logs what has begun and what is over since the last status that a cycle led to.
    pub(super) fn log_conditions(&mut self) {
        let folder = self.setup.root.display().to_string();
        for line in self.conditions.update(&self.shared.status()) {
            match line {
                LogLine::Warn(text) => tracing::warn!(folder, "{text}"),
                LogLine::Info(text) => tracing::info!(folder, "{text}"),
            }
        }
    }

    /// Waits before the folder is opened again.
    async fn rest(&mut self) -> Rested {
        let until = tokio::time::Instant::now() + self.reopen;
        self.reopen = (self.reopen * 2).min(LONGEST_REOPEN);
        *lock(&self.shared.next_cycle) = Some(until.into_std());
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Rested::Reopen,
                command = self.next_command() => match command {
                    None | Some(Command::Stop) => return Rested::Stop,
                    Some(Command::Reload(setup)) => {
                        self.take_over(*setup);
                        return Rested::Reopen;
                    }
                    Some(Command::Sync(answer)) => drop(answer.send(())),
                    Some(Command::Plan(answer)) => {
                        let FolderStatus { state, waits_for, reason, halt, .. } = self.shared.status();
                        let reason = reason.unwrap_or_else(|| "the folder is being opened; ask again in a moment".to_owned());
                        drop(answer.send(Err(Standstill { state, waits_for, reason, halt })));
                    }
                    Some(Command::Pause(pause)) => self.paused = Paused::of(&pause),
                    Some(Command::Resume) => self.paused = None,
                    Some(Command::Approve { id, reject: false, answer }) => return Rested::Approved { id, answer },
                    // The caller may have gone.
                    Some(Command::Approve { answer, .. }) => drop(answer.send(Ok(false))),
                    Some(Command::Change(request)) => request.carry_out(|change| change_closed(&self.setup, change)),
                },
            }
        }
    }

    async fn session(&mut self, session: Session) -> Ended {
        let wake = self.wake.clone();
        let options = WatchOptions {
            debounce: self.setup.debounce,
            poll_interval: self.setup.interval,
            force_poll: false,
            rules: session.rules.shared.get(),
        };
        let watcher = match Watcher::start(&self.setup.root, options, move || wake.notify_one()) {
            Ok(watcher) => watcher,
            Err(e) => {
                self.stand_still(Standstill::on_disk(e));
                return Ended::Reopen { setup: None, wait: true };
            }
        };
        self.shared.watched_by(&watcher);
        *lock(&self.shared.progress) = Some(session.engine.progress());
        let hint = Arc::new(AtomicBool::new(false));
        let events = tokio::spawn(listen(
            session.remote.clone(),
            self.shared.clone(),
            hint.clone(),
            self.wake.clone(),
            self.setup.interval,
        ));
        let ended = Running::new(self, session, watcher, hint).run().await;
        events.abort();
        ended
    }

    /// Keeps the status for `memsync status` while no agent runs. Written when something changed, and now and then for its age.
    pub(super) fn note(&mut self) {
        let mut status = self.shared.status();
        status.next_sync_s = None;
        status.progress = None;
        let lasting = FolderStatus { last_success: None, counted_at: None, ..status.clone() };
        if self.last_note.as_ref().is_some_and(|(told, at)| *told == lasting && at.elapsed() < NOTE) {
            return;
        }
        match note(&self.setup, &status) {
            Ok(()) => self.last_note = Some((lasting, Instant::now())),
            Err(e) => tracing::warn!("{}: {e}", self.setup.status_file.display()),
        }
    }
}
/// Holds the connection on which the proxy tells of changes. All of it is a hint over the poll.
async fn listen(
    remote: Arc<HttpRemote>,
    shared: Arc<Shared>,
    hint: Arc<AtomicBool>,
    wake: Arc<Notify>,
    interval: Duration,
) {
    let mut failures = 0u32;
    loop {
        let supported = match remote.capabilities().await {
            Ok(all) => {
                lock(&shared.proxy).capabilities = all.to_vec();
                all.iter().any(|c| c == capability::EVENTS)
            }
            Err(_) => false,
        };
        if supported {
            let heard = AtomicBool::new(false);
            let look = || {
                hint.store(true, Ordering::Relaxed);
                wake.notify_one();
            };
            // What changed after the last cycle looked and before the proxy was listened to, nobody tells of.
            let e = remote
                .listen(None, look, |_| {
                    heard.store(true, Ordering::Relaxed);
                    shared.push.hear();
                    look();
                })
                .await;
            tracing::debug!("events: {e}");
            failures = if heard.into_inner() { 0 } else { failures + 1 };
            // Whether the proxy is there is found out at once.
            look();
        } else {
            failures += 1;
        }
        tokio::time::sleep(FIRST_RETRY.saturating_mul(1 << failures.min(6)).min(interval)).await;
    }
}
