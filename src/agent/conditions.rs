//! [`Conditions`]: the conditions of a folder that a person must know. The log warns when one begins, with the command
//! that helps, and says when it is over.

use std::collections::{BTreeMap, BTreeSet};

use super::cycle::FinishedAction;
use super::cycle::report::MAKE_ROOM;
use super::status::{FolderStatus, HaltStatus, ProblemStatus, SyncState, WaitsFor};

/// Files that one update names. The rest is counted.
const MAX_NAMED_FILES: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Proxy,
    Token,
    Disk,
    Stopped,
    /// Has the id of the halt, or its kind if it has no id.
    Hold(String),
    Watcher,
    Push,
    Conflicts,
    /// The quota on the proxy is full.
    QuotaFull,
    DiskFull,
    File(String),
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LogLine {
    Warn(String),
    Info(String),
}

/// The conditions that were logged and are not over.
#[derive(Debug, Default)]
pub(super) struct Conditions(BTreeSet<Condition>);

impl Conditions {
    /// Takes the status after a cycle. Returns the log lines for the conditions that ended and began.
    pub(super) fn update(&mut self, status: &FolderStatus) -> Vec<LogLine> {
        let now = conditions(status);
        let mut lines = Vec::new();
        let (ended, lasting) =
            std::mem::take(&mut self.0).into_iter().partition(|c| !now.contains_key(c) && is_over(c, status));
        self.0 = lasting;
        let mut ended_files = FileCount::default();
        for condition in ended {
            if ended_files.may_name(&condition) {
                lines.push(LogLine::Info(end_line(&condition)));
            }
        }
        lines.extend(ended_files.summary("no longer a problem").map(LogLine::Info));
        let mut begun_files = FileCount::default();
        for (condition, text) in now {
            if self.0.contains(&condition) {
                continue;
            }
            if begun_files.may_name(&condition) {
                lines.push(LogLine::Warn(text));
            }
            self.0.insert(condition);
        }
        lines.extend(begun_files.summary("not synced; see `memsync status --json`").map(LogLine::Warn));
        lines
    }
}

/// Counts the files of one update.
#[derive(Default)]
struct FileCount(usize);

impl FileCount {
    /// False for a file that is counted without being named.
    fn may_name(&mut self, condition: &Condition) -> bool {
        self.0 += usize::from(matches!(condition, Condition::File(_)));
        self.0 <= MAX_NAMED_FILES || !matches!(condition, Condition::File(_))
    }

    /// The line for the files that were not named.
    fn summary(&self, what: &str) -> Option<String> {
        let rest = self.0.saturating_sub(MAX_NAMED_FILES);
        (rest > 0).then(|| format!("and {rest} more files: {what}"))
    }
}

/// The conditions of a folder, each with the event and the command that helps.
fn conditions(status: &FolderStatus) -> BTreeMap<Condition, String> {
    let mut all = BTreeMap::new();
    let reason = status.reason.as_deref().unwrap_or_default();
    match (status.state, status.waits_for) {
        (SyncState::Offline, Some(WaitsFor::Disk)) => {
            all.insert(Condition::Disk, format!("{reason}; `memsync doctor` looks for the cause"));
        }
        (SyncState::Offline, _) => {
            let text =
                format!("{reason}; changes are kept here until it answers; `memsync doctor` looks for the cause");
            all.insert(Condition::Proxy, text);
        }
        (SyncState::AuthRequired, _) => {
            all.insert(Condition::Token, format!("{reason}; `memsync doctor` says how to mend it"));
        }
        (SyncState::Stopped, _) => {
            all.insert(Condition::Stopped, format!("not synced: {reason}; `memsync doctor` looks for the cause"));
        }
        (SyncState::Idle | SyncState::Syncing | SyncState::Paused | SyncState::Halted, _) => {}
    }
    if let Some(halt) = &status.halt {
        let key = halt.id.clone().unwrap_or_else(|| halt.kind.clone());
        let help = if halt.reason.contains("`memsync ") { "" } else { "; see `memsync status`" };
        all.insert(Condition::Hold(key), format!("held: {}{help}", halt.reason));
    }
    if let Some(remedy) = &status.watcher_remedy {
        all.insert(Condition::Watcher, format!("changes are found late: {remedy}"));
    }
    if let Some(remedy) = &status.push_remedy {
        all.insert(Condition::Push, format!("changes elsewhere are found late: {remedy}; `memsync doctor` tests it"));
    }
    if status.conflicts > 0 {
        let text = format!("conflict copies in the folder: {}; settle them with `memsync conflicts`", status.conflicts);
        all.insert(Condition::Conflicts, text);
    }
    for problem in &status.problems {
        let (condition, help) = file_condition(problem);
        all.entry(condition).or_insert_with(|| format!("{}: {}; {help}", problem.path, problem.problem));
    }
    all
}

