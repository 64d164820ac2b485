//! [`Listen`]: an address whose port the platform may choose.

use std::collections::BTreeMap;
use std::net::{AddrParseError, SocketAddr};
use std::str::FromStr;

/// What stands for the port that the platform chose. Not read from the environment unasked: it may be there for
/// another program, and would open the proxy to the network.
const PORT: &str = "$PORT";

/// `ADDR:PORT`, or `ADDR:$PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen(String);

impl Listen {
    /// The address, with what `env` says of the port.
    ///
    /// # Errors
    /// Says what to set.
    pub fn resolve(&self, env: &BTreeMap<String, String>) -> Result<SocketAddr, String> {
        let port = env.get("PORT").map_or("", |port| port.trim());
        let text = self.0.replace(PORT, port);
        text.parse()
            .map_err(|_| format!("--listen {}: PORT is {port:?} in the environment; set it to a number", self.0))
    }
}

impl FromStr for Listen {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        text.replace(PORT, "1").parse::<SocketAddr>().map(|_| Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_come_from_the_environment() {
        let resolve = |text: &str, port: &str| {
            let env = BTreeMap::from([("PORT".to_owned(), port.to_owned())]);
            text.parse::<Listen>().unwrap().resolve(&env)
        };
        assert_eq!(resolve("0.0.0.0:$PORT", "8080"), Ok("0.0.0.0:8080".parse().unwrap()));
        assert_eq!(resolve("127.0.0.1:1", "8080"), Ok("127.0.0.1:1".parse().unwrap()));
        for bad in ["", "http", "99999", "1:2"] {
            assert!(resolve("[::]:$PORT", bad).unwrap_err().contains("PORT is"), "{bad}");
        }
        assert!("localhost:$PORT".parse::<Listen>().is_err() && "$PORT".parse::<Listen>().is_err());
    }
}
