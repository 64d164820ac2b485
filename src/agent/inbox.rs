//! [`TaskInbox`]: the commands, the pause and the wake-ups of a folder's task, also while the engine is busy.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};

use crate::local::ScanScope;
use crate::sync::Plan;

use super::change::ChangeRequest;
use super::cycle::{CycleError, CycleReport};
use super::open_folder::OpenFolder;
use super::pause::PauseReceiver;
use super::setup::FolderSetup;
use super::standstill::Standstill;

/// A command that ends the running cycle waits this long for the requests in flight.
const STOP_GRACE: Duration = Duration::from_secs(8);

/// Gets the result of an approval. False: no such plan.
pub(super) type ApprovalAnswer = oneshot::Sender<Result<bool, String>>;

pub(super) type CommandSender = mpsc::UnboundedSender<FolderCommand>;

/// A command to one folder's task.
pub(super) enum FolderCommand {
    /// Scan everything, and run cycles until nothing is left or one fails; then answer.
    Sync(oneshot::Sender<()>),
    /// Plan a cycle without running it.
    Plan(oneshot::Sender<Result<Plan, Standstill>>),
    Approve {
        id: String,
        reject: bool,
        answer: ApprovalAnswer,
    },
    Reload(Box<FolderSetup>),
    Change(ChangeRequest),
    Stop,
}

impl FolderCommand {
    /// True: the running cycle ends early for it.
    pub(super) fn is_urgent(&self) -> bool {
        matches!(self, Self::Stop | Self::Reload(_) | Self::Change(_))
    }
}

/// The commands of one folder, in order.
pub(super) struct CommandQueue {
    receiver: mpsc::UnboundedReceiver<FolderCommand>,
    /// Commands that came while the task was busy.
    deferred: VecDeque<FolderCommand>,
}

impl CommandQueue {
    pub(super) fn new(receiver: mpsc::UnboundedReceiver<FolderCommand>) -> Self {
        Self { receiver, deferred: VecDeque::new() }
    }

    /// The next command, deferred ones first. A closed channel is a stop.
    pub(super) async fn next(&mut self) -> FolderCommand {
        match self.deferred.pop_front() {
            Some(command) => command,
            None => self.next_new().await,
        }
    }

    /// The next command that is not deferred.
    async fn next_new(&mut self) -> FolderCommand {
        self.receiver.recv().await.unwrap_or(FolderCommand::Stop)
    }

    /// A command that is there already.
    pub(super) fn try_next(&mut self) -> Option<FolderCommand> {
        self.deferred.pop_front().or_else(|| self.receiver.try_recv().ok())
    }

    pub(super) fn defer(&mut self, command: FolderCommand) {
        self.deferred.push_back(command);
    }

    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }
}

/// The messages to one folder's task.
pub(super) struct TaskInbox {
    pub commands: CommandQueue,
    pub pause: PauseReceiver,
    /// Notified by the watcher and by the proxy's events.
    pub wake: Arc<Notify>,
}

impl TaskInbox {
    pub(super) fn new(commands: CommandQueue, pause: PauseReceiver) -> Self {
        Self { commands, pause, wake: Arc::default() }
    }

    /// Runs one cycle. Commands that come meanwhile wait for its end; urgent ones and a pause end it early.
    pub(super) async fn run_cycle(
        &mut self,
        folder: &mut OpenFolder,
        setup: &FolderSetup,
        scope: ScanScope,
    ) -> Result<CycleReport, CycleError> {
        let OpenFolder { engine, root, .. } = folder;
        let stop = engine.parts.signals.stop.clone();
        stop.store(false, Ordering::Relaxed);
        let cycle = engine.cycle(scope);
        tokio::pin!(cycle);
        let mut deadline = None;
        let mut is_stopping = false;
        loop {
            let is_urgent = tokio::select! {
                result = &mut cycle => return result,
                () = sleep_until(deadline) => return Err(CycleError::Stopped),
                command = self.commands.next_new(), if !is_stopping => {
                    is_stopping = matches!(command, FolderCommand::Stop);
                    let is_urgent = command.is_urgent();
                    self.commands.defer(command);
                    is_urgent
                }
                () = self.pause.changed() => self.pause.active(Instant::now()).is_some(),
                () = self.wake.notified() => match root.check(setup) {
                    // A lost folder does not wait for the proxy.
                    Err(e @ CycleError::Halted(_)) => return Err(e),
                    _ => false,
                },
            };
            if is_urgent {
                stop.store(true, Ordering::Relaxed);
                deadline.get_or_insert(Instant::now() + STOP_GRACE);
            }
        }
    }

    /// Plans a cycle without running it. `None`: a command came, and goes first.
    pub(super) async fn run_dry(&mut self, folder: &mut OpenFolder) -> Option<Result<Plan, CycleError>> {
        folder.engine.parts.signals.stop.store(false, Ordering::Relaxed);
        tokio::select! {
            plan = folder.engine.dry_run() => Some(plan),
            command = self.commands.next_new() => {
                self.commands.defer(command);
                None
            }
        }
    }
}

/// Sleeps until the deadline, or forever.
pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
