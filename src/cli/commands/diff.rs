//! `memsync diff`: shows the difference between two texts of a file.

use std::io::{self, Write};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::DiffArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::process::output;
use crate::cli::versions::{EarlierVersion, PathVersions, VersionName, parse_name, parse_target};
use crate::cli::view::diff::{ChangedLines, DiffLook, changed_lines, write_diff};
use crate::cli::view::format;

/// One text of a comparison.
#[derive(Serialize)]
struct ComparedText {
    /// `null`: the file as it is now.
    id: Option<String>,
    at: Option<Timestamp>,
    device: Option<String>,
    /// `null`: there is no file.
    size: Option<usize>,
    #[serde(skip)]
    content: Vec<u8>,
}

/// The document of `diff`.
#[derive(Serialize)]
struct Comparison<'a> {
    path: PathBuf,
    old: &'a ComparedText,
    new: &'a ComparedText,
    same: bool,
    /// `null` if one of them is no text.
    changes: Option<Vec<ChangedLines<'a>>>,
}

impl ComparedText {
    fn of_version(version: &EarlierVersion, content: Vec<u8>) -> Self {
        Self {
            id: Some(version.id()),
            at: Some(version.at()).filter(|at| *at < Timestamp::MAX),
            device: version.device.clone(),
            size: Some(content.len()),
            content,
        }
    }

    /// The file as it is now. Without a file, the text is empty.
    fn now(content: Option<Vec<u8>>) -> Self {
        let size = content.as_ref().map(Vec::len);
        Self { id: None, at: None, device: None, size, content: content.unwrap_or_default() }
    }

    /// The line above the difference.
    fn title(&self, path: &str) -> String {
        let Some(id) = &self.id else {
            return format!("{path}  {}", if self.size.is_some() { "as it is now" } else { "(gone)" });
        };
        let at = self.at.map(|at| format!("  until {}", format::time(at))).unwrap_or_default();
        let device = self.device.as_ref().map(|device| format!("  from {}", format::printable(device)));
        format!("{path}@{id}{at}{}", device.unwrap_or_default())
    }
}

/// Exits with 0 whether or not the texts differ. The field `same` of `--json` tells a script.
pub(super) fn run(app: &App, args: &DiffArgs) -> anyhow::Result<Exit> {
    let target = parse_target(app, &args.path)?;
    target.place.require_file()?;
    let newer = args.newer.as_deref().map(parse_newer).transpose()?;
    let mut versions = PathVersions::kept(app, &target.place)?;
    // `PATH @B` means the same as `PATH@B`.
    let (older, newer) = match (target.name, newer) {
        (VersionName::Newest, Some(name)) => (name, None),
        names => names,
    };
    let old = read_version(&mut versions, &older)?;
    let new = match newer {
        Some(name) => read_version(&mut versions, &name)?,
        None => ComparedText::now(versions.present_content()?),
    };
    versions.proxy_part().note();
    let same = old.content == new.content && old.size.is_some() == new.size.is_some();
    let texts = format::text_of(&old.content).zip(format::text_of(&new.content));
    let changes = texts.map(|(old, new)| changed_lines(old, new));
    let comparison = Comparison { path: target.place.absolute(), old: &old, new: &new, same, changes };
    app.answer(&comparison, |out, comparison| write_comparison(out, comparison, texts))
}

fn parse_newer(text: &str) -> anyhow::Result<VersionName> {
    let name = text.strip_prefix('@').and_then(parse_name);
    let why = || format!("{text}: write @ and an ID that `memsync history` lists, such as @5d41402a");
    Ok(name.ok_or_else(|| CommandFailure::usage(why()))?)
}

fn read_version(versions: &mut PathVersions<'_>, name: &VersionName) -> anyhow::Result<ComparedText> {
    let version = versions.find(name)?;
    let content = versions.content(&version)?;
    Ok(ComparedText::of_version(&version, content))
}

fn write_comparison(out: &mut dyn Write, comparison: &Comparison, texts: Option<(&str, &str)>) -> io::Result<()> {
    let path = format::path(&comparison.path);
    if comparison.same {
        return writeln!(out, "{path}: both texts are the same.");
    }
    writeln!(out, "--- {}", comparison.old.title(&path))?;
    writeln!(out, "+++ {}", comparison.new.title(&path))?;
    match texts {
        Some((old, new)) => {
            write_diff(out, old, new, DiffLook { has_colors: output::has_colors(), max_lines: usize::MAX })
        }
        None => {
            let size = |text: &ComparedText| format::size(text.content.len() as u64);
            writeln!(out, "They differ, and are no texts: {}, {}.", size(comparison.old), size(comparison.new))
        }
    }
}
