//! [`ListenAddress`]: where a proxy listens, as typed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// Stands for the environment variable that hosting platforms set. It is read only on request, because it may be meant
/// for another program.
const PORT: &str = "$PORT";

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
