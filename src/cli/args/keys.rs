//! `memsync user` and `memsync key`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueHint};

use crate::config::{parse_duration, parse_size};
use crate::proxy::keys::Pattern;

/// Whose users and keys.
#[derive(Debug, Clone, clap::Args)]
pub struct StoreFlag {
    /// The proxy's store [default: as `memsync serve`, see `memsync paths`]
    #[arg(long, global = true, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum UserAction {
    /// Make a user, whom keys can belong to
    Create {
        /// What to call the user
        name: String,
        /// How much the namespaces that the user's keys may write to may hold together, such as 1GiB [default: no
        /// limit]
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        quota: Option<u64>,
    },
    /// List the users
    List,
    /// Remove a user, and revoke their keys; their files stay
    Remove {
        /// As `memsync user list` shows it
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeyAction {
    /// Make a key, and print it: it cannot be shown again
    Create(NewKey),
    /// List the keys, without their secrets
    List,
    /// Make a key useless, at once
    Revoke {
        /// As `memsync key list` shows it
        id: String,
    },
    /// Give a key another secret, and print it; name and scope stay, and the expiry unless --expires gives another
    Rotate {
        /// As `memsync key list` shows it
        id: String,
        /// How long the old secret works on, such as 10m; 0s ends it at once
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
        grace: Duration,
        /// It stops working after this time from now; also makes a key that has expired work again, with its new secret
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        expires: Option<Duration>,
    },
}

#[derive(Debug, clap::Args)]
pub struct NewKey {
    /// Whose it is
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// What it is called in lists and in versions [default: the device, else the user, else its id]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The device that it is for: what is written with it counts as that device's
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// A namespace that it opens, or NAME/* for all below one; "" is the flat dialect's. May be repeated [default: all]
    #[arg(long = "namespace", value_name = "NS|NAME/*")]
    pub namespaces: Vec<Pattern>,
    /// It may read, and not write
    #[arg(long)]
    pub read_only: bool,
    /// It stops working after this time, such as 90d [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub expires: Option<Duration>,
}
