//! A status and its parts, for tests.

use crate::agent::status::{
    AgentStatus, FolderStatus, HaltStatus, Pending, ProxyStatus, RecentAction, Status, SyncState,
};

/// A folder in sync.
pub(crate) fn folder() -> FolderStatus {
    FolderStatus {
        path: "/home/ana/Memory".to_owned(),
        namespace: String::new(),
        state: SyncState::Idle,
        reason: None,
        waits_for: None,
        in_sync: true,
        files: 120,
        bytes: 34_567,
        watcher: "inotify".to_owned(),
        watcher_remedy: None,
        push_remedy: None,
        counted_at: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        last_success: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        next_sync_s: Some(18),
        pending: Pending::default(),
        conflicts: 0,
        problems: Vec::new(),
        halt: None,
        progress: None,
    }
}

/// The status of an agent with one folder in sync.
pub(crate) fn status() -> Status {
    Status {
        schema: 1,
        state: SyncState::Idle,
        reason: None,
        in_sync: true,
        agent: AgentStatus {
            running: true,
            pid: Some(7),
            version: "0.1.0".to_owned(),
            uptime_s: 300,
            start_command: None,
        },
        device: "laptop".to_owned(),
        proxy: ProxyStatus { reachable: true, ..ProxyStatus::unasked("https://p.example") },
        folders: vec![folder()],
        recent: vec![RecentAction {
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            path: "topics/ai.md".to_owned(),
            action: "upload".to_owned(),
            outcome: "done".to_owned(),
        }],
    }
}

pub(crate) fn halt(kind: &str, id: Option<&str>) -> HaltStatus {
    HaltStatus {
        kind: kind.to_owned(),
        id: id.map(str::to_owned),
        reason: "why".to_owned(),
        sample: vec!["a.md".to_owned()],
        paths: 25,
        deleted_here: false,
    }
}
