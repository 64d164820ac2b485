//! The TLS flags of a proxy.

use std::path::PathBuf;

use clap::ValueHint;

/// The heading of these flags. Each flag names it, because a heading of the struct would cover the flags that follow.
pub(super) const TLS_HEADING: &str = "Encryption";

#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsArgs {
    /// Use TLS with this certificate chain, PEM: the proxy's own first, then intermediate ones. HUP reads it again
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath, help_heading = TLS_HEADING)]
    pub tls_cert: Option<PathBuf>,
    /// The private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath, help_heading = TLS_HEADING)]
    pub tls_key: Option<PathBuf>,
    /// Use TLS with a self-signed certificate, made once. Other machines need its fingerprint; the join link has it
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"], help_heading = TLS_HEADING)]
    pub tls_self_signed: bool,
}
