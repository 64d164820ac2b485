//! Judges a status: the exit code, a headline, and the next commands.

use anstyle::Style;

use super::format;
use crate::agent::problems::ProblemEffect;
use crate::agent::status::{FolderStatus, HaltStatus, Status, SyncState, WaitsFor};
use crate::cli::exit::Exit;

/// A status in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StatusVerdict {
    /// The highest code that applies.
    pub(crate) exit: Exit,
    pub(crate) style: Style,
    /// Begins in lower case.
    pub(crate) headline: String,
    /// Commands to type, each with its effect. The most urgent comes first.
    pub(crate) next: Vec<String>,
}

impl StatusVerdict {
    pub(crate) fn of(status: &Status) -> Self {
        let mut exit = status.folders.iter().map(folder_exit).max().unwrap_or(Exit::Done);
        if !status.agent.running {
            exit = exit.max(Exit::NotConfigured);
        } else if !status.in_sync {
            exit = exit.max(Exit::Pending);
        }
        let (style, mut headline) = headline(status);
        let conflicts: usize = status.folders.iter().map(|f| f.conflicts).sum();
        // Files that cannot be synced at all, such as symlinks, and files that wait for help.
        let problems = status.folders.iter().flat_map(|f| &f.problems);
        let (left_out, troubled): (Vec<_>, Vec<_>) = problems.partition(|p| p.effect == ProblemEffect::LeftOut);
        let (left_out, troubled) = (left_out.len(), troubled.len());
        if conflicts > 0 {
            headline.push_str(&format!(", {} to settle", format::count(conflicts, "conflict")));
        }
        if troubled > 0 {
            headline.push_str(&format!(", {} cannot be synced", format::count(troubled, "file")));
        }
        if left_out > 0 {
            headline.push_str(&format!(", {} left out", format::count(left_out, "file")));
        }
        let style = if style == format::GOOD && conflicts + left_out > 0 { format::BUSY } else { style };
        Self { exit, style, headline, next: next_steps(status) }
    }

    /// The headline with a capital.
    pub(crate) fn sentence(&self) -> String {
        let mut chars = self.headline.chars();
        chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
    }
}

/// The exit code of one folder, with or without an agent.
pub(crate) fn folder_exit(folder: &FolderStatus) -> Exit {
    let codes = [
        (folder.state == SyncState::Stopped, Exit::Error),
        (folder.pending.total() > 0 || folder.is_blocked(), Exit::Pending),
        (folder.state == SyncState::Offline, Exit::Temporary),
        (folder.state == SyncState::AuthRequired, Exit::Refused),
        (folder.state == SyncState::Halted || folder.halt.is_some(), Exit::Halted),
        (folder.conflicts > 0, Exit::Conflicts),
    ];
    codes.into_iter().filter(|(applies, _)| *applies).map(|(_, code)| code).max().unwrap_or(Exit::Done)
}

fn headline(status: &Status) -> (Style, String) {
    let waits_for = status.folders.iter().filter(|f| f.state == status.state).find_map(|f| f.waits_for);
    let is_blocked = status.folders.iter().any(FolderStatus::is_blocked);
    let (style, text) = match status.state {
        _ if !status.agent.running => (format::BUSY, "no agent runs, so nothing is synced"),
        SyncState::Halted => (format::BAD, "held until you decide"),
        SyncState::AuthRequired => (format::BAD, "the proxy refuses the token"),
        SyncState::Offline if waits_for == Some(WaitsFor::Disk) => {
            (format::BAD, "waits for the disk; syncing continues when the disk works again")
        }
        SyncState::Offline => (format::BUSY, "offline; changes are kept here and sent when the proxy answers"),
        SyncState::Paused => (format::BUSY, "paused"),
        SyncState::Stopped => (format::BAD, "stopped"),
        SyncState::Syncing if !status.in_sync => (format::BUSY, "syncing"),
        SyncState::Idle | SyncState::Syncing if status.in_sync => (format::GOOD, "in sync"),
        SyncState::Idle | SyncState::Syncing if is_blocked => (format::BAD, "not in sync: it needs your help"),
        SyncState::Idle | SyncState::Syncing => (format::BUSY, "not in sync yet"),
    };
    (style, text.to_owned())
}

