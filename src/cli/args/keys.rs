//! `memsync user`, `memsync key` and `memsync store`: the store of a proxy, and the users and keys in it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueHint};

use crate::config::{parse_duration, parse_size};
use crate::proxy::keys::NamespacePattern;

#[derive(Debug, clap::Args)]
pub struct UserArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(subcommand)]
    pub action: UserAction,
}

#[derive(Debug, clap::Args)]
pub struct KeyArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(subcommand)]
    pub action: KeyAction,
}

/// The store with the users and keys.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreArgs {
    /// The store of the proxy, as given to `memsync serve` [default: see `memsync paths`]
    #[arg(long, global = true, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum UserAction {
    /// Create a user, who can own keys
    Create {
        /// The user's name
        name: String,
        /// Most data that the namespaces writable by the user's keys may hold together, such as 1GiB [default: no limit]
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        quota: Option<u64>,
    },
    /// List the users
    List,
    /// Remove a user and revoke their keys; their files stay
    Remove {
        /// The name, as `memsync user list` shows it
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeyAction {
    /// Create a key and print it; it cannot be shown again
    Create(NewKeyArgs),
    /// List the keys, without their secrets
    List,
    /// Revoke a key; it stops working within two seconds
    Revoke {
        /// The id, as `memsync key list` shows it
        id: String,
    },
    /// Give a key a new secret and print it; the name, the scope and the expiry stay
    Rotate {
        /// The id, as `memsync key list` shows it
        id: String,
        /// The old secret works for this time, such as 10m; 0s ends it at once
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
        grace: Duration,
        /// The key expires after this time from now. An expired key works again, with its new secret
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        expires: Option<Duration>,
    },
}

#[derive(Debug, clap::Args)]
pub struct NewKeyArgs {
    /// The user who owns the key
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// The name of the key in lists and versions [default: the device, else the user, else its id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The device that uses the key; its writes count as that device's
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// A namespace that the key opens, or NAME/* for all below it; "" is the flat dialect. May be repeated [default: all]
    #[arg(long = "namespace", value_name = "NS|NAME/*")]
    pub namespaces: Vec<NamespacePattern>,
    /// The key may read, but not write
    #[arg(long)]
    pub read_only: bool,
    /// The key expires after this time, such as 90d [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub expires: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub enum StoreAction {
    /// Show the size of the store and of its namespaces
    Stats(StoreDir),
    /// Copy the store, as it is at one moment, to a new directory
    Backup {
        /// The directory to create
        #[arg(value_hint = ValueHint::DirPath)]
        to: PathBuf,
        #[command(flatten)]
        store: StoreDir,
    },
    /// Make a new store from a backup
    Restore {
        /// The directory that `memsync store backup` created
        #[arg(value_hint = ValueHint::DirPath)]
        from: PathBuf,
        #[command(flatten)]
        store: StoreDir,
    },
    /// Read all content and compare it with its MD5
    Verify(StoreDir),
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

#[derive(Debug, clap::Args)]
pub struct StoreDir {
    /// The store [default: see `memsync paths`]
    #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,
}
