//! `memsync sync [DIR]`: syncs now, through the running agent or alone. `--dry-run` shows the plan.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde::Serialize;

use crate::agent::control::{ControlRequest, ControlResponse, PlannedStep};
use crate::agent::root::OpenError;
use crate::agent::setup::FolderSetup;
use crate::agent::standalone::{SyncSummary, plan_standalone, sync_standalone};
use crate::agent::standstill::Standstill;
use crate::agent::status::{FolderStatus, Status};
use crate::cli::agent_client;
use crate::cli::app::App;
use crate::cli::args::SyncArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::configured_folder;
use crate::cli::machine::agent_setup;
use crate::cli::process::output;
use crate::cli::process::runtime::client_runtime;
use crate::cli::view::format;
use crate::cli::view::verdict::{StatusVerdict, folder_exit};
use crate::config::resolve_links;
use crate::state::Pause;

/// How often the progress of the agent is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

const PROGRESS_BAR: &str = "{bar:30} {pos} of {len} {wide_msg}";

/// The document of a sync without an agent, over all folders.
#[derive(Default, Serialize)]
struct SyncTotals {
    in_sync: bool,
    uploaded: usize,
    downloaded: usize,
    merged: usize,
    /// On the proxy.
    deleted: usize,
    /// Files that went to history here.
    trashed: usize,
    /// Conflict copies made now.
    conflicts: Vec<String>,
    /// Conflict copies present.
    unresolved: usize,
    problems: usize,
    held: usize,
    /// Changes that failed, or that another program keeps making.
    pending: usize,
}

/// The folder that `DIR` names.
struct SyncTarget {
    /// As the config names it. The agent knows it by this path, even if a symlink in it was changed since.
    path: PathBuf,
    root: PathBuf,
}

pub(super) fn run(app: &App, args: &SyncArgs) -> anyhow::Result<Exit> {
    app.config()?;
    let folder = args.dir.as_deref().map(|dir| configured_folder(app, dir)).transpose()?;
    let target = folder.map(|f| SyncTarget { path: f.path.clone(), root: resolve_links(&f.path) });
    let runtime = client_runtime()?;
    if args.dry_run {
        return runtime.block_on(plan(app, target.as_ref()));
    }
    if let Some(exit) = runtime.block_on(sync_through_agent(app, target.as_ref()))? {
        return Ok(exit);
    }
    refuse_while_paused(app)?;
    runtime.block_on(sync_alone(app, &own_setups(app, target.as_ref())?))
}

fn own_setups(app: &App, target: Option<&SyncTarget>) -> anyhow::Result<Vec<FolderSetup>> {
    let mut setups = agent_setup::folders(app, app.config()?)?;
    setups.retain(|s| target.is_none_or(|target| s.root == target.root));
    Ok(setups)
}

/// A pause also holds without an agent.
fn refuse_while_paused(app: &App) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let pause = Pause::load(&app.dirs.state, now).with_context(|| app.dirs.state.display().to_string())?;
    let Some(pause) = pause else { return Ok(()) };
    let end = pause.left(now).and_then(|left| now.checked_add(left).ok());
    let until = end.map_or_else(String::new, |at| format!(" until {}", format::time(at)));
    let why = format!("nothing was synced: syncing is paused{until}; `memsync resume` ends the pause");
    Err(CommandFailure::new(Exit::Pending, why).into())
}

async fn plan(app: &App, target: Option<&SyncTarget>) -> anyhow::Result<Exit> {
    let request = ControlRequest::Plan { folder: target.map(|target| target.path.clone()) };
    let steps = match agent_client::ask_if_running(app, &request).await? {
        Some(ControlResponse::Plan { steps }) => steps,
        Some(_) => return Err(agent_client::unexpected_answer()),
        None => {
            let mut steps = Vec::new();
            for setup in own_setups(app, target)? {
                steps.extend(plan_standalone(&setup).await.map_err(|e| folder_error(&e, &setup))?);
            }
            steps
        }
    };
    let exit = if steps.is_empty() { Exit::Done } else { Exit::Pending };
    app.answer_list("steps", &steps, write_steps)?;
    Ok(exit)
}

