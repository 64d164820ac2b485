//! The flags of a proxy that speaks TLS.

use std::path::PathBuf;

use clap::ValueHint;

#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Encryption")]
pub struct Tls {
    /// Speak TLS with this certificate, PEM: the proxy's own first, then those of the authorities in between. Read
    /// again on HUP
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath)]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath)]
    pub tls_key: Option<PathBuf>,
    /// Speak TLS with a certificate of its own, made once; others need its fingerprint, which the join link has
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"])]
    pub tls_self_signed: bool,
}
