//! `memsync show`: writes an earlier text to stdout.

use std::io::{self, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::ShowArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::process::output;
use crate::cli::versions::{PathVersions, parse_target};
use crate::cli::view::format;

#[derive(Serialize)]
struct ShownVersion<'a> {
    path: PathBuf,
    id: String,
    at: Timestamp,
    text: &'a str,
}

pub(super) fn run(app: &App, args: &ShowArgs) -> anyhow::Result<Exit> {
    let target = parse_target(app, &args.path)?;
    target.place.require_file()?;
    let mut versions = PathVersions::kept(app, &target.place)?;
    let version = versions.find(&target.name)?;
    versions.proxy_part().note();
    let content = versions.content(&version)?;
    let path = target.place.absolute();
    if app.global.json {
        let message = format!("{}: the version is not UTF-8, which JSON cannot hold; leave out --json", path.display());
        let text = str::from_utf8(&content).map_err(|_| CommandFailure::usage(message))?;
        let shown = ShownVersion { path, id: version.id(), at: version.at(), text };
        return app.answer(&shown, |_, _| Ok(()));
    }
    if !output::is_terminal() {
        output::print_bytes(&content)?;
        return Ok(Exit::Done);
    }
    let Some(text) = format::text_of(&content) else {
        let (path, id) = (path.display(), version.id());
        let why = format!(
            "{path}@{id} is no text, and is not shown on a terminal; `memsync restore {path}@{id} --to FILE` writes it to a file"
        );
        return Err(CommandFailure::usage(why).into());
    };
    output::print(|out| write_text(out, text))?;
    Ok(Exit::Done)
}

fn write_text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    text.lines().try_for_each(|line| writeln!(out, "{}", format::text_line(line)))
}