fn write_steps(out: &mut dyn Write, steps: &[PlannedStep]) -> io::Result<()> {
    if steps.is_empty() {
        return writeln!(out, "Nothing to do.");
    }
    for step in steps {
        writeln!(out, "{:<14} {}", step.action, format::path(&step.folder.join(&step.path)))?;
    }
    Ok(())
}

/// `None` if no agent runs.
async fn sync_through_agent(app: &App, target: Option<&SyncTarget>) -> anyhow::Result<Option<Exit>> {
    let root = target.map(|target| target.root.as_path());
    let request = ControlRequest::Sync { folder: target.map(|target| target.path.clone()) };
    let status = match ask_with_progress(app, &request, root).await? {
        None => return Ok(None),
        Some(ControlResponse::Status(status)) => *status,
        Some(_) => agent_client::require_status(app).await?,
    };
    let status = match root {
        Some(root) => status_of_folder(status, root),
        None => status,
    };
    for folder in &status.folders {
        if let Some(halt) = &folder.halt {
            output::note(format_args!("{}: {}", format::printable(&folder.path), format::printable(&halt.reason)));
        }
    }
    let verdict = StatusVerdict::of(&status);
    app.answer(&status, |out, status| {
        let files: usize = status.folders.iter().map(|f| f.files).sum();
        let waiting: usize = status.folders.iter().map(|f| f.pending.total()).sum();
        let rest = if waiting > 0 { format!(", {waiting} waiting") } else { String::new() };
        writeln!(out, "{}: {}{rest}", verdict.sentence(), format::count(files, "file"))
    })?;
    Ok(Some(verdict.exit))
}

/// Asks the agent, and draws its progress until it answers.
async fn ask_with_progress(
    app: &App,
    request: &ControlRequest,
    root: Option<&Path>,
) -> anyhow::Result<Option<ControlResponse>> {
    let bar = output::progress_bar(PROGRESS_BAR);
    let answer = agent_client::ask_if_running(app, request);
    tokio::pin!(answer);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer?,
            _ = tick.tick() => {
                // The request itself reports the errors of the agent.
                if let Ok(Some(status)) = agent_client::agent_status(app).await {
                    let progress = folders_at(&status, root).filter_map(|f| f.progress);
                    let (done, steps) = progress.fold((0, 0), |(d, s), p| (d + p.done, s + p.steps));
                    advance(&bar, done, steps);
                }
            }
        }
    };
    bar.finish_and_clear();
    Ok(answer)
}

fn folders_at<'a>(status: &'a Status, root: Option<&'a Path>) -> impl Iterator<Item = &'a FolderStatus> {
    status.folders.iter().filter(move |f| root.is_none_or(|root| Path::new(&f.path) == root))
}

/// The status with one folder only.
fn status_of_folder(mut status: Status, root: &Path) -> Status {
    let folders: Vec<FolderStatus> = folders_at(&status, Some(root)).cloned().collect();
    // A symlink was changed since the agent started, so the agent has another path for the folder. Show all folders.
    if folders.is_empty() {
        return status;
    }
    status.folders = folders;
    if let [folder] = status.folders.as_slice() {
        status.state = folder.state;
        status.in_sync = folder.in_sync;
        status.reason = folder.reason.clone();
    }
    status
}

