//! A status for people: one look tells whether all is well, what is not, and what to type.

use std::fmt::Write;
use std::time::Duration;

use anstyle::Style;
use jiff::Timestamp;

use super::show::{self, painted};
use super::verdict::{self, waits};
use crate::agent::problems::Effect;
use crate::agent::status::{FolderStatus, ProblemStatus, Status, SyncState};

/// Problems and recent actions shown; `--json` has all.
const SHOWN: usize = 5;
/// What happened within so many seconds is told as of now.
const RECENT_S: i64 = 60;

/// The text, with colours. `now`: for how long ago things were.
pub fn text(status: &Status, now: Timestamp) -> String {
    let mut out = String::new();
    let verdict = verdict::of(status);
    // Writing to a String cannot fail.
    let mut line = |text: String| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(format!("{} {}", painted(verdict.style, "●"), painted(verdict.style, &capital(&verdict.headline))));
    // Without an agent the headline is the reason.
    let has_reason = status.agent.running && status.state >= SyncState::Paused;
    if let Some(reason) = status.reason.as_ref().filter(|_| has_reason) {
        line(format!("  {}", show::name(reason)));
    }
    for folder in &status.folders {
        line(String::new());
        for text in folder_lines(folder, status, now) {
            line(text);
        }
    }
    line(String::new());
    line(format!("{}   {}", painted(show::DIM, "proxy"), proxy(status, now)));
    line(format!("{}   {}", painted(show::DIM, "agent"), agent(status)));
    if !status.recent.is_empty() {
        line(String::new());
        line(painted(show::DIM, "recent"));
        for r in status.recent.iter().take(SHOWN) {
            let outcome = if r.outcome == "done" { String::new() } else { format!(": {}", show::name(&r.outcome)) };
            line(format!("  {:<10} {:<9} {}{outcome}", show::ago(now, r.at), r.action, show::name(&r.path)));
        }
    }
    if !verdict.next.is_empty() {
        line(String::new());
        line(painted(show::BOLD, "What to do"));
        for next in &verdict.next {
            line(format!("  {next}"));
        }
    }
    out
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// Whether something is too old to be told as of now.
fn is_old(now: Timestamp, at: Timestamp) -> bool {
    now.duration_since(at).as_secs() > RECENT_S
}

fn proxy(status: &Status, now: Timestamp) -> String {
    let is_refused = status.folders.iter().any(|f| f.state == SyncState::AuthRequired);
    let how = match (status.agent.running, status.proxy.asked_at, status.proxy.reachable) {
        (false, ..) => "not asked".to_owned(),
        (true, None, false) => "not asked yet".to_owned(),
        (true, Some(at), false) => format!("does not answer; asked {}", show::ago(now, at)),
        (true, _, true) if is_refused => "refuses the token".to_owned(),
        (true, Some(at), true) if status.state > SyncState::Syncing && is_old(now, at) => {
            format!("answered {}", show::ago(now, at))
        }
        (true, _, true) => "answers".to_owned(),
    };
    format!("{} ({how})", show::name(&status.proxy.url))
}

fn agent(status: &Status) -> String {
    let device = show::name(&status.device);
    match (status.agent.running, status.agent.pid) {
        (true, Some(pid)) => {
            format!("runs as {device}, process {pid}, for {}", show::span(Duration::from_secs(status.agent.uptime_s)))
        }
        (true, None) => format!("runs as {device}"),
        (false, _) => format!("does not run ({device})"),
    }
}

fn folder_lines(folder: &FolderStatus, status: &Status, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let namespace = if folder.namespace.is_empty() {
        String::new()
    } else {
        format!(" (namespace {})", show::name(&folder.namespace))
    };
    lines.push(format!("{}{namespace}", painted(show::BOLD, &show::name(&folder.path))));
    let age = match folder.counted_at {
        Some(at) if folder.state != SyncState::Idle && is_old(now, at) => format!(" (as of {})", show::ago(now, at)),
        _ => String::new(),
    };
    let mut facts = vec![format!("{}, {}{age}", show::count(folder.files, "file"), show::size(folder.bytes))];
    facts.push(match folder.last_success {
        Some(at) => format!("synced {}", show::ago(now, at)),
        None => "never synced yet".to_owned(),
    });
    if let (Some(next), true) = (folder.next_sync_s, status.agent.running) {
        facts.push(format!("looks again in {}", show::span(Duration::from_secs(next))));
    }
    lines.push(format!("  {}", facts.join(" · ")));
    if let Some(p) = folder.progress.filter(|p| p.steps > 0) {
        lines.push(format!("  {} {} of {}", painted(show::BUSY, "syncing"), p.done, p.steps));
    }
    let waiting = waiting(folder);
    if !waiting.is_empty() {
        lines.push(format!("  {} {waiting}", painted(show::BUSY, "waiting")));
    }
    let own_reason = folder.reason.as_ref().filter(|r| Some(*r) != status.reason.as_ref());
    if let Some(reason) = own_reason.filter(|_| folder.halt.is_none() && folder.state >= SyncState::Paused) {
        lines.push(format!("  {} {}", painted(show::BUSY, "!"), show::name(reason)));
    }
    if let Some(halt) = &folder.halt {
        lines.push(format!("  {} {}", painted(show::BAD, "held"), show::name(&halt.reason)));
        for path in halt.sample.iter().take(SHOWN) {
            lines.push(format!("         {}", show::name(path)));
        }
        if let more @ 1.. = halt.paths.saturating_sub(SHOWN) {
            lines.push(format!("         and {more} more: memsync approve --list"));
        }
    }
    if folder.conflicts > 0 {
        lines.push(format!("  {}", painted(show::BAD, &show::count(folder.conflicts, "conflict copy"))));
    }
    let (left_out, troubled): (Vec<_>, Vec<_>) = folder.problems.iter().partition(|p| p.effect == Effect::LeftOut);
    lines.extend(problem_lines(&troubled, show::BAD, "cannot be synced", now));
    lines.extend(problem_lines(&left_out, show::BUSY, "left out", now));
    if matches!(folder.watcher.as_str(), "degraded" | "poll") && status.agent.running {
        let remedy = folder.watcher_remedy.as_deref().map(|r| format!(": {}", show::name(r))).unwrap_or_default();
        lines.push(format!("  {} changes are found late{remedy}", painted(show::BUSY, "watcher")));
    }
    if let Some(remedy) = folder.push_remedy.as_deref().filter(|_| status.agent.running) {
        lines.push(format!(
            "  {} changes elsewhere are found late: {}",
            painted(show::BUSY, "push"),
            show::name(remedy)
        ));
    }
    lines
}

fn problem_lines(problems: &[&ProblemStatus], style: Style, what: &str, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    if problems.is_empty() {
        return lines;
    }
    let count = show::count(problems.len(), "file");
    lines.push(format!("  {}", painted(style, &format!("{count} {what}"))));
    for p in problems.iter().take(SHOWN) {
        let (path, problem) = (show::name(&p.path), show::name(&p.problem));
        lines.push(format!("    {path}: {problem} (since {})", show::ago(now, p.since)));
    }
    if let more @ 1.. = problems.len().saturating_sub(SHOWN) {
        lines.push(format!("    and {more} more: memsync status --json"));
    }
    lines
}

fn waiting(folder: &FolderStatus) -> String {
    let p = &folder.pending;
    let parts = [
        (p.upload, "to upload"),
        (p.download, "to download"),
        (p.delete, "to delete"),
        (p.held_delete, "deletions held"),
    ];
    let mut text = String::new();
    if waits(folder) == 0 {
        return text;
    }
    for (n, what) in parts.into_iter().filter(|(n, _)| *n > 0) {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}{n} {what}");
    }
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::agent::status::*;

    const NOW: &str = "2026-01-01T00:00:12Z";

    pub fn folder() -> FolderStatus {
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

    pub fn status() -> Status {
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

    fn plain(status: &Status) -> String {
        anstream::adapter::strip_str(&text(status, NOW.parse().unwrap())).to_string()
    }

    #[test]
    fn all_is_well_and_nothing_is_to_be_done() {
        assert_eq!(
            plain(&status()),
            "\
● In sync

/home/ana/Memory
  120 files, 35 kB · synced 12 s ago · looks again in 18 s

proxy   https://p.example (answers)
agent   runs as laptop, process 7, for 5 min

recent
  12 s ago   upload    topics/ai.md
"
        );
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_type() {
        let mut s = status();
        (s.state, s.in_sync, s.reason) = (SyncState::Halted, false, None);
        s.recent.clear();
        let f = &mut s.folders[0];
        (f.state, f.in_sync, f.conflicts) = (SyncState::Halted, false, 1);
        f.pending = Pending { upload: 3, held_delete: 60, ..Pending::default() };
        f.halt = Some(HaltStatus {
            kind: "mass_delete".to_owned(),
            id: Some("0a1b2c3d".to_owned()),
            reason: "60 of 120 files would be deleted on the proxy".to_owned(),
            sample: (0..10).map(|n| format!("{n}.md")).collect(),
            paths: 60,
            deleted_here: true,
        });
        f.problems = (0..7)
            .map(|n| ProblemStatus {
                path: format!("bad{n}\u{1b}[2J"),
                problem: "is a symlink; only regular files are synced".to_owned(),
                since: "2026-01-01T00:00:00Z".parse().unwrap(),
                effect: Effect::LeftOut,
            })
            .collect();
        let text = plain(&s);
        for part in [
            "● Held until you decide, 1 conflict to settle, 7 files left out\n",
            "  waiting 3 to upload, 60 deletions held\n",
            "  held 60 of 120 files would be deleted on the proxy\n         0.md\n",
            "         4.md\n         and 55 more: memsync approve --list\n",
            "  1 conflict copy\n",
            "    bad0\\u{1b}[2J: is a symlink; only regular files are synced (since 12 s ago)\n",
            "    and 2 more: memsync status --json\n",
            "What to do\n  memsync approve 0a1b2c3d",
            "memsync conflicts",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn without_an_agent_the_next_step_is_to_start_one() {
        let mut s = status();
        (s.state, s.in_sync, s.agent.running, s.agent.pid) = (SyncState::Stopped, false, false, None);
        let text = plain(&s);
        assert!(text.starts_with("● No agent runs, so nothing is synced\n"), "{text}");
        assert!(text.contains("memsync run") && text.contains("(not asked)"), "{text}");
        assert!(!text.contains("looks again"), "{text}");
        s.agent.start_command = Some("memsync up".to_owned());
        s.reason = Some("no agent runs; start it with `memsync up`".to_owned());
        let text = plain(&s);
        assert!(text.contains("  memsync up   starts the agent") && !text.contains("memsync run"), "{text}");
        assert_eq!(text.to_lowercase().matches("no agent runs").count(), 1, "{text}");
    }
}
