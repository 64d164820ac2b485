//! The document of `memsync status --json`: schema 1. Other programs rely on these names; fields may be added.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::sync::plan::Side;
use crate::sync::safety::{Halt, HeldDeletions};

use super::problems::ProblemEffect;

/// Paths that a halt names.
const SAMPLE_PATHS: usize = 10;

/// The agent, or one folder, in a word. The worst state comes last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SyncState {
    #[default]
    Idle,
    Syncing,
    Paused,
    Offline,
    Stopped,
    AuthRequired,
    Halted,
}

/// The cause of [`SyncState::Offline`]. Sync goes on by itself when the cause is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WaitsFor {
    Proxy,
    Disk,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// 1.
    pub schema: u32,
    pub state: SyncState,
    /// The reason for a state other than idle.
    pub reason: Option<String>,
    /// True: in every folder the last cycle succeeded, nothing is pending, and no change has been seen since.
    pub in_sync: bool,
    pub agent: AgentStatus,
    pub device: String,
    pub proxy: ProxyStatus,
    pub folders: Vec<FolderStatus>,
    /// The newest first.
    pub recent: Vec<RecentAction>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentStatus {
    pub running: bool,
    pub pid: Option<u32>,
    pub version: String,
    pub uptime_s: u64,
    /// The command that starts an agent, if no agent runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_command: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProxyStatus {
    pub url: String,
    /// True: it answered the last request.
    pub reachable: bool,
    pub capabilities: Vec<String>,
    /// The time of the last request. `None`: this agent has sent none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<Timestamp>,
}

impl ProxyStatus {
    /// A proxy that this process has not sent a request to.
    pub(crate) fn unasked(url: &str) -> Self {
        Self { url: url.to_owned(), reachable: false, capabilities: Vec::new(), asked_at: None }
    }

    /// Combines the views of two folders. A folder that has sent no request does not count.
    pub(super) fn merge(self, other: Self) -> Self {
        match (self.asked_at, other.asked_at) {
            (_, None) => self,
            (None, Some(_)) => other,
            (mine, theirs) => Self { reachable: self.reachable && other.reachable, asked_at: mine.max(theirs), ..self },
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FolderStatus {
    pub path: String,
    pub namespace: String,
    pub state: SyncState,
    /// The reason for a state other than idle.
    #[serde(default)]
    pub reason: Option<String>,
    /// Set for an offline folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<WaitsFor>,
    pub in_sync: bool,
    pub files: usize,
    /// The content of these files, in bytes.
    pub bytes: u64,
    /// `inotify`, `fsevents`, `poll` or `degraded`.
    pub watcher: String,
    /// The remedy for a degraded watcher.
    #[serde(default)]
    pub watcher_remedy: Option<String>,
    /// The remedy for a proxy that offers events but sends none.
    #[serde(default)]
    pub push_remedy: Option<String>,
    /// The time of the figures.
    #[serde(default)]
    pub counted_at: Option<Timestamp>,
    pub last_success: Option<Timestamp>,
    pub next_sync_s: Option<u64>,
    pub pending: Pending,
    /// Conflict copies in the folder.
    pub conflicts: usize,
    pub problems: Vec<ProblemStatus>,
    pub halt: Option<HaltStatus>,
    /// Steps of the running cycle.
    #[serde(default)]
    pub progress: Option<ProgressStatus>,
}

impl FolderStatus {
    /// True: a path that is to be synced waits for a person.
    pub(crate) fn is_blocked(&self) -> bool {
        self.problems.iter().any(|p| p.effect == ProblemEffect::Blocked)
    }

    /// True: nothing goes on until a person acts.
    pub(crate) fn needs_person(&self) -> bool {
        let is_retried = || self.problems.iter().any(|p| p.effect == ProblemEffect::Retried);
        match self.state {
            SyncState::Halted | SyncState::AuthRequired | SyncState::Paused => true,
            SyncState::Idle => self.is_blocked() && !is_retried() && self.pending.total() == self.pending.blocked,
            SyncState::Syncing | SyncState::Offline | SyncState::Stopped => false,
        }
    }
}

/// Changes that are still to be made, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub upload: usize,
    pub download: usize,
    pub delete: usize,
    pub held_delete: usize,
    /// The changes among these that wait for a person. `problems` has the reasons.
    #[serde(default)]
    pub blocked: usize,
}

impl Pending {
    pub fn total(&self) -> usize {
        self.upload + self.download + self.delete + self.held_delete
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProblemStatus {
    pub path: String,
    pub problem: String,
    pub since: Timestamp,
    /// The consequence for the path.
    #[serde(default)]
    pub effect: ProblemEffect,
}

/// A gate that is shut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HaltStatus {
    /// `root_missing`, `root_changed`, `mass_delete` or `server_reset`.
    pub kind: String,
    /// The argument of `memsync approve`, if approval can help.
    pub id: Option<String>,
    /// The event, and the next step for the user.
    pub reason: String,
    /// The first of the paths concerned.
    #[serde(default)]
    pub sample: Vec<String>,
    /// The number of paths concerned.
    #[serde(default)]
    pub paths: usize,
    /// The paths were deleted in this folder. Once they are back, the halt is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted_here: bool,
}

impl HaltStatus {
    /// True: the folder itself cannot be opened.
    pub(crate) fn is_of_root(&self) -> bool {
        self.kind.starts_with("root_")
    }
}

/// Describes a shut gate. `held`: the deletions that wait for approval.
pub(crate) fn halt_status(halt: &Halt, held: &[HeldDeletions]) -> HaltStatus {
    let steps = match halt {
        Halt::MassDelete { id, .. } => held.iter().find(|h| h.id == *id).map_or(&[][..], |h| &h.steps),
        _ => &[],
    };
    HaltStatus {
        kind: halt.name().to_owned(),
        id: Some(halt.id().to_owned()),
        reason: halt_reason(halt),
        sample: steps.iter().take(SAMPLE_PATHS).map(|s| s.path.to_string()).collect(),
        paths: steps.len(),
        deleted_here: matches!(halt, Halt::MassDelete { side: Side::Remote, .. }),
    }
}

fn halt_reason(halt: &Halt) -> String {
    match halt {
        Halt::RootMissing { id, why } | Halt::RootChanged { id, why } => format!(
            "{why}. If this is still your folder, `memsync approve {id}` goes on with the files of both sides; \
             nothing is deleted"
        ),
        Halt::MassDelete { id, side, files, of } => {
            let place = match side {
                Side::Local => "here, because they were deleted elsewhere",
                Side::Remote => "on the proxy, because they were deleted here",
            };
            format!(
                "{files} of {of} files would be deleted {place}; `memsync approve {id}` lets it happen, \
                 `memsync approve --reject {id}` brings them back"
            )
        }
        Halt::ServerReset { id, why } => format!(
            "{why}; nothing is synced until you have looked; `memsync approve {id}` offers the files of this folder \
             to it again (nothing is deleted, differences become conflict copies)"
        ),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgressStatus {
    pub done: usize,
    pub steps: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecentAction {
    pub at: Timestamp,
    pub path: String,
    /// `upload`, `download`, `delete`, `trash`, `conflict`.
    pub action: String,
    /// `done`, or the error.
    pub outcome: String,
}