fn next_steps(status: &Status) -> Vec<String> {
    let has = |state| status.state == state || status.folders.iter().any(|f| f.state == state);
    let mut next: Vec<String> = status.folders.iter().filter_map(|f| f.halt.as_ref()).flat_map(halt_steps).collect();
    if has(SyncState::AuthRequired) {
        next.push("memsync doctor   checks the token and says how to fix it".to_owned());
    }
    if !status.agent.running {
        let start = status.agent.start_command.as_deref().unwrap_or("memsync run");
        next.push(format!("{start}   starts the agent"));
    }
    let waits_for = |what| status.folders.iter().any(|f| f.state == SyncState::Offline && f.waits_for == Some(what));
    if waits_for(WaitsFor::Disk) {
        next.push("memsync doctor   checks the free space and the permissions".to_owned());
    } else if has(SyncState::Offline) && status.agent.running {
        next.push("memsync doctor   finds out why the proxy does not answer".to_owned());
    }
    if has(SyncState::Stopped) && status.agent.running {
        next.push("memsync doctor   finds out what is wrong".to_owned());
    }
    if has(SyncState::Paused) {
        next.push("memsync resume   ends the pause".to_owned());
    }
    if status.folders.iter().any(|f| f.conflicts > 0) {
        next.push("memsync conflicts   shows both versions of each and how to settle it".to_owned());
    }
    next
}

fn halt_steps(halt: &HaltStatus) -> Vec<String> {
    match (halt.id.as_deref(), halt.kind.as_str()) {
        (Some(id), "server_reset") => vec![format!("memsync approve {id}   offers the files here to the proxy")],
        (Some(id), "root_missing" | "root_changed") => {
            vec![format!("memsync approve {id}   says that this is still your folder; nothing is deleted")]
        }
        (Some(id), _) => vec![
            format!("memsync approve {id}            lets it happen"),
            format!("memsync approve {id} --reject   brings the files back"),
        ],
        (None, _) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{folder, halt, status};
    use super::*;
    use crate::agent::status::{Pending, ProblemStatus};

    #[test]
    fn exit_is_the_highest_code_that_applies() {
        assert_eq!(StatusVerdict::of(&status()).exit, Exit::Done);
        type Case = (&'static str, fn(&mut Status), Exit);
        let cases: [Case; 10] = [
            ("pending", |s| (s.in_sync, s.folders[0].pending.upload) = (false, 1), Exit::Pending),
            ("changed since", |s| s.in_sync = false, Exit::Pending),
            ("offline", |s| (s.in_sync, s.folders[0].state) = (false, SyncState::Offline), Exit::Temporary),
            (
                "disk",
                |s| {
                    (s.in_sync, s.state) = (false, SyncState::Offline);
                    (s.folders[0].state, s.folders[0].waits_for) = (SyncState::Offline, Some(WaitsFor::Disk));
                },
                Exit::Temporary,
            ),
            ("token", |s| (s.in_sync, s.folders[0].state) = (false, SyncState::AuthRequired), Exit::Refused),
            ("halted", |s| (s.in_sync, s.folders[0].state) = (false, SyncState::Halted), Exit::Halted),
            ("conflicts", |s| s.folders[0].conflicts = 2, Exit::Conflicts),
            (
                "no agent",
                |s| (s.agent.running, s.in_sync, s.state) = (false, false, SyncState::Stopped),
                Exit::NotConfigured,
            ),
            ("paused in sync", |s| s.state = SyncState::Paused, Exit::Done),
            (
                "no agent, and changes",
                |s| {
                    s.agent.running = false;
                    s.folders[0].pending = Pending { download: 3, ..Pending::default() };
                },
                Exit::Pending,
            ),
        ];
        for (what, change, exit) in cases {
            let mut s = status();
            change(&mut s);
            assert_eq!(StatusVerdict::of(&s).exit, exit, "{what}");
        }
    }

    #[test]
    fn blocked_file_is_pending_and_left_out_file_is_not() {
        for (effect, exit) in [
            (ProblemEffect::LeftOut, Exit::Done),
            (ProblemEffect::Blocked, Exit::Pending),
            (ProblemEffect::Retried, Exit::Pending),
        ] {
            let mut s = status();
            let since = "2026-01-01T00:00:00Z".parse().unwrap();
            s.folders[0].problems =
                vec![ProblemStatus { path: "a".to_owned(), problem: "p".to_owned(), since, effect }];
            s.in_sync = effect == ProblemEffect::LeftOut;
            s.folders[0].in_sync = s.in_sync;
            assert_eq!(StatusVerdict::of(&s).exit, exit, "{effect:?}");
        }
    }

    #[test]
    fn halt_comes_with_approve_and_reject() {
        let mut s = status();
        let halt = halt("mass_delete", Some("0a1b2c3d"));
        s.folders.push(FolderStatus { halt: Some(halt), ..folder() });
        s.state = SyncState::Halted;
        let verdict = StatusVerdict::of(&s);
        assert_eq!(verdict.exit, Exit::Halted);
        assert!(verdict.next[0].contains("approve 0a1b2c3d") && verdict.next[1].contains("--reject"), "{verdict:?}");
    }
}
