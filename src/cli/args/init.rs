//! `memsync init`.

use std::path::PathBuf;

use clap::{ArgGroup, ValueHint};

use crate::protocol::Pin;

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("origin").required(true).args(["proxy", "join"])))]
pub struct InitArgs {
    /// The folder to sync; created if it is missing [default: ~/Memory]
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// The URL of the proxy
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub proxy: Option<String>,
    /// A file that only you can read, with the token [default: asks for the token]
    #[arg(long, value_name = "FILE", conflicts_with = "join", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// The namespace on the proxy [default: no namespace]
    #[arg(long, value_name = "NS")]
    pub namespace: Option<String>,
    /// The link that `memsync link` prints on the other machine. `-` asks for it, so that no process list shows its
    /// token
    #[arg(long, value_name = "LINK|-")]
    pub join: Option<String>,
    /// The certificate authority that vouches for the proxy, if it is your own, PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca_file: Option<PathBuf>,
    /// The only certificate to accept, as `memsync serve --tls-self-signed` logs it. A join link has it already
    #[arg(long, value_name = "sha256:HEX")]
    pub pin: Option<Pin>,
    /// Allow plain http to another machine, which shows the token to the network
    #[arg(long)]
    pub allow_http: bool,
}
