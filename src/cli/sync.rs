//! `memsync sync [DIR]`: sync now; through the agent that runs, else by itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::app::App;
use super::exit::{Exit, Failure};
use super::{locate, output, setup, show, talk, verdict};
use crate::agent::control::{ControlRequest, ControlResponse, PlannedStep};
use crate::agent::root::OpenError;
use crate::agent::setup::FolderSetup;
use crate::agent::standalone::{StandaloneError, SyncSummary, plan_standalone, sync_standalone};
use crate::agent::standstill::Standstill;
use crate::agent::status::{FolderStatus, Status};

/// Between two looks at the agent's progress.
const TICK: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct DryRun {
    steps: Vec<PlannedStep>,
}

/// What was done without an agent, in all folders.
#[derive(Default, Serialize)]
struct Done {
    in_sync: bool,
    uploaded: usize,
    downloaded: usize,
    /// On the proxy.
    deleted: usize,
    /// Here, into history.
    trashed: usize,
    /// Conflict copies made.
    conflicts: Vec<String>,
    /// Conflict copies that are there.
    unresolved: usize,
    problems: usize,
    held: usize,
    /// Still to be done: it failed, or somebody goes on writing.
    pending: usize,
}

/// # Errors
/// When nothing is configured, or the proxy or the folder cannot be reached.
pub fn run(app: &App, dir: Option<&Path>, dry: bool) -> anyhow::Result<Exit> {
    let config = app.config()?;
    let wanted = dir.map(|dir| locate::configured(app, dir)).transpose()?;
    // As the config names it: a link that was pointed elsewhere still names the folder that the agent syncs.
    let folder = wanted.map(|f| f.path.clone());
    let root = wanted.map(|f| locate::real(&f.path));
    let runtime = talk::runtime()?;
    if dry {
        let request = ControlRequest::Plan { folder };
        let steps = match runtime.block_on(talk::ask_any(app, &request))? {
            Some(ControlResponse::Plan { steps }) => steps,
            Some(_) => return Err(talk::unexpected()),
            None => runtime.block_on(plan(&own_setups(app, config, root.as_deref())?))?,
        };
        return show_plan(app, steps);
    }
    if let Some(exit) = runtime.block_on(through_agent(app, folder, root.as_deref()))? {
        return Ok(exit);
    }
    runtime.block_on(alone(app, &own_setups(app, config, root.as_deref())?))
}

fn own_setups(app: &App, config: &crate::config::Config, root: Option<&Path>) -> anyhow::Result<Vec<FolderSetup>> {
    let mut setups = setup::folders(app, config, &setup::device_id(app)?)?;
    setups.retain(|s| root.is_none_or(|root| s.root == root));
    Ok(setups)
}

async fn plan(setups: &[FolderSetup]) -> anyhow::Result<Vec<PlannedStep>> {
    let mut steps = Vec::new();
    for setup in setups {
        steps.extend(plan_standalone(setup).await.map_err(|e| told(e, setup))?);
    }
    Ok(steps)
}

fn show_plan(app: &App, steps: Vec<PlannedStep>) -> anyhow::Result<Exit> {
    let exit = if steps.is_empty() { Exit::Done } else { Exit::Pending };
    app.answer(&DryRun { steps }, |out, plan| {
        if plan.steps.is_empty() {
            return writeln!(out, "Nothing to do.");
        }
        for step in &plan.steps {
            let path = step.folder.join(&step.path);
            writeln!(out, "{:<14} {}", step.action, show::name(&path.display().to_string()))?;
        }
        Ok(())
    })?;
    Ok(exit)
}

/// `None`: no agent runs.
async fn through_agent(app: &App, folder: Option<PathBuf>, root: Option<&Path>) -> anyhow::Result<Option<Exit>> {
    let request = ControlRequest::Sync { folder };
    let bar = bar();
    let answer = talk::ask_any(app, &request);
    tokio::pin!(answer);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + TICK, TICK);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer?,
            _ = tick.tick() => {
                // A second connection; it only decorates, so what goes wrong there is not told twice.
                if let Ok(Some(status)) = talk::status(app).await {
                    let of = ours(&status, root).filter_map(|f| f.progress);
                    let (done, steps) = of.fold((0, 0), |(d, s), p| (d + p.done, s + p.steps));
                    advance(&bar, done, steps);
                }
            }
        }
    };
    bar.finish_and_clear();
    let status = match answer {
        None => return Ok(None),
        Some(ControlResponse::Status(status)) => *status,
        Some(_) => match talk::status(app).await? {
            Some(status) => status,
            None => return Err(talk::no_agent(app)),
        },
    };
    let status = match root {
        Some(_) => narrowed(status, root),
        None => status,
    };
    for folder in &status.folders {
        if let Some(halt) = &folder.halt {
            output::note(format_args!("{}: {}", show::name(&folder.path), show::name(&halt.reason)));
        }
    }
    app.answer(&status, |out, status| {
        let files: usize = status.folders.iter().map(|f| f.files).sum();
        let waiting: usize = status.folders.iter().map(verdict::waits).sum();
        let rest = if waiting > 0 { format!(", {waiting} waiting") } else { String::new() };
        let headline = verdict::of(status).headline;
        writeln!(out, "{}{}: {}{rest}", headline[..1].to_uppercase(), &headline[1..], show::count(files, "file"))
    })?;
    Ok(Some(verdict::of(&status).exit))
}

