//! `memsync up` and `memsync serve`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::ValueHint;

use super::listen::ListenAddress;
use super::tls::{TLS_HEADING, TlsArgs};
use crate::config::parse_size;
use crate::proxy::keys::UserPattern;

#[derive(Debug, clap::Args)]
pub struct UpArgs {
    /// The folder to sync; created if it is missing [default: ~/Memory]
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// Where the proxy listens: PORT for this machine only, or 0.0.0.0:PORT to let other machines join
    /// [default: the same as last time, at first 127.0.0.1:8484]
    #[arg(long, value_name = "[ADDR:]PORT")]
    pub listen: Option<ListenAddress>,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Use plain http again, after an earlier start with TLS
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key", "tls_self_signed"], help_heading = TLS_HEADING)]
    pub no_tls: bool,
}

#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Where to listen: PORT for this machine only, or 0.0.0.0:PORT for other machines too. `$PORT` stands for the
    /// environment variable PORT
    #[arg(long, value_name = "[ADDR:]PORT", env = "MEMSYNC_LISTEN", default_value = "127.0.0.1:8484")]
    pub listen: ListenAddress,
    /// The directory of the store [default: see `memsync paths`]. To use a bucket on S3 instead, set S3_BUCKET,
    /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment
    #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,
    /// A file with a token that opens everything, besides the keys of `memsync key` [default: MEMSYNC_TOKEN,
    /// MEMSYNC_TOKEN_FILE, the systemd credential `token`]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// Largest file accepted
    #[arg(
        long,
        value_name = "SIZE",
        env = "MEMSYNC_MAX_BODY_SIZE",
        default_value = "64MiB",
        value_parser = parse_size
    )]
    pub max_body_size: u64,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Serve /metrics at this address, in plain http and without a token [default: at the main address, with a token]
    #[arg(long, value_name = "[ADDR:]PORT", env = "MEMSYNC_METRICS_LISTEN")]
    pub metrics_listen: Option<ListenAddress>,
    /// Most requests a second from one key [default: no limit]
    #[arg(long, value_name = "N", env = "MEMSYNC_RATE")]
    pub rate: Option<NonZeroU32>,
    /// Namespaces open to users that HEARE_AUTH_URL verifies, such as `users/{user_id}/*`; `{user_id}` is the user's id
    /// [default: all]
    #[arg(long, value_name = "PATTERN", env = "MEMSYNC_VERIFIED_NAMESPACES", value_delimiter = ',')]
    pub verified_namespaces: Vec<UserPattern>,
    /// Most data that the namespaces of one such user may hold together
    #[arg(
        long,
        value_name = "SIZE",
        env = "MEMSYNC_VERIFIED_QUOTA",
        value_parser = parse_size,
        requires = "verified_namespaces"
    )]
    pub verified_quota: Option<u64>,
}
