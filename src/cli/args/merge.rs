//! `memsync merge`.

use std::path::PathBuf;

use clap::ValueHint;

#[derive(Debug, clap::Args)]
pub struct MergeArgs {
    /// The version that both sides had before; an empty file or /dev/null if there is none
    #[arg(value_hint = ValueHint::FilePath)]
    pub base: PathBuf,
    /// One of the two versions
    #[arg(value_hint = ValueHint::FilePath)]
    pub local: PathBuf,
    /// The other version
    #[arg(value_hint = ValueHint::FilePath)]
    pub remote: PathBuf,
    /// The name that chooses the kind of merge, such as notes/a.md [default: the name of LOCAL]
    #[arg(long, value_name = "NAME")]
    pub path: Option<PathBuf>,
    /// Write the merged text to this file, whole or not at all, instead of stdout
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}