fn ours<'a>(status: &'a Status, root: Option<&'a Path>) -> impl Iterator<Item = &'a FolderStatus> {
    status.folders.iter().filter(move |f| root.is_none_or(|root| Path::new(&f.path) == root))
}

/// The status of one folder alone.
fn narrowed(mut status: Status, root: Option<&Path>) -> Status {
    status.folders = ours(&status, root).cloned().collect();
    if let [folder] = status.folders.as_slice() {
        status.state = folder.state;
        status.in_sync = folder.in_sync;
        status.reason = folder.reason.clone();
    }
    status
}

async fn alone(app: &App, setups: &[FolderSetup]) -> anyhow::Result<Exit> {
    let mut done = Done { in_sync: true, ..Done::default() };
    let mut exit = Exit::Done;
    let bar = bar();
    let mut failures = Vec::new();
    for setup in setups {
        let summary: SyncSummary = match sync_standalone(setup, |done, steps| advance(&bar, done, steps)).await {
            Ok(summary) => summary,
            // A folder that fails holds up no other.
            Err(e) => {
                failures.push(told(e, setup));
                continue;
            }
        };
        for halt in &summary.halts {
            output::note(format_args!("{}: {}", setup.root.display(), show::name(&halt.reason)));
        }
        let folder = &summary.status;
        for problem in &folder.problems {
            let path = setup.root.join(&problem.path);
            output::note(format_args!("{}: {}", show::name(&path.display().to_string()), show::name(&problem.problem)));
        }
        done.uploaded += summary.uploaded;
        done.downloaded += summary.downloaded;
        done.deleted += summary.deleted;
        done.trashed += summary.trashed;
        done.problems += folder.problems.len();
        done.held += summary.halts.len();
        done.pending += (verdict::waits(folder) - folder.pending.held_delete)
            .max(usize::from(!folder.in_sync && summary.halts.is_empty()));
        done.unresolved += folder.conflicts;
        done.in_sync &= folder.in_sync;
        exit = exit.max(verdict::folder_exit(folder)).max(if folder.in_sync { Exit::Done } else { Exit::Pending });
        done.conflicts.extend(summary.conflicts);
    }
    bar.finish_and_clear();
    if let Some(last) = failures.pop() {
        failures.iter().for_each(|e| output::note(format_args!("{e:#}")));
        return Err(last);
    }
    app.answer(&done, |out, done| writeln!(out, "{}", sentence(done)))?;
    Ok(exit)
}

fn sentence(done: &Done) -> String {
    let parts: Vec<String> = [
        (done.uploaded, "uploaded"),
        (done.downloaded, "downloaded"),
        (done.deleted, "deleted on the proxy"),
        (done.trashed, "moved to history"),
        (done.unresolved, "in conflict (`memsync conflicts`)"),
        (done.problems, "not synced"),
        (done.pending, "still to be done"),
        (done.held, "held (`memsync approve --list`, with an agent running)"),
    ]
    .into_iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, what)| format!("{n} {what}"))
    .collect();
    let state = if done.in_sync { "In sync" } else { "Not in sync" };
    if parts.is_empty() {
        format!("{state}; nothing was to be done.")
    } else {
        format!("{state}: {}.", parts.join(", "))
    }
}

/// The error with its folder, and with the code that `status` has for it.
fn told(error: StandaloneError, setup: &FolderSetup) -> anyhow::Error {
    let root = setup.root.display();
    let why = Standstill::from(&error);
    let exit = match &error {
        StandaloneError::Open(OpenError::Http(_) | OpenError::Pattern(_)) => Exit::Usage,
        _ => Exit::of_state(why.state),
    };
    Failure::new(exit, format!("{root}: {}", why.reason)).into()
}

/// On a terminal alone; draws to stderr.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} {wide_msg}") {
        bar.set_style(style);
    }
    bar
}

fn advance(bar: &ProgressBar, done: usize, steps: usize) {
    if steps > 0 {
        bar.set_length(steps as u64);
        bar.set_position(done.min(steps) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::status_text::tests::{folder, status};
    use super::*;

    #[test]
    fn one_line_says_what_was_done() {
        let mut done = Done { in_sync: true, ..Done::default() };
        assert_eq!(sentence(&done), "In sync; nothing was to be done.");
        (done.uploaded, done.trashed) = (3, 1);
        assert_eq!(sentence(&done), "In sync: 3 uploaded, 1 moved to history.");
    }

    #[test]
    fn one_folder_is_judged_alone() {
        let mut s = status();
        s.in_sync = false;
        s.folders.push(FolderStatus { path: "/other".to_owned(), in_sync: false, conflicts: 1, ..folder() });
        let one = narrowed(s.clone(), Some(Path::new("/home/ana/Memory")));
        assert_eq!((one.folders.len(), verdict::of(&one).exit), (1, Exit::Done));
        assert_eq!(verdict::of(&s).exit, Exit::Conflicts);
    }
}
