//! [`ProxyProbe`]: asking a proxy once whether it is there and takes the token, for `init` and `doctor`.

pub mod http;

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;

use crate::protocol::Pin;
use crate::remote::RemoteError;

/// Which proxy to ask, and how.
#[derive(Debug, Clone)]
pub struct Target {
    pub url: String,
    pub namespace: String,
    pub token: SecretString,
    /// Certificates to trust besides the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// The one certificate to trust.
    pub pin: Option<Pin>,
    pub allow_http: bool,
    pub timeout: Duration,
}

/// What a proxy that is well and takes the token says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    pub capabilities: Vec<String>,
    /// What will be wrong with it soon.
    pub warnings: Vec<String>,
    /// The result of a try of the events, where the proxy offers them; else why none came.
    pub events: Option<Result<(), String>>,
    /// Its clock, where it tells.
    pub time: Option<Timestamp>,
}

/// Asks `GET /health`, then something that needs the token.
pub trait ProxyProbe {
    /// # Errors
    /// [`RemoteError::Auth`] when the token is refused; the others when the proxy is not well or not there.
    fn ask(&self, target: &Target) -> Result<Answer, RemoteError>;
}
