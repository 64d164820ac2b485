//! Commands to one folder's task.

use std::collections::VecDeque;

use tokio::sync::{mpsc, oneshot};

use crate::sync::Plan;

use super::change::ChangeRequest;
use super::setup::FolderSetup;
use super::standstill::Standstill;

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
    pub(super) async fn next_new(&mut self) -> FolderCommand {
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
