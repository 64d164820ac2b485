//! `memsync history`, `show`, `diff` and `restore`.

use std::path::PathBuf;

use clap::ValueHint;
use jiff::{Timestamp, Zoned};

use crate::cli::versions::parse_moment;

#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// A file or folder [default: everything]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// Show what happened since this time only, such as "2 hours ago" or 2026-11-20T10:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_past)]
    pub since: Option<Timestamp>,
    /// Keep running, and show what happens. With --json each line is a document
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// The file; @ID picks the version that `memsync history` names so [default: the newest earlier one]
    #[arg(value_name = "PATH[@ID]")]
    pub path: String,
}

#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// The file; @A picks the older version [default: the newest earlier one]
    #[arg(value_name = "PATH[@A]")]
    pub path: String,
    /// The newer version [default: the file as it is now]
    #[arg(value_name = "@B")]
    pub newer: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The file; @ID picks the version that `memsync history` names so [default: the newest earlier one]. If PATH is a
    /// folder, its deleted files come back
    #[arg(value_name = "PATH[@ID]", required_unless_present = "deleted")]
    pub path: Option<String>,
    /// Restore the file, or all files of the folder, as of this time, such as "2 hours ago" or 2026-11-20T10:00:00Z
    #[arg(long, value_name = "TIME", requires = "path", value_parser = parse_past, conflicts_with = "to")]
    pub at: Option<Timestamp>,
    /// Write the version to this new file instead
    #[arg(long, value_name = "FILE", requires = "path", value_hint = ValueHint::FilePath)]
    pub to: Option<PathBuf>,
    /// List the files that were deleted, here or elsewhere, and can be restored
    #[arg(long, conflicts_with = "path")]
    pub deleted: bool,
}

fn parse_past(text: &str) -> Result<Timestamp, String> {
    parse_moment(text, &Zoned::now())
}
