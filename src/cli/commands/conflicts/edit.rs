//! `memsync conflicts resolve PATH --edit`: a person makes one text of both in an editor.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::Context;

use crate::cli::app::App;
use crate::cli::conflict_copies::{ConflictCopy, last_name};
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::{ConfiguredFolder, change_file};
use crate::cli::process::output;
use crate::cli::view::format;
use crate::cli::view::markers::MarkedText;
use crate::digest::Md5;
use crate::disk::whole;
use crate::local::FolderChange;

/// Larger texts are not opened in an editor.
const MAX_EDIT_BYTES: u64 = 16 << 20;

/// Both texts of a conflict.
struct ConflictTexts {
    /// Empty if the file is gone.
    file: String,
    copy: String,
}

/// Gives the file the text that the editor leaves, and moves the copy to history. The edited text stays in a private file if
/// anything fails, and the error names it.
pub(super) fn resolve_by_edit(app: &App, open: &ConfiguredFolder, copy: &ConflictCopy) -> anyhow::Result<()> {
    let editor = find_editor(app)?;
    let texts = read_texts(open, copy)?;
    let [name, device] = [last_name(&copy.original), &copy.device].map(format::printable);
    let names = [format!("{name}, the file"), format!("the copy from {device}")];
    let marked = MarkedText::new(&texts.file, &texts.copy, [&names[0], &names[1]]);
    let draft = write_draft(app, copy, &marked.text)?;
    let take = || -> anyhow::Result<()> {
        let edited = edit(&editor, &draft)?;
        if str::from_utf8(&edited).is_ok_and(|text| marked.has_markers(text)) {
            let why = format!("{}: the text still has markers", open.root.join(&copy.original).display());
            return Err(CommandFailure::new(Exit::Conflicts, why).into());
        }
        refuse_changes(open, copy, &texts)?;
        put_edited(app, open, copy, &edited)
    };
    take().with_context(|| format!("the conflict stays; your edited text is in {}", draft.display()))?;
    if let Err(e) = whole::remove_with_folder(&draft) {
        tracing::warn!("{}: cannot be removed: {e}", draft.display());
    }
    Ok(())
}

fn find_editor(app: &App) -> anyhow::Result<String> {
    let set = |name: &str| app.machine.env.get(name).filter(|value| !value.trim().is_empty()).cloned();
    let why = "no editor is known; set VISUAL or EDITOR, such as `EDITOR=nano`, or use --keep";
    Ok(set("VISUAL").or_else(|| set("EDITOR")).ok_or_else(|| CommandFailure::usage(why))?)
}

fn read_texts(open: &ConfiguredFolder, copy: &ConflictCopy) -> anyhow::Result<ConflictTexts> {
    let file = if copy.original_exists { read_text(open, &copy.original)? } else { String::new() };
    Ok(ConflictTexts { file, copy: read_text(open, &copy.path)? })
}

fn read_text(open: &ConfiguredFolder, at: &str) -> anyhow::Result<String> {
    let path = open.root.join(at);
    let shown = path.display();
    let no_text = |why: &str| CommandFailure::usage(format!("{shown}: {why}, so it is not edited; use --keep"));
    let content = open.folder.read_up_to(at, MAX_EDIT_BYTES).with_context(|| shown.to_string())?;
    let content = content.ok_or_else(|| no_text("it is larger than 16 MiB"))?;
    Ok(format::text_of(&content).ok_or_else(|| no_text("it is no text"))?.to_owned())
}

/// Writes the text to a new private file with the name of the original, so that the editor knows its kind.
fn write_draft(app: &App, copy: &ConflictCopy, text: &str) -> anyhow::Result<PathBuf> {
    let dir = app.dirs.state.join(format!("edit-{:016x}", fastrand::u64(..)));
    let draft = dir.join(last_name(&copy.original));
    whole::create_private(&draft, text.as_bytes()).with_context(|| draft.display().to_string())?;
    Ok(draft)
}

/// Opens the draft, and returns its text after the editor has ended well.
fn edit(editor: &str, draft: &Path) -> anyhow::Result<Vec<u8>> {
    output::note(format_args!("Opening {} …", format::path(draft)));
    // The variable may have arguments, and a shell reads them as in other programs.
    let run = Command::new("/bin/sh").args(["-c", &format!("{editor} \"$1\""), "memsync"]).arg(draft).status();
    let status = run.with_context(|| format!("the editor `{editor}` cannot be started"))?;
    if !status.success() {
        let why = format!("the editor `{editor}` failed ({})", describe(status));
        return Err(CommandFailure::new(Exit::Error, why).into());
    }
    let read = whole::read_up_to(draft, MAX_EDIT_BYTES).context("the edited text cannot be read")?;
    Ok(read.ok_or_else(|| CommandFailure::new(Exit::Error, "the edited text is larger than 16 MiB"))?)
}

fn describe(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

/// Refuses the edit if one of the texts has changed meanwhile, because the person did not see the change.
fn refuse_changes(open: &ConfiguredFolder, copy: &ConflictCopy, texts: &ConflictTexts) -> anyhow::Result<()> {
    for (at, text) in [(&copy.original, &texts.file), (&copy.path, &texts.copy)] {
        let now = match open.folder.read_up_to(at, MAX_EDIT_BYTES) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some(Vec::new()),
            read => read.with_context(|| open.root.join(at).display().to_string())?,
        };
        if now.is_none_or(|now| Md5::of(&now) != Md5::of(text.as_bytes())) {
            let why = format!(
                "{}: it changed while you edited; look at it, and run this again",
                open.root.join(at).display()
            );
            return Err(CommandFailure::new(Exit::Conflicts, why).into());
        }
    }
    Ok(())
}

fn put_edited(app: &App, open: &ConfiguredFolder, copy: &ConflictCopy, edited: &[u8]) -> anyhow::Result<()> {
    let fetched = open.folder.keep_fetched(edited).with_context(|| open.root.display().to_string())?;
    change_file(app, open, &FolderChange::Put { from: fetched.path().to_owned(), at: copy.original.clone() })?;
    let trash = FolderChange::Trash { at: copy.path.clone() };
    change_file(app, open, &trash).with_context(|| {
        format!("{} has the edited text already; run this again with --keep file", format::printable(&copy.original))
    })?;
    Ok(())
}
