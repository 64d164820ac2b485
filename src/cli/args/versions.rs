//! `memsync history`, `show`, `diff` and `restore`.

use std::path::PathBuf;

use clap::ValueHint;

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
    /// The file; @ID picks the version that `memsync history` names so [default: the newest earlier one]
    #[arg(value_name = "PATH[@ID]", required_unless_present = "deleted")]
    pub path: Option<String>,
    /// Write the version to this new file instead
    #[arg(long, value_name = "FILE", requires = "path", value_hint = ValueHint::FilePath)]
    pub to: Option<PathBuf>,
    /// List the files that sync removed
    #[arg(long, conflicts_with = "path")]
    pub deleted: bool,
}
