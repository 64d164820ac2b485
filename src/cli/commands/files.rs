//! `memsync put`, `append`, `rm` and `cat`: the files of a synced folder, for programs.
//!
//! A running agent makes each change between two cycles. Without an agent, the command holds the folder's lock. So two
//! commands never write at the same time.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::status::ignored_by;
use crate::cli::agent_client::unexpected_answer;
use crate::cli::app::App;
use crate::cli::args::{PutArgs, RmArgs};
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::{FolderPath, change_file, find_path, has_versions};
use crate::cli::machine::state_files::read_state;
use crate::cli::process::output;
use crate::cli::view::format;
use crate::config::resolve_links;
use crate::digest::Md5;
use crate::disk::{Disk, FileKind};
use crate::local::{ChangeOutcome, EditAction, EditCondition, EditOutcome, FolderChange};

/// The file after a change, or the removed file.
#[derive(Serialize)]
struct WrittenFile {
    path: PathBuf,
    md5: String,
    /// Bytes.
    size: u64,
}

/// The answer of `cat --json`.
#[derive(Serialize)]
struct FileText<'a> {
    path: PathBuf,
    md5: String,
    /// Bytes.
    size: usize,
    /// `None` if the content is not UTF-8.
    text: Option<&'a str>,
}

/// The answer with `--json` when a condition fails.
#[derive(Serialize)]
struct ConditionReport<'a> {
    error: FailedCondition<'a>,
}

#[derive(Serialize)]
struct FailedCondition<'a> {
    code: &'static str,
    message: &'a str,
    /// `None` if there is no file.
    current_md5: Option<String>,
}

pub(super) fn put(app: &App, args: &PutArgs) -> anyhow::Result<Exit> {
    let place = find_file(app, &args.path)?;
    let when = match args.if_md5 {
        Some(md5) => EditCondition::Md5(md5),
        None if args.if_new => EditCondition::New,
        None => EditCondition::Any,
    };
    write_stdin(app, &place, when, |from| EditAction::Put { from })
}

pub(super) fn append(app: &App, path: &Path) -> anyhow::Result<Exit> {
    let place = find_file(app, path)?;
    let max_bytes = app.config()?.sync.max_file_size;
    write_stdin(app, &place, EditCondition::Any, |from| EditAction::Append { from, max_bytes })
}

pub(super) fn remove(app: &App, args: &RmArgs) -> anyhow::Result<Exit> {
    let place = find_file(app, &args.path)?;
    let when = args.if_md5.map_or(EditCondition::Any, EditCondition::Md5);
    match change(app, &place, EditAction::Remove, when)? {
        EditOutcome::Taken { md5, size } => {
            let removed = WrittenFile { path: place.absolute(), md5: md5.to_string(), size };
            app.answer(&removed, |out, removed| {
                let path = format::path(&removed.path);
                writeln!(out, "{path} is in history; `memsync restore {path}` brings it back.")
            })
        }
        EditOutcome::Unmet { found: None } if when == EditCondition::Any => Err(no_file(&place)),
        EditOutcome::Unmet { found } => refuse(app, &place, when, found),
        EditOutcome::Written { .. } => Err(unexpected_answer()),
    }
}

pub(super) fn cat(app: &App, path: &Path) -> anyhow::Result<Exit> {
    let place = find_file(app, path)?;
    let max_bytes = app.config()?.sync.max_file_size;
    let content = match place.open.folder.read_up_to(&place.at, max_bytes) {
        Ok(Some(content)) => content,
        Ok(None) => {
            let (path, max) = (place.absolute(), format::size(max_bytes));
            let why = format!("{}: larger than `sync.max_file_size` ({max})", path.display());
            return Err(CommandFailure::new(Exit::Error, why).into());
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(no_file(&place));
        }
        Err(e) => return Err(e).with_context(|| place.absolute().display().to_string()),
    };
    if !app.global.json {
        output::print_bytes(&content)?;
        return Ok(Exit::Done);
    }
    let (md5, text) = (Md5::of(&content).to_string(), std::str::from_utf8(&content).ok());
    app.answer(&FileText { path: place.absolute(), md5, size: content.len(), text }, |_, _| Ok(()))
}

fn write_stdin(
    app: &App,
    place: &FolderPath,
    when: EditCondition,
    action: impl FnOnce(String) -> EditAction,
) -> anyhow::Result<Exit> {
    let content = read_stdin(app)?;
    let fetched = place.open.folder.keep_fetched(&content);
    let fetched = fetched.with_context(|| format!("{}: nothing was changed", place.open.root.display()))?;
    match change(app, place, action(fetched.path().to_owned()), when)? {
        EditOutcome::Written { md5, size } => {
            let written = WrittenFile { path: place.absolute(), md5: md5.to_string(), size };
            app.answer(&written, |out, written| writeln!(out, "{}", written.md5))
        }
        EditOutcome::Unmet { found } => refuse(app, place, when, found),
        EditOutcome::Taken { .. } => Err(unexpected_answer()),
    }
}

