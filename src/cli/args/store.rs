//! `memsync store`.

use std::path::PathBuf;

use clap::{Subcommand, ValueHint};

#[derive(Debug, Subcommand)]
pub enum StoreAction {
    /// Show the size of the store and of its namespaces
    Stats {
        /// The store [default: see `memsync paths`]
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
    },
    /// Copy the store, as it is at one moment, to a new directory
    Backup {
        /// The directory to create
        #[arg(value_hint = ValueHint::DirPath)]
        to: PathBuf,
        /// The store [default: see `memsync paths`]
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
    },
    /// Make a new store from a backup
    Restore {
        /// The directory that `memsync store backup` created
        #[arg(value_hint = ValueHint::DirPath)]
        from: PathBuf,
        /// The store [default: see `memsync paths`]
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
    },
    /// Read all content and compare it with its MD5
    Verify {
        /// The store [default: see `memsync paths`]
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
    },
    /// Copy everything from one store to another, or continue an interrupted copy
    ///
    /// Stop the proxies of both stores first.
    Copy {
        /// The store to read: a directory, or `s3:` for the bucket that the environment names
        #[arg(value_hint = ValueHint::DirPath)]
        from: PathBuf,
        /// The store to fill: a directory, or `s3:`
        #[arg(value_hint = ValueHint::DirPath)]
        to: PathBuf,
    },
}
