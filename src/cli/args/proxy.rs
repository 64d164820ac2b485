//! `memsync init`, `memsync up` and `memsync serve`: where a proxy is, where it listens, and its encryption.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, ValueHint};

use crate::config::parse_size;
use crate::protocol::Pin;
use crate::proxy::keys::UserPattern;

/// The heading of these flags. Each flag names it, because a heading of the struct would cover the flags that follow.
pub(super) const TLS_HEADING: &str = "Encryption";

/// Stands for the environment variable that hosting platforms set. It is read only on request, because it may be meant
/// for another program.
const PORT: &str = "$PORT";

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

/// `ADDR:PORT`, where the port may be `$PORT`. The address defaults to 127.0.0.1, so that a proxy is open to other
/// machines only on request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress(String);

/// The text is no address to listen at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write PORT for this machine alone, or ADDR:PORT with the address of a network, such as 0.0.0.0:8484 for all")]
pub struct NotListenable;

impl ListenAddress {
    /// The address, with the port of `env`.
    pub fn resolve(&self, env: &BTreeMap<String, String>) -> Result<SocketAddr, String> {
        let port = env.get("PORT").map_or("", |port| port.trim());
        let text = self.0.replace(PORT, port);
        parse(&text)
            .map_err(|_| format!("--listen {}: PORT is {port:?} in the environment; set it to a number", self.0))
    }
}

impl FromStr for ListenAddress {
    type Err = NotListenable;

    fn from_str(text: &str) -> Result<Self, NotListenable> {
        parse(&text.replace(PORT, "1")).map(|_| Self(text.to_owned()))
    }
}

fn parse(text: &str) -> Result<SocketAddr, NotListenable> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.strip_prefix("localhost:").or(text.strip_prefix(':')).unwrap_or(text);
    let port = port.parse().map_err(|_| NotListenable)?;
    Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_may_come_from_the_environment() {
        let resolve = |text: &str, port: &str| {
            let env = BTreeMap::from([("PORT".to_owned(), port.to_owned())]);
            text.parse::<ListenAddress>().unwrap().resolve(&env)
        };
        assert_eq!(resolve("0.0.0.0:$PORT", "8080"), Ok("0.0.0.0:8080".parse().unwrap()));
        assert_eq!(resolve("127.0.0.1:1", "8080"), Ok("127.0.0.1:1".parse().unwrap()));
        assert_eq!(resolve("$PORT", "8080"), Ok("127.0.0.1:8080".parse().unwrap()));
        for bad in ["", "http", "99999", "1:2"] {
            assert!(resolve("[::]:$PORT", bad).unwrap_err().contains("PORT is"), "{bad}");
        }
    }

    #[test]
    fn address_defaults_to_this_machine() {
        let resolve =
            |text: &str| text.parse::<ListenAddress>().map(|l| l.resolve(&BTreeMap::new()).unwrap().to_string());
        for (text, address) in [
            ("8484", "127.0.0.1:8484"),
            (":8484", "127.0.0.1:8484"),
            ("localhost:8484", "127.0.0.1:8484"),
            ("0.0.0.0:8484", "0.0.0.0:8484"),
            ("[::1]:8484", "[::1]:8484"),
        ] {
            assert_eq!(resolve(text).as_deref(), Ok(address), "{text}");
        }
        for bad in ["", ":", "localhost", "desk:8484", "0.0.0.0", "::1:8484", "99999", "http://127.0.0.1:8484"] {
            assert_eq!(resolve(bad), Err(NotListenable), "{bad}");
        }
    }
}