fn read_stdin(app: &App) -> anyhow::Result<Vec<u8>> {
    let max_bytes = app.config()?.sync.max_file_size;
    let mut content = Vec::new();
    io::stdin().lock().take(max_bytes.saturating_add(1)).read_to_end(&mut content).context("stdin")?;
    if content.len() as u64 > max_bytes {
        let max = format::size(max_bytes);
        let why = format!("stdin: larger than `sync.max_file_size` ({max}); nothing was changed");
        return Err(CommandFailure::new(Exit::Error, why).into());
    }
    Ok(content)
}

fn change(app: &App, place: &FolderPath, action: EditAction, when: EditCondition) -> anyhow::Result<EditOutcome> {
    let write = FolderChange::Edit { at: place.at.clone(), action, when };
    match change_file(app, &place.open, &write)? {
        ChangeOutcome::Edited(outcome) => Ok(outcome),
        _ => Err(unexpected_answer()),
    }
}

/// Reports a failed condition: on stdout as JSON if asked for, and as the error.
fn refuse(app: &App, place: &FolderPath, when: EditCondition, found: Option<Md5>) -> anyhow::Result<Exit> {
    let (path, current_md5) = (place.absolute(), found.map(|md5| md5.to_string()));
    let why = match (when, &current_md5) {
        (EditCondition::New, _) => "the file exists already".to_owned(),
        (_, None) => "there is no file".to_owned(),
        (EditCondition::Md5(wanted), Some(_)) => format!("the file does not have the md5 {wanted}"),
        (EditCondition::Any, Some(_)) => "the file is in the way".to_owned(),
    };
    let message = format!("{}: {why}; nothing was changed", path.display());
    let advice = format!("current md5: {}", current_md5.as_deref().unwrap_or("none"));
    if app.global.json {
        let error = FailedCondition { code: "condition_failed", message: &message, current_md5 };
        app.answer(&ConditionReport { error }, |_, _| Ok(()))?;
    }
    Err(CommandFailure::new(Exit::ConditionFailed, message).with_advice(advice).into())
}

fn no_file(place: &FolderPath) -> anyhow::Error {
    CommandFailure::new(Exit::Error, format!("{}: there is no file", place.absolute().display())).into()
}

/// Finds a file that is synced, or would be. Refuses every other path.
fn find_file(app: &App, path: &Path) -> anyhow::Result<FolderPath> {
    let place = find_path(app, path, has_versions)?;
    place.rel_path()?;
    let refused = |why: String| -> anyhow::Result<FolderPath> {
        Err(CommandFailure::usage(format!("{}: {why}", path.display())).into())
    };
    let disk = place.open.folder.disk();
    for (at, is_last) in prefixes(&place.at) {
        match disk.stat(at) {
            Ok(meta) if meta.kind == FileKind::Symlink => return refused(format!("{at} is a symlink")),
            Ok(meta) if is_last && meta.kind == FileKind::Dir => {
                return refused("there is a folder at this path".to_owned());
            }
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => break,
            Err(e) => return Err(e).with_context(|| place.absolute().display().to_string()),
        }
        if !is_last && place.open.folder.is_other_folder(at) {
            return refused(format!("{at} is a memory folder of its own"));
        }
    }
    if passes_symlink(&place, path)? {
        return refused("the path leads through a symlink inside the folder".to_owned());
    }
    if let Some(rule) = ignored_by(app, &place, false)? {
        return refused(format!("the file is ignored, so it is not synced ({rule})"));
    }
    require_identity(app, &place)?;
    Ok(place)
}

/// Each folder above the path, from the top, then the path itself with `true`.
fn prefixes(at: &str) -> impl Iterator<Item = (&str, bool)> {
    at.match_indices('/').map(|(end, _)| (&at[..end], false)).chain([(at, true)])
}

/// True if a symlink below the root leads from the path as typed to the place.
fn passes_symlink(place: &FolderPath, path: &Path) -> anyhow::Result<bool> {
    let at = Path::new(&place.at);
    let absolute = std::path::absolute(path).with_context(|| format!("{}: no path", path.display()))?;
    let root = absolute.ancestors().nth(at.components().count());
    let is_direct =
        absolute.ends_with(at) && root.is_some_and(|root| resolve_links(root) == resolve_links(&place.open.root));
    // A path relative to the folder is not resolved.
    Ok(!is_direct && path != at)
}

/// Refuses a folder that has lost its identity, such as the mount point of a disk that is not mounted. A file there would
/// be out of sight later.
fn require_identity(app: &App, place: &FolderPath) -> anyhow::Result<()> {
    let root = &place.open.root;
    if place.open.folder.identity().with_context(|| root.display().to_string())?.is_some() {
        return Ok(());
    }
    if read_state(app, root)?.is_some_and(|state| state.header.folder_id.is_some()) {
        let why = "the folder's identity (.memsync/id) is missing; if the folder was moved or unmounted, bring it back";
        return Err(CommandFailure::new(Exit::Halted, format!("{}: {why}", root.display())).into());
    }
    Ok(())
}
