//! The texts of a conflict for people: their devices, their times, and the difference between them.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::cli::app::App;
use crate::cli::conflict_copies::ConflictCopy;
use crate::cli::folder::ConfiguredFolder;
use crate::cli::process::output;
use crate::cli::versions::devices_of;
use crate::cli::view::diff::{DiffLook, write_diff};
use crate::cli::view::format;

/// Larger texts are not compared in a list.
const MAX_BYTES: u64 = 256 << 10;
/// Lines of the difference of one conflict.
const MAX_LINES: usize = 12;

/// Adds the devices that wrote the originals, as far as the proxy knows them.
pub(super) fn add_devices(app: &App, open: &ConfiguredFolder, conflicts: &mut [ConflictCopy]) {
    if conflicts.is_empty() {
        return;
    }
    let originals: Vec<&str> = conflicts.iter().filter(|c| c.original_exists).map(|c| c.original.as_str()).collect();
    match devices_of(app, open, &originals) {
        Ok(devices) => {
            for conflict in conflicts {
                conflict.original_device = devices.get(&conflict.original).cloned();
            }
        }
        Err(e) => tracing::debug!("the devices of the files are not known: {e:#}"),
    }
}

pub(super) fn write_conflict(
    out: &mut dyn Write,
    copy: &ConflictCopy,
    diff: Option<&str>,
    now: Timestamp,
) -> io::Result<()> {
    let original = format::path(&copy.folder.join(&copy.original));
    let gone = if copy.original_exists { "" } else { " (gone)" };
    writeln!(out, "{}{gone}", format::painted(format::BOLD, &original))?;
    let when = |at: Option<Timestamp>| at.map(|at| format!(", written {}", format::ago(now, at))).unwrap_or_default();
    let copy_device = format::printable(&copy.device);
    if let Some(size) = copy.original_size {
        let (size, when) = (format::size(size), when(copy.original_modified));
        let device = match &copy.original_device {
            Some(device) => format::printable(device),
            None => format!("another machine than {copy_device}"),
        };
        writeln!(out, "  file  from {device}{when} ({size})")?;
    }
    let (size, when) = (format::size(copy.size), when(copy.modified));
    writeln!(out, "  copy  from {copy_device}{when} ({size}): {}", format::printable(&copy.path))?;
    diff.unwrap_or_default().lines().try_for_each(|line| writeln!(out, "    {line}"))
}

/// The difference between both texts. `None` if one of them is gone, large or no text.
pub(super) fn difference(open: &ConfiguredFolder, copy: &ConflictCopy) -> Option<String> {
    let read = |at: &str| open.folder.read_up_to(at, MAX_BYTES).ok().flatten();
    let (file, copy) = (read(&copy.original)?, read(&copy.path)?);
    let look = DiffLook { has_colors: output::has_colors(), max_lines: MAX_LINES };
    let mut shown = Vec::new();
    write_diff(&mut shown, format::text_of(&file)?, format::text_of(&copy)?, look).ok()?;
    String::from_utf8(shown).ok()
}
