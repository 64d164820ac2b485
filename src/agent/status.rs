//! What `memsync status --json` says: schema 1. Names are promises that other programs rely on; fields may be added.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::problems::Effect;

/// The agent, or one folder, in a word. In the order of what a person should hear of first, the last being worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Idle,
    Syncing,
    Paused,
    Offline,
    Stopped,
    AuthRequired,
    Halted,
}

/// What an offline folder waits for. It goes on by itself when that is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    Proxy,
    Disk,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// 1.
    pub schema: u32,
    pub state: State,
    /// Why, where the state is no good one.
    pub reason: Option<String>,
    /// The last cycle succeeded, nothing is pending, and no change has been seen since, in every folder.
    pub in_sync: bool,
    pub agent: AgentStatus,
    pub device: String,
    pub proxy: ProxyStatus,
    pub folders: Vec<FolderStatus>,
    /// The newest first.
    pub recent: Vec<RecentAction>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    pub running: bool,
    pub pid: Option<u32>,
    pub version: String,
    pub uptime_s: u64,
    /// The command that starts it, where none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_command: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    pub url: String,
    /// Whether it answered when it was last asked.
    pub reachable: bool,
    pub capabilities: Vec<String>,
    /// When this agent last asked it. `None`: not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<Timestamp>,
}

impl ProxyStatus {
    /// Of a proxy that this process has not asked yet.
    pub fn unasked(url: &str) -> Self {
        Self { url: url.to_owned(), reachable: false, capabilities: Vec::new(), asked_at: None }
    }

    /// The same proxy as two folders know it. One that has not asked knows nothing.
    pub(super) fn merge(self, other: Self) -> Self {
        match (self.asked_at, other.asked_at) {
            (_, None) => self,
            (None, Some(_)) => other,
            (mine, theirs) => Self { reachable: self.reachable && other.reachable, asked_at: mine.max(theirs), ..self },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FolderStatus {
    pub path: String,
    pub namespace: String,
    pub state: State,
    /// Why, where the state is no good one.
    #[serde(default)]
    pub reason: Option<String>,
    /// Of an offline folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<WaitsFor>,
    pub in_sync: bool,
    pub files: usize,
    pub bytes: u64,
    /// `inotify`, `fsevents`, `poll` or `degraded`.
    pub watcher: String,
    /// What to do about a degraded watcher.
    #[serde(default)]
    pub watcher_remedy: Option<String>,
    /// The remedy for a proxy that offers events of which none comes.
    #[serde(default)]
    pub push_remedy: Option<String>,
    /// When the figures were found out.
    #[serde(default)]
    pub counted_at: Option<Timestamp>,
    pub last_success: Option<Timestamp>,
    pub next_sync_s: Option<u64>,
    pub pending: Pending,
    /// Conflict copies in the folder.
    pub conflicts: usize,
    pub problems: Vec<Problem>,
    pub halt: Option<HaltStatus>,
    /// Steps of the running cycle.
    #[serde(default)]
    pub progress: Option<ProgressStatus>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub upload: usize,
    pub download: usize,
    pub delete: usize,
    pub held_delete: usize,
    /// How many of these wait for a person, who finds the reason in `problems`.
    #[serde(default)]
    pub blocked: usize,
}

impl Pending {
    /// Changes that wait, whatever for.
    pub fn total(&self) -> usize {
        self.upload + self.download + self.delete + self.held_delete
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub path: String,
    pub problem: String,
    pub since: Timestamp,
    /// Whether the path is left out for good, or still has to be synced.
    #[serde(default)]
    pub effect: Effect,
}

impl FolderStatus {
    /// Whether a path that is to be synced waits until a person helps.
    pub fn is_blocked(&self) -> bool {
        self.problems.iter().any(|p| p.effect == Effect::Blocked)
    }

    /// Whether nothing moves any more until a person does something.
    pub fn needs_person(&self) -> bool {
        let is_retried = || self.problems.iter().any(|p| p.effect == Effect::Retried);
        match self.state {
            State::Halted | State::AuthRequired | State::Paused => true,
            State::Idle => self.is_blocked() && !is_retried() && self.pending.total() == self.pending.blocked,
            State::Syncing | State::Offline | State::Stopped => false,
        }
    }
}

/// A gate that is shut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaltStatus {
    /// `root_missing`, `root_changed`, `mass_delete` or `server_reset`.
    pub kind: String,
    /// What `memsync approve` takes, where approval can help.
    pub id: Option<String>,
    /// What happened, and what to do next.
    pub reason: String,
    /// Some of the paths concerned.
    #[serde(default)]
    pub sample: Vec<String>,
    /// How many paths are concerned.
    #[serde(default)]
    pub paths: usize,
    /// The paths were deleted in this folder. Once they are back, the halt is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted_here: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressStatus {
    pub done: usize,
    pub steps: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentAction {
    pub at: Timestamp,
    pub path: String,
    /// `upload`, `download`, `delete`, `trash`, `conflict`.
    pub action: String,
    /// `done`, or what went wrong.
    pub outcome: String,
}