/// The condition of a file that is not synced, and the command that helps. A full quota or disk is one condition for
/// all files that wait for it.
fn file_condition(problem: &ProblemStatus) -> (Condition, String) {
    let all = || "`memsync status` lists what waits".to_owned();
    if problem.problem.contains("(507)") {
        return (Condition::QuotaFull, all());
    }
    if problem.problem.contains(MAKE_ROOM) {
        return (Condition::DiskFull, all());
    }
    (Condition::File(problem.path.clone()), format!("see `memsync status {}`", problem.path))
}

/// True: a condition that the status does not show is over. False: the status cannot show it now.
fn is_over(condition: &Condition, status: &FolderStatus) -> bool {
    let root_is_away = status.halt.as_ref().is_some_and(HaltStatus::is_of_root);
    let proxy_answered = matches!(status.state, SyncState::Idle | SyncState::Halted) && !root_is_away;
    match condition {
        Condition::Proxy => proxy_answered || status.state == SyncState::AuthRequired,
        Condition::Token => proxy_answered,
        Condition::Disk => status.state != SyncState::Stopped && !root_is_away,
        Condition::Hold(_) => status.waits_for != Some(WaitsFor::Disk) && status.state != SyncState::Stopped,
        Condition::Stopped
        | Condition::Watcher
        | Condition::Push
        | Condition::Conflicts
        | Condition::QuotaFull
        | Condition::DiskFull
        | Condition::File(_) => true,
    }
}

fn end_line(condition: &Condition) -> String {
    match condition {
        Condition::Proxy => "the proxy answers again".to_owned(),
        Condition::Token => "the proxy takes the token again".to_owned(),
        Condition::Disk => "the disk works again".to_owned(),
        Condition::Stopped => "synced again".to_owned(),
        Condition::Hold(id) => format!("no longer held ({id})"),
        Condition::Watcher => "changes are found at once again".to_owned(),
        Condition::Push => "events of the proxy arrive again".to_owned(),
        Condition::Conflicts => "all conflicts are settled".to_owned(),
        Condition::QuotaFull => "the proxy has room again".to_owned(),
        Condition::DiskFull => "the disk has room again".to_owned(),
        Condition::File(path) => format!("{path}: no longer a problem"),
    }
}

/// The log line for a finished action. `None`: it failed, which is a condition.
pub(super) fn action_line(done: &FinishedAction) -> Option<String> {
    let describe = || describe_action(done.action, done.path.as_str(), done.device.as_deref());
    (done.outcome == "done").then(describe)
}

