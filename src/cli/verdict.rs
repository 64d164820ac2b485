//! What a status means: the exit code, one sentence, and what to type next.

use anstyle::Style;

use super::exit::Exit;
use super::show;
use crate::agent::status::{FolderStatus, State, Status};

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

/// Judges the whole status.
pub fn of(status: &Status) -> Verdict {
    let mut exit = Exit::Done;
    let mut next = Vec::new();
    let conflicts: usize = status.folders.iter().map(|f| f.conflicts).sum();
    let waiting: usize = status.folders.iter().map(waits).sum();
    let problems: usize = status.folders.iter().map(|f| f.problems.len()).sum();
    let mut at_least = |code| exit = exit.max(code);

    let (style, mut headline) = match status.state {
        _ if !status.agent.running => (show::BUSY, "no agent runs, so nothing is synced".to_owned()),
        State::Halted => (show::BAD, "held until you decide".to_owned()),
        State::AuthRequired => (show::BAD, "the proxy refuses the token".to_owned()),
        State::Offline => (show::BUSY, "offline; changes are kept here and sent when the proxy answers".to_owned()),
        State::Paused => (show::BUSY, "paused".to_owned()),
        State::Stopped => (show::BAD, "stopped".to_owned()),
        State::Syncing if !status.in_sync => (show::BUSY, "syncing".to_owned()),
        State::Idle | State::Syncing if status.in_sync => (show::GOOD, "in sync".to_owned()),
        State::Idle | State::Syncing => (show::BUSY, "not in sync yet".to_owned()),
    };
    let has = |state| status.state == state || status.folders.iter().any(|f| f.state == state);
    for halt in status.folders.iter().filter_map(|f| f.halt.as_ref()) {
        at_least(Exit::Halted);
        match (halt.id.as_deref(), halt.kind.as_str()) {
            (Some(id), "server_reset") => {
                next.push(format!("memsync approve {id}   offers the files here to the proxy"))
            }
            (Some(id), _) => {
                next.push(format!("memsync approve {id}            lets it happen"));
                next.push(format!("memsync approve {id} --reject   brings the files back"));
            }
            (None, _) => {}
        }
    }
    if has(State::Halted) {
        at_least(Exit::Halted);
    }
    if has(State::AuthRequired) {
        at_least(Exit::Refused);
        next.push("memsync doctor   checks the token and says how to mend it".to_owned());
    }
    if !status.agent.running {
        at_least(Exit::NotConfigured);
        next.push("memsync run      starts the agent (`memsync up` with a proxy on this machine)".to_owned());
    }
    if has(State::Offline) && status.agent.running {
        at_least(Exit::Temporary);
        next.push("memsync doctor   finds out why the proxy does not answer".to_owned());
    }
    if has(State::Stopped) && status.agent.running {
        at_least(Exit::Error);
        next.push("memsync doctor   finds out what is wrong".to_owned());
    }
    if has(State::Paused) {
        next.push("memsync resume   goes on syncing".to_owned());
    }
    if waiting > 0 || (status.agent.running && !status.in_sync) {
        at_least(Exit::Pending);
    }
    if conflicts > 0 {
        at_least(Exit::Conflicts);
        next.push("memsync conflicts   shows both versions of each and how to settle it".to_owned());
        headline.push_str(&format!(", {} to settle", show::count(conflicts, "conflict")));
    }
    if problems > 0 {
        headline.push_str(&format!(", {} left out", show::count(problems, "file")));
    }
    let style = if style == show::GOOD && conflicts + problems > 0 { show::BUSY } else { style };
    Verdict { exit, style, headline, next }
}

/// The code for `wait`, which is about being in sync: conflicts are for a person, later.
pub fn wait_exit(status: &Status) -> Exit {
    if status.in_sync && status.agent.running {
        return Exit::Done;
    }
    let mut without = status.clone();
    without.folders.iter_mut().for_each(|f| f.conflicts = 0);
    of(&without).exit.max(Exit::Pending)
}

/// Changes of a folder that wait.
pub fn waits(folder: &FolderStatus) -> usize {
    let p = &folder.pending;
    p.upload + p.download + p.delete + p.held_delete
}

#[cfg(test)]
mod tests {
    use super::super::status_text::tests::{folder, status};
    use super::*;
    use crate::agent::status::{HaltStatus, Pending};

    #[test]
    fn the_highest_code_that_applies() {
        assert_eq!(of(&status()).exit, Exit::Done);
        type Case = (&'static str, fn(&mut Status), Exit);
        let cases: [Case; 9] = [
            ("pending", |s| (s.in_sync, s.folders[0].pending.upload) = (false, 1), Exit::Pending),
            ("changed since", |s| s.in_sync = false, Exit::Pending),
            ("offline", |s| (s.in_sync, s.state) = (false, State::Offline), Exit::Temporary),
            ("token", |s| (s.in_sync, s.state) = (false, State::AuthRequired), Exit::Refused),
            ("halted", |s| (s.in_sync, s.folders[0].state) = (false, State::Halted), Exit::Halted),
            ("conflicts", |s| s.folders[0].conflicts = 2, Exit::Conflicts),
            (
                "no agent",
                |s| (s.agent.running, s.in_sync, s.state) = (false, false, State::Stopped),
                Exit::NotConfigured,
            ),
            ("paused in sync", |s| s.state = State::Paused, Exit::Done),
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
    fn conflicts_do_not_keep_wait_from_being_done() {
        let mut s = status();
        s.folders[0].conflicts = 1;
        assert_eq!((of(&s).exit, wait_exit(&s)), (Exit::Conflicts, Exit::Done));
        s.in_sync = false;
        assert_eq!(wait_exit(&s), Exit::Pending);
    }

    #[test]
    fn a_halt_tells_both_ways_out() {
        let mut s = status();
        let halt = HaltStatus {
            kind: "mass_delete".to_owned(),
            id: Some("0a1b2c3d".to_owned()),
            reason: "w".to_owned(),
            sample: Vec::new(),
        };
        s.folders.push(crate::agent::status::FolderStatus { halt: Some(halt), ..folder() });
        s.state = State::Halted;
        let verdict = of(&s);
        assert_eq!(verdict.exit, Exit::Halted);
        assert!(verdict.next[0].contains("approve 0a1b2c3d") && verdict.next[1].contains("--reject"), "{verdict:?}");
    }
}
