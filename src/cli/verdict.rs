//! What a status means: the exit code, one sentence, and what to type next.

use anstyle::Style;

use super::exit::Exit;
use super::show;
use crate::agent::problems::Effect;
use crate::agent::status::{FolderStatus, Status, SyncState, WaitsFor};

/// A status in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The highest code that applies.
    pub exit: Exit,
    pub style: Style,
    pub headline: String,
    /// Commands to type, each with what it is good for; the most urgent first.
    pub next: Vec<String>,
}

/// Judges the whole status. `status`, `wait` and `sync` have their exit code from here.
pub fn of(status: &Status) -> Verdict {
    let mut exit = status.folders.iter().map(folder_exit).max().unwrap_or(Exit::Done);
    if !status.agent.running {
        exit = exit.max(Exit::NotConfigured);
    } else if !status.in_sync {
        exit = exit.max(Exit::Pending);
    }
    let (style, mut headline) = headline(status);
    let conflicts: usize = status.folders.iter().map(|f| f.conflicts).sum();
    let left_out: usize = status.folders.iter().map(left_out).sum();
    let troubled = status.folders.iter().map(|f| f.problems.len()).sum::<usize>() - left_out;
    if conflicts > 0 {
        headline.push_str(&format!(", {} to settle", show::count(conflicts, "conflict")));
    }
    if troubled > 0 {
        headline.push_str(&format!(", {} cannot be synced", show::count(troubled, "file")));
    }
    if left_out > 0 {
        headline.push_str(&format!(", {} left out", show::count(left_out, "file")));
    }
    let style = if style == show::GOOD && conflicts + left_out > 0 { show::BUSY } else { style };
    Verdict { exit, style, headline, next: next_steps(status) }
}

/// The code of one folder, whether an agent runs or not.
pub fn folder_exit(folder: &FolderStatus) -> Exit {
    let codes = [
        (folder.state == SyncState::Stopped, Exit::Error),
        (waits(folder) > 0 || folder.is_blocked(), Exit::Pending),
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
        _ if !status.agent.running => (show::BUSY, "no agent runs, so nothing is synced"),
        SyncState::Halted => (show::BAD, "held until you decide"),
        SyncState::AuthRequired => (show::BAD, "the proxy refuses the token"),
        SyncState::Offline if waits_for == Some(WaitsFor::Disk) => {
            (show::BAD, "waits for the disk; it goes on when the disk does")
        }
        SyncState::Offline => (show::BUSY, "offline; changes are kept here and sent when the proxy answers"),
        SyncState::Paused => (show::BUSY, "paused"),
        SyncState::Stopped => (show::BAD, "stopped"),
        SyncState::Syncing if !status.in_sync => (show::BUSY, "syncing"),
        SyncState::Idle | SyncState::Syncing if status.in_sync => (show::GOOD, "in sync"),
        SyncState::Idle | SyncState::Syncing if is_blocked => (show::BAD, "not in sync: it needs your help"),
        SyncState::Idle | SyncState::Syncing => (show::BUSY, "not in sync yet"),
    };
    (style, text.to_owned())
}

/// Commands to type, each with its use; the most urgent first.
fn next_steps(status: &Status) -> Vec<String> {
    let mut next = Vec::new();
    let has = |state| status.state == state || status.folders.iter().any(|f| f.state == state);
    for halt in status.folders.iter().filter_map(|f| f.halt.as_ref()) {
        match (halt.id.as_deref(), halt.kind.as_str()) {
            (Some(id), "server_reset") => {
                next.push(format!("memsync approve {id}   offers the files here to the proxy"))
            }
            (Some(id), "root_missing" | "root_changed") => {
                next.push(format!("memsync approve {id}   says that this is still your folder; nothing is deleted"));
            }
            (Some(id), _) => {
                next.push(format!("memsync approve {id}            lets it happen"));
                next.push(format!("memsync approve {id} --reject   brings the files back"));
            }
            (None, _) => {}
        }
    }
    if has(SyncState::AuthRequired) {
        next.push("memsync doctor   checks the token and says how to mend it".to_owned());
    }
    if !status.agent.running {
        let start = status.agent.start_command.as_deref().unwrap_or("memsync run");
        next.push(format!("{start}   starts the agent"));
    }
    let waits_for = |what| status.folders.iter().any(|f| f.state == SyncState::Offline && f.waits_for == Some(what));
    if waits_for(WaitsFor::Disk) {
        next.push("memsync doctor   looks at the room on the disk and at permissions".to_owned());
    } else if has(SyncState::Offline) && status.agent.running {
        next.push("memsync doctor   finds out why the proxy does not answer".to_owned());
    }
    if has(SyncState::Stopped) && status.agent.running {
        next.push("memsync doctor   finds out what is wrong".to_owned());
    }
    if has(SyncState::Paused) {
        next.push("memsync resume   goes on syncing".to_owned());
    }
    if status.folders.iter().any(|f| f.conflicts > 0) {
        next.push("memsync conflicts   shows both versions of each and how to settle it".to_owned());
    }
    next
}

/// Files of a folder that are out of scope.
pub fn left_out(folder: &FolderStatus) -> usize {
    folder.problems.iter().filter(|p| p.effect == Effect::LeftOut).count()
}

/// Changes of a folder that wait.
pub fn waits(folder: &FolderStatus) -> usize {
    folder.pending.total()
}

#[cfg(test)]
mod tests {
    use super::super::status_text::tests::{folder, status};
    use super::*;
    use crate::agent::status::{HaltStatus, Pending, ProblemStatus};

    #[test]
    fn the_highest_code_that_applies() {
        assert_eq!(of(&status()).exit, Exit::Done);
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
            assert_eq!(of(&s).exit, exit, "{what}");
        }
    }

    #[test]
    fn blocked_file_is_pending_and_left_out_file_is_not() {
        for (effect, exit) in
            [(Effect::LeftOut, Exit::Done), (Effect::Blocked, Exit::Pending), (Effect::Retried, Exit::Pending)]
        {
            let mut s = status();
            let since = "2026-01-01T00:00:00Z".parse().unwrap();
            s.folders[0].problems =
                vec![ProblemStatus { path: "a".to_owned(), problem: "p".to_owned(), since, effect }];
            s.in_sync = effect == Effect::LeftOut;
            s.folders[0].in_sync = s.in_sync;
            assert_eq!(of(&s).exit, exit, "{effect:?}");
        }
    }

    #[test]
    fn a_halt_tells_both_ways_out() {
        let mut s = status();
        let halt = HaltStatus {
            kind: "mass_delete".to_owned(),
            id: Some("0a1b2c3d".to_owned()),
            reason: "w".to_owned(),
            sample: Vec::new(),
            paths: 0,
            deleted_here: false,
        };
        s.folders.push(crate::agent::status::FolderStatus { halt: Some(halt), ..folder() });
        s.state = SyncState::Halted;
        let verdict = of(&s);
        assert_eq!(verdict.exit, Exit::Halted);
        assert!(verdict.next[0].contains("approve 0a1b2c3d") && verdict.next[1].contains("--reject"), "{verdict:?}");
    }
}
