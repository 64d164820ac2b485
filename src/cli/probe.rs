//! Checks that a proxy is healthy and accepts the token, for `init` and `doctor`.

use std::time::Duration;

use jiff::Timestamp;

use super::process::runtime::client_runtime;
use crate::protocol::capability;
use crate::remote::http::{HttpOptions, HttpRemote};
use crate::remote::{Remote, RemoteError};

/// Longest wait for the first sign of life on the event stream.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(5);

/// The answer of a healthy proxy that accepts the token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeAnswer {
    pub capabilities: Vec<String>,
    /// Problems that the proxy expects soon.
    pub warnings: Vec<String>,
    /// `Ok` if events arrive. `None` if the proxy offers no events.
    pub events: Option<Result<(), String>>,
    /// The clock of the proxy, if it tells.
    pub time: Option<Timestamp>,
}

pub trait ProxyProbe {
    /// Asks `GET /health`, then a request that needs the token.
    ///
    /// # Errors
    /// [`RemoteError::Auth`] if the proxy refuses the token. Other errors if it is not reachable or not healthy.
    fn ask(&self, proxy: &HttpOptions) -> Result<ProbeAnswer, RemoteError>;
}

/// Asks over HTTP, with a new connection each time.
pub(crate) struct HttpProbe;

impl ProxyProbe for HttpProbe {
    fn ask(&self, proxy: &HttpOptions) -> Result<ProbeAnswer, RemoteError> {
        // The probe writes nothing and downloads no file.
        let options = HttpOptions { device: String::new(), max_file_size: 0, concurrency: 1, ..proxy.clone() };
        let remote = HttpRemote::new(options).map_err(|e| RemoteError::Source(e.to_string()))?;
        let runtime = client_runtime().map_err(|e| RemoteError::Source(format!("{e:#}")))?;
        runtime.block_on(ask_remote(&remote, &proxy.origin))
    }
}

async fn ask_remote(remote: &HttpRemote, url: &str) -> Result<ProbeAnswer, RemoteError> {
    let health = remote.health_and_time().await;
    let no_health = match &health {
        Ok(_) => None,
        Err(e) => Some(why_no_proxy(e).ok_or_else(|| e.clone())?),
    };
    // The index is the cheapest request that needs the token. It decides, because some proxies hide their health.
    let (health, time) = match (remote.index(None, None).await, no_health) {
        (Ok(_), Some(_)) => return Ok(ProbeAnswer::default()),
        (Ok(_), None) => health?,
        (Err(e), Some(why)) if why_no_proxy(&e).is_some() => {
            return Err(RemoteError::NotAProxy { url: url.to_owned(), why });
        }
        (Err(e), _) => return Err(e),
    };
    let offers_events = health.capabilities.iter().any(|name| name == capability::EVENTS);
    let events = if offers_events { Some(remote.try_events(EVENTS_TIMEOUT).await) } else { None };
    let events = events.map(|events| events.map_err(|e| e.to_string()));
    Ok(ProbeAnswer { capabilities: health.capabilities, warnings: health.warnings, events, time })
}

/// The sign that another kind of server answered, if the error is one.
fn why_no_proxy(error: &RemoteError) -> Option<String> {
    match error {
        RemoteError::Protocol { why, .. } => Some(why.clone()),
        RemoteError::Refused { status: status @ (404 | 405), .. } => Some(format!("it has no /health ({status})")),
        _ => None,
    }
}