/// A finished action in words. `device`: the machine that wrote the new content.
pub(crate) fn describe_action(action: &str, path: &str, device: Option<&str>) -> String {
    let from = device.map(|device| format!(" from {device}")).unwrap_or_default();
    match action {
        "upload" => format!("uploaded {path}"),
        "download" => format!("downloaded {path}{from}"),
        "delete" => format!("deleted {path} on the proxy"),
        "trash" => format!("moved {path} to history: it was deleted elsewhere"),
        "merged" => format!("merged {path} with the version{from}"),
        "conflict" => format!("downloaded {path}{from}: both machines had changed it"),
        other => format!("{other} {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::problems::ProblemEffect;
    use super::*;

    fn status() -> FolderStatus {
        FolderStatus { path: "/m".to_owned(), in_sync: true, ..FolderStatus::default() }
    }

    fn offline(waits_for: WaitsFor) -> FolderStatus {
        let reason = Some("why".to_owned());
        FolderStatus { state: SyncState::Offline, waits_for: Some(waits_for), reason, in_sync: false, ..status() }
    }

    fn problems(n: usize) -> Vec<ProblemStatus> {
        let since = "2026-01-01T00:00:00Z".parse().unwrap();
        let problem = "is a symlink".to_owned();
        (0..n)
            .map(|n| ProblemStatus {
                path: format!("{n:03}"),
                problem: problem.clone(),
                since,
                effect: ProblemEffect::LeftOut,
            })
            .collect()
    }

    #[test]
    fn condition_is_logged_once_and_when_it_is_over() {
        let mut conditions = Conditions::default();
        assert_eq!(conditions.update(&status()), []);
        let lines = conditions.update(&offline(WaitsFor::Proxy));
        assert!(matches!(&lines[..], [LogLine::Warn(text)] if text.contains("`memsync doctor`")), "{lines:?}");
        assert_eq!(conditions.update(&offline(WaitsFor::Proxy)), []);
        assert_eq!(conditions.update(&status()), [LogLine::Info("the proxy answers again".to_owned())]);
        assert_eq!(conditions.update(&status()), []);
    }

    #[test]
    fn silent_push_is_logged_with_the_command_that_tests_it() {
        let mut conditions = Conditions::default();
        let lines = conditions.update(&FolderStatus { push_remedy: Some("none comes".to_owned()), ..status() });
        assert!(matches!(&lines[..], [LogLine::Warn(text)] if text.contains("`memsync doctor`")), "{lines:?}");
        assert_eq!(conditions.update(&status()), [LogLine::Info("events of the proxy arrive again".to_owned())]);
    }

    #[test]
    fn proxy_is_not_back_while_the_folder_is_away() {
        let mut conditions = Conditions::default();
        conditions.update(&offline(WaitsFor::Proxy));
        let halt = HaltStatus {
            kind: "root_missing".to_owned(),
            id: None,
            reason: "it is away".to_owned(),
            sample: Vec::new(),
            paths: 0,
            deleted_here: false,
        };
        let lines = conditions.update(&FolderStatus { state: SyncState::Halted, halt: Some(halt), ..status() });
        assert_eq!(lines, [LogLine::Warn("held: it is away; see `memsync status`".to_owned())]);
        assert_eq!(conditions.update(&status()).len(), 2, "both are over");
    }

    #[test]
    fn full_quota_is_one_condition_for_all_files() {
        let mut conditions = Conditions::default();
        let full = |n| {
            let mut all = problems(n);
            all.iter_mut().for_each(|p| p.problem = "the proxy refused the request (507): quota".to_owned());
            FolderStatus { problems: all, ..status() }
        };
        assert_eq!(conditions.update(&full(3)).len(), 1);
        assert_eq!(conditions.update(&full(9)), []);
        assert_eq!(conditions.update(&status()), [LogLine::Info("the proxy has room again".to_owned())]);
    }

    #[test]
    fn many_files_are_counted_not_listed() {
        let mut conditions = Conditions::default();
        let lines = conditions.update(&FolderStatus { problems: problems(50), ..status() });
        assert_eq!(lines.len(), MAX_NAMED_FILES + 1);
        assert!(matches!(lines.last(), Some(LogLine::Warn(text)) if text.contains("30 more files")), "{lines:?}");
        assert_eq!(conditions.update(&FolderStatus { problems: problems(49), ..status() }).len(), 1);
        assert_eq!(conditions.update(&status()).len(), MAX_NAMED_FILES + 1);
    }
}
