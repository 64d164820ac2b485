//! `memsync put` and `memsync rm`.

use std::path::PathBuf;

use clap::ValueHint;

use crate::digest::Md5;

#[derive(Debug, clap::Args)]
pub struct PutArgs {
    /// The file
    #[arg(value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    /// Write only if the file has this MD5 now
    #[arg(long, value_name = "MD5")]
    pub if_md5: Option<Md5>,
    /// Write only if there is no file yet
    #[arg(long, conflicts_with = "if_md5")]
    pub if_new: bool,
}

#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// The file
    #[arg(value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    /// Remove only if the file has this MD5 now
    #[arg(long, value_name = "MD5")]
    pub if_md5: Option<Md5>,
}
