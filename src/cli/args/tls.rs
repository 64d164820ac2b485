//! The flags of a proxy that speaks TLS.

use std::path::PathBuf;

use clap::ValueHint;

/// The heading of these flags in the help. Each names it, because a heading of the struct would go on over the flags
/// that follow.
pub const ENCRYPTION: &str = "Encryption";

#[derive(Debug, Clone, Default, clap::Args)]
pub struct Tls {
    /// Speak TLS with this certificate, PEM: the proxy's own first, then those of the authorities in between. Read
    /// again on HUP
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath, help_heading = ENCRYPTION)]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath, help_heading = ENCRYPTION)]
    pub tls_key: Option<PathBuf>,
    /// Speak TLS with a certificate of its own, made once; others need its fingerprint, which the join link has
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"], help_heading = ENCRYPTION)]
    pub tls_self_signed: bool,
}
