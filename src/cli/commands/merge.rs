//! `memsync merge`: merges three files, for people and as a merge driver of git.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::MergeArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::process::output;
use crate::cli::view::format;
use crate::disk::whole;
use crate::merge::{MergeOutcome, MergeRules, MergeSides, merge};

/// Larger files are not read. The merge itself has a lower limit, [`crate::merge::MAX_MERGE_BYTES`], for versions that both
/// sides changed.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The answer with `--json`.
#[derive(Serialize)]
struct MergeAnswer<'a> {
    merged: bool,
    /// Why the versions conflict.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The merged text, unless it went to `--output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

pub(super) fn run(app: &App, args: &MergeArgs) -> anyhow::Result<Exit> {
    let name = args.path.as_ref().unwrap_or(&args.local).to_string_lossy();
    let (base, local, remote) = (read(&args.base)?, read(&args.local)?, read(&args.remote)?);
    let sides = MergeSides { base: Some(&base), local: &local, remote: &remote };
    match merge(MergeRules::for_name(&name), sides) {
        MergeOutcome::Clean(text) => {
            deliver(app, &text, args.output.as_deref())?;
            Ok(Exit::Done)
        }
        MergeOutcome::Conflict(reason) => {
            if app.global.json {
                show(app, &MergeAnswer { merged: false, reason: Some(reason.to_string()), text: None })?;
            } else {
                output::note(format_args!("conflict in {}: {reason}", format::printable(&name)));
            }
            Ok(Exit::Conflicts)
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = whole::read_up_to(path, MAX_FILE_BYTES).with_context(|| path.display().to_string())?;
    let too_large = || {
        let message = format!("{}: larger than {} MiB, so it is not merged", path.display(), MAX_FILE_BYTES >> 20);
        CommandFailure::new(Exit::Conflicts, message)
    };
    Ok(read.ok_or_else(too_large)?)
}

/// Writes the merged text to `file`, or to stdout.
fn deliver(app: &App, text: &[u8], file: Option<&Path>) -> anyhow::Result<()> {
    if let Some(file) = file {
        whole::replace_of_user(file, text).with_context(|| format!("--output {}", file.display()))?;
    }
    if app.global.json {
        let shown = if file.is_none() { Some(str::from_utf8(text)) } else { None };
        let message = "the text is not UTF-8, which JSON cannot hold; use --output";
        let shown = shown.transpose().map_err(|_| CommandFailure::usage(message))?;
        show(app, &MergeAnswer { merged: true, reason: None, text: shown })
    } else if file.is_none() {
        output::print_bytes(text)?;
        Ok(())
    } else {
        Ok(())
    }
}

fn show(app: &App, answer: &MergeAnswer<'_>) -> anyhow::Result<()> {
    app.answer(answer, |_: &mut dyn Write, _| -> io::Result<()> { Ok(()) })?;
    Ok(())
}
