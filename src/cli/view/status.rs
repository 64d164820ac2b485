//! A status as text: a headline, the folders, the problems, and the next commands.

use std::time::Duration;

use anstyle::Style;
use jiff::Timestamp;

use super::format::{self, painted};
use super::verdict::StatusVerdict;
use crate::agent::problems::ProblemEffect;
use crate::agent::status::{FolderStatus, HaltStatus, ProblemStatus, Status, SyncState};

/// Paths, problems and recent actions shown. `--json` has all.
const MAX_SHOWN: usize = 5;
/// Older facts are shown with their age, in seconds.
const MAX_FRESH_S: i64 = 60;

/// The text, with colours. Ages count from `now`.
pub(crate) fn status_text(status: &Status, now: Timestamp) -> String {
    let verdict = StatusVerdict::of(status);
    let mut lines = vec![format!("{} {}", painted(verdict.style, "●"), painted(verdict.style, &verdict.sentence()))];
    lines.extend(reason_below_headline(status).map(|reason| format!("  {}", format::printable(reason))));
    for folder in &status.folders {
        lines.push(String::new());
        lines.extend(folder_lines(folder, status, now));
    }
    lines.push(String::new());
    lines.push(format!("{}   {}", painted(format::DIM, "proxy"), proxy_text(status, now)));
    lines.push(format!("{}   {}", painted(format::DIM, "agent"), agent_text(status)));
    lines.extend(recent_lines(status, now));
    if !verdict.next.is_empty() {
        lines.push(String::new());
        lines.push(painted(format::BOLD, "What to do"));
        lines.extend(verdict.next.iter().map(|next| format!("  {next}")));
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The reason for the state of the whole. Without an agent the headline is the reason, and a folder that is held shows
/// its own.
fn reason_below_headline(status: &Status) -> Option<&String> {
    let is_of_halt = |reason: &String| {
        status.folders.iter().filter_map(|folder| folder.halt.as_ref()).any(|halt| halt.reason == *reason)
    };
    let is_shown = status.agent.running && status.state >= SyncState::Paused;
    status.reason.as_ref().filter(|reason| is_shown && !is_of_halt(reason))
}

fn is_old(now: Timestamp, at: Timestamp) -> bool {
    now.duration_since(at).as_secs() > MAX_FRESH_S
}

fn proxy_text(status: &Status, now: Timestamp) -> String {
    let is_refused = status.folders.iter().any(|f| f.state == SyncState::AuthRequired);
    let how = match (status.agent.running, status.proxy.asked_at, status.proxy.reachable) {
        (false, ..) => "not asked".to_owned(),
        (true, None, false) => "not asked yet".to_owned(),
        (true, Some(at), false) => format!("does not answer; asked {}", format::ago(now, at)),
        (true, _, true) if is_refused => "refuses the token".to_owned(),
        (true, Some(at), true) if status.state > SyncState::Syncing && is_old(now, at) => {
            format!("answered {}", format::ago(now, at))
        }
        (true, _, true) => "answers".to_owned(),
    };
    format!("{} ({how})", format::printable(&status.proxy.url))
}

fn agent_text(status: &Status) -> String {
    let device = format::printable(&status.device);
    match (status.agent.running, status.agent.pid) {
        (true, Some(pid)) => {
            let uptime = format::span(Duration::from_secs(status.agent.uptime_s));
            format!("runs as {device}, process {pid}, for {uptime}")
        }
        (true, None) => format!("runs as {device}"),
        (false, _) => format!("does not run ({device})"),
    }
}

fn recent_lines(status: &Status, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    if !status.recent.is_empty() {
        lines.push(String::new());
        lines.push(painted(format::DIM, "recent"));
    }
    for r in status.recent.iter().take(MAX_SHOWN) {
        let outcome = if r.outcome == "done" { String::new() } else { format!(": {}", format::printable(&r.outcome)) };
        let path = format::printable(&r.path);
        lines.push(format!("  {:<10} {:<9} {path}{outcome}", format::ago(now, r.at), r.action));
    }
    lines
}

fn folder_lines(folder: &FolderStatus, status: &Status, now: Timestamp) -> Vec<String> {
    let namespace = match folder.namespace.as_str() {
        "" => String::new(),
        namespace => format!(" (namespace {})", format::printable(namespace)),
    };
    let mut lines = vec![format!("{}{namespace}", painted(format::BOLD, &format::printable(&folder.path)))];
    lines.push(format!("  {}", folder_facts(folder, status, now)));
    if let Some(p) = folder.progress.filter(|p| p.steps > 0) {
        lines.push(format!("  {} {} of {}", painted(format::BUSY, "syncing"), p.done, p.steps));
    }
    if let Some(pending) = pending_text(folder) {
        lines.push(format!("  {} {pending}", painted(format::BUSY, "waiting")));
    }
    let own_reason = folder.reason.as_ref().filter(|r| Some(*r) != status.reason.as_ref());
    if let Some(reason) = own_reason.filter(|_| folder.halt.is_none() && folder.state >= SyncState::Paused) {
        lines.push(format!("  {} {}", painted(format::BUSY, "!"), format::printable(reason)));
    }
    lines.extend(folder.halt.iter().flat_map(halt_lines));
    if folder.conflicts > 0 {
        lines.push(format!("  {}", painted(format::BAD, &format::count(folder.conflicts, "conflict copy"))));
    }
    lines.extend(problem_lines(folder, now));
    if status.agent.running {
        lines.extend(delay_lines(folder));
    }
    lines
}

/// Size, and the times of the last and the next sync.
fn folder_facts(folder: &FolderStatus, status: &Status, now: Timestamp) -> String {
    let age = match folder.counted_at {
        Some(at) if folder.state != SyncState::Idle && is_old(now, at) => format!(" (as of {})", format::ago(now, at)),
        _ => String::new(),
    };
    let mut facts = vec![format!("{}, {}{age}", format::count(folder.files, "file"), format::size(folder.bytes))];
    facts.push(match folder.last_success {
        Some(at) => format!("synced {}", format::ago(now, at)),
        None => "never synced yet".to_owned(),
    });
    if let (Some(next), true) = (folder.next_sync_s, status.agent.running) {
        facts.push(format!("looks again in {}", format::span(Duration::from_secs(next))));
    }
    facts.join(" · ")
}

fn halt_lines(halt: &HaltStatus) -> Vec<String> {
    let mut lines = vec![format!("  {} {}", painted(format::BAD, "held"), format::printable(&halt.reason))];
    lines.extend(halt.sample.iter().take(MAX_SHOWN).map(|path| format!("         {}", format::printable(path))));
    if let more @ 1.. = halt.paths.saturating_sub(MAX_SHOWN) {
        lines.push(format!("         and {more} more: memsync approve --list"));
    }
    lines
}

/// The problems of a folder for `status`, the urgent ones first.
fn problem_lines(folder: &FolderStatus, now: Timestamp) -> Vec<String> {
    let (left_out, other): (Vec<_>, Vec<_>) = folder.problems.iter().partition(|p| p.effect == ProblemEffect::LeftOut);
    let mut lines = group_lines(&other, format::BAD, "cannot be synced", now);
    lines.extend(group_lines(&left_out, format::BUSY, "left out", now));
    lines
}

fn group_lines(problems: &[&ProblemStatus], style: Style, what: &str, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    if problems.is_empty() {
        return lines;
    }
    let count = format::count(problems.len(), "file");
    lines.push(format!("  {}", format::painted(style, &format!("{count} {what}"))));
    for p in problems.iter().take(MAX_SHOWN) {
        let (path, problem) = (format::printable(&p.path), format::printable(&p.problem));
        lines.push(format!("    {path}: {problem} (since {})", format::ago(now, p.since)));
    }
    if let more @ 1.. = problems.len().saturating_sub(MAX_SHOWN) {
        lines.push(format!("    and {more} more: memsync status --json"));
    }
    lines
}

/// Remedies for a watcher or a push connection that finds changes late.
fn delay_lines(folder: &FolderStatus) -> Vec<String> {
    let mut lines = Vec::new();
    if matches!(folder.watcher.as_str(), "degraded" | "poll") {
        let remedy =
            folder.watcher_remedy.as_deref().map(|r| format!(": {}", format::printable(r))).unwrap_or_default();
        lines.push(format!("  {} changes are found late{remedy}", painted(format::BUSY, "watcher")));
    }
    if let Some(remedy) = &folder.push_remedy {
        let remedy = format::printable(remedy);
        lines.push(format!("  {} changes elsewhere are found late: {remedy}", painted(format::BUSY, "push")));
    }
    lines
}

fn pending_text(folder: &FolderStatus) -> Option<String> {
    let p = &folder.pending;
    let parts: Vec<String> = [
        (p.upload, "to upload"),
        (p.download, "to download"),
        (p.delete, "to delete"),
        (p.held_delete, "deletions held"),
    ]
    .into_iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, what)| format!("{n} {what}"))
    .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{folder, halt, status};
    use super::*;
    use crate::agent::status::Pending;

    const NOW: &str = "2026-01-01T00:00:12Z";

    fn plain(status: &Status) -> String {
        anstream::adapter::strip_str(&status_text(status, NOW.parse().unwrap())).to_string()
    }

    #[test]
    fn status_in_sync_has_nothing_to_do() {
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
    fn problems_come_with_commands_to_type() {
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
                effect: ProblemEffect::LeftOut,
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
    fn halt_reason_is_shown_once() {
        let mut s = status();
        let reason = "60 of 120 files would be deleted on the proxy";
        let halt = HaltStatus { reason: reason.to_owned(), ..halt("mass_delete", Some("0a1b2c3d")) };
        (s.state, s.in_sync, s.reason) = (SyncState::Halted, false, Some(reason.to_owned()));
        s.folders[0] =
            FolderStatus { state: SyncState::Halted, reason: s.reason.clone(), halt: Some(halt), ..folder() };
        assert_eq!(plain(&s).matches(reason).count(), 1, "{}", plain(&s));
    }

    #[test]
    fn status_without_agent_says_how_to_start_one() {
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