/// Syncs the folders one by one. A folder that fails does not keep the others from syncing.
async fn sync_alone(app: &App, setups: &[FolderSetup]) -> anyhow::Result<Exit> {
    let mut totals = SyncTotals { in_sync: true, ..SyncTotals::default() };
    let mut exit = Exit::Done;
    let bar = output::progress_bar(PROGRESS_BAR);
    let mut failures = Vec::new();
    for setup in setups {
        match sync_standalone(setup, |done, steps| advance(&bar, done, steps)).await {
            Ok(summary) => {
                note_problems(setup, &summary);
                let folder = &summary.status;
                exit = exit.max(folder_exit(folder)).max(if folder.in_sync { Exit::Done } else { Exit::Pending });
                totals.add(summary);
            }
            Err(e) => failures.push(folder_error(&e, setup)),
        }
    }
    bar.finish_and_clear();
    if let Some(last) = failures.pop() {
        failures.iter().for_each(|e| output::note(format_args!("{e:#}")));
        return Err(last);
    }
    app.answer(&totals, |out, totals| writeln!(out, "{}", totals.sentence()))?;
    Ok(exit)
}

fn note_problems(setup: &FolderSetup, summary: &SyncSummary) {
    for halt in &summary.halts {
        output::note(format_args!("{}: {}", format::path(&setup.root), format::printable(&halt.reason)));
    }
    for problem in &summary.status.problems {
        let path = setup.root.join(&problem.path);
        output::note(format_args!("{}: {}", format::path(&path), format::printable(&problem.problem)));
    }
}

impl SyncTotals {
    fn add(&mut self, summary: SyncSummary) {
        let folder = &summary.status;
        let changes = folder.pending.total() - folder.pending.held_delete;
        self.uploaded += summary.uploaded;
        self.downloaded += summary.downloaded;
        self.merged += summary.merged;
        self.deleted += summary.deleted;
        self.trashed += summary.trashed;
        self.problems += folder.problems.len();
        self.held += summary.halts.len();
        self.pending += changes.max(usize::from(!folder.in_sync && summary.halts.is_empty()));
        self.unresolved += folder.conflicts;
        self.in_sync &= folder.in_sync;
        self.conflicts.extend(summary.conflicts);
    }

    fn sentence(&self) -> String {
        let parts: Vec<String> = [
            (self.uploaded, "uploaded"),
            (self.downloaded, "downloaded"),
            (self.merged, "merged"),
            (self.deleted, "deleted on the proxy"),
            (self.trashed, "moved to history"),
            (self.unresolved, "in conflict (`memsync conflicts`)"),
            (self.problems, "not synced"),
            (self.pending, "still to be done"),
            (self.held, "held (`memsync approve --list`, with an agent running)"),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
        let state = if self.in_sync { "In sync" } else { "Not in sync" };
        if parts.is_empty() {
            format!("{state}; nothing was to be done.")
        } else {
            format!("{state}: {}.", parts.join(", "))
        }
    }
}

/// The error with its folder, and with the exit code that `status` gives.
fn folder_error(error: &OpenError, setup: &FolderSetup) -> anyhow::Error {
    let why = Standstill::from(error);
    let exit = match error {
        OpenError::Http(_) | OpenError::Pattern(_) => Exit::Usage,
        _ => Exit::of_state(why.state),
    };
    CommandFailure::new(exit, format!("{}: {}", setup.root.display(), why.reason)).into()
}

fn advance(bar: &ProgressBar, done: usize, steps: usize) {
    if steps > 0 {
        bar.set_length(steps as u64);
        bar.set_position(done.min(steps) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::view::samples::{folder, status};

    #[test]
    fn totals_make_one_sentence() {
        let mut totals = SyncTotals { in_sync: true, ..SyncTotals::default() };
        assert_eq!(totals.sentence(), "In sync; nothing was to be done.");
        (totals.uploaded, totals.trashed) = (3, 1);
        assert_eq!(totals.sentence(), "In sync: 3 uploaded, 1 moved to history.");
    }

    #[test]
    fn status_of_folder_ignores_the_other_folders() {
        let mut s = status();
        s.in_sync = false;
        s.folders.push(FolderStatus { path: "/other".to_owned(), in_sync: false, conflicts: 1, ..folder() });
        let one = status_of_folder(s.clone(), Path::new("/home/ana/Memory"));
        assert_eq!((one.folders.len(), StatusVerdict::of(&one).exit), (1, Exit::Done));
        assert_eq!(StatusVerdict::of(&s).exit, Exit::Conflicts);
    }
}
