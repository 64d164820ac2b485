//! `memsync log`: lists the steps that sync took on this machine, from the activity journals of the folders.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;

use crate::agent::describe_action;
use crate::cli::app::App;
use crate::cli::args::LogArgs;
use crate::cli::exit::Exit;
use crate::cli::folder::{find_path, has_versions};
use crate::cli::machine::state_files;
use crate::cli::process::output::{self, OutputReader};
use crate::cli::view::format;
use crate::state::{ActivityEntry, ActivityJournal, JournalPosition};

/// The time between two looks at the journals with `--follow`.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// One line of the answer.
#[derive(Serialize)]
struct LoggedAction {
    folder: PathBuf,
    #[serde(flatten)]
    entry: ActivityEntry,
}

/// The actions that the user asked for.
struct Selection {
    /// A file or a folder, by its path on the wire. Empty: everything.
    path: String,
    since: Option<Timestamp>,
}

impl Selection {
    fn selects(&self, entry: &ActivityEntry) -> bool {
        let rest = entry.path.strip_prefix(&self.path);
        let is_below = rest.is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'));
        is_below && self.since.is_none_or(|since| entry.at >= since)
    }
}

/// The journal of one folder, with the place that was read last.
struct FolderLog {
    folder: PathBuf,
    journal: ActivityJournal,
    position: JournalPosition,
}

impl FolderLog {
    fn open(app: &App, folder: &Path) -> Self {
        let journal = ActivityJournal::new(state_files::find(app, folder).activity);
        Self { folder: folder.to_owned(), journal, position: JournalPosition::default() }
    }

    fn read_on(&mut self, selection: &Selection) -> anyhow::Result<Vec<LoggedAction>> {
        let read = self.journal.read(&mut self.position);
        let entries = read.with_context(|| format!("{}: cannot read it", self.journal.dir().display()))?;
        let wanted = entries.into_iter().filter(|entry| selection.selects(entry));
        Ok(wanted.map(|entry| LoggedAction { folder: self.folder.clone(), entry }).collect())
    }
}

pub(super) fn run(app: &App, args: &LogArgs) -> anyhow::Result<Exit> {
    let (mut logs, selection) = match &args.path {
        Some(path) => {
            let place = find_path(app, path, has_versions)?;
            let path = if place.at.is_empty() { String::new() } else { place.rel_path()?.to_string() };
            (vec![FolderLog::open(app, &place.open.root)], Selection { path, since: args.since })
        }
        None => {
            let folders = app.config()?.folders.iter().map(|folder| FolderLog::open(app, &folder.path));
            (folders.collect(), Selection { path: String::new(), since: args.since })
        }
    };
    let names_folder = logs.len() > 1;
    if args.follow {
        return follow(app, &mut logs, &selection, names_folder);
    }
    let actions = read_all(&mut logs, &selection)?;
    app.answer_list("actions", &actions, |out, actions| {
        if actions.is_empty() {
            return writeln!(out, "Sync has done nothing here yet.");
        }
        actions.iter().try_for_each(|action| write_action(out, action, names_folder))
    })
}

/// The new actions of all folders in the order of their times.
fn read_all(logs: &mut [FolderLog], selection: &Selection) -> anyhow::Result<Vec<LoggedAction>> {
    let mut actions = Vec::new();
    for log in logs {
        actions.extend(log.read_on(selection)?);
    }
    actions.sort_by_key(|action| action.entry.at);
    Ok(actions)
}

/// Prints each new action until the process is stopped or the reader closes stdout. With `--json` each line is a document.
fn follow(app: &App, logs: &mut [FolderLog], selection: &Selection, names_folder: bool) -> anyhow::Result<Exit> {
    loop {
        let actions = read_all(logs, selection)?;
        let reader = output::print(|out| {
            for action in &actions {
                if app.global.json {
                    serde_json::to_writer(&mut *out, action)?;
                    writeln!(out)?;
                } else {
                    write_action(out, action, names_folder)?;
                }
            }
            Ok(())
        })?;
        if reader == OutputReader::Gone {
            return Ok(Exit::Done);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn write_action(out: &mut dyn Write, action: &LoggedAction, names_folder: bool) -> io::Result<()> {
    let ActivityEntry { at, path, action: done, outcome, device } = &action.entry;
    let folder = if names_folder { format!("{}: ", format::path(&action.folder)) } else { String::new() };
    let text = match outcome.as_str() {
        "done" => describe_action(done, path, device.as_deref()),
        why => format!("could not {done} {path}: {why}"),
    };
    writeln!(out, "{}  {folder}{}", format::time(*at), format::printable(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_selects_the_files_below_it() {
        let entry = |path: &str| ActivityEntry {
            at: Timestamp::UNIX_EPOCH,
            path: path.to_owned(),
            action: "upload".to_owned(),
            outcome: "done".to_owned(),
            device: None,
        };
        let selects =
            |path: &str, entry_path: &str| Selection { path: path.to_owned(), since: None }.selects(&entry(entry_path));
        assert!(selects("", "a.md") && selects("n", "n/a.md") && selects("n/a.md", "n/a.md"));
        assert!(!selects("n", "nn/a.md") && !selects("n/a.md", "n/b.md"));
        let since = Selection { path: String::new(), since: Some(Timestamp::MAX) };
        assert!(!since.selects(&entry("a.md")));
    }
}
