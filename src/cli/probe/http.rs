//! The probe over HTTP.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::{Answer, ProxyProbe, Target};
use crate::protocol::capability;
use crate::remote::http::{HttpOptions, HttpRemote};
use crate::remote::{Remote, RemoteError};

/// How long the first sign of life on the stream of events may take.
const EVENTS_WAIT: Duration = Duration::from_secs(5);

/// Asks over a connection of its own, each time.
pub struct HttpProbe;

impl ProxyProbe for HttpProbe {
    fn ask(&self, target: &Target) -> Result<Answer, RemoteError> {
        let here = |why: String| RemoteError::Source(why);
        let remote = HttpRemote::new(HttpOptions {
            origin: target.url.clone(),
            token: target.token.expose_secret().to_owned().into(),
            namespace: target.namespace.clone(),
            device: String::new(),
            ca_pem: target.ca_pem.clone(),
            pin: target.pin,
            allow_http: target.allow_http,
            timeout: target.timeout,
            // No blob is asked for.
            max_file_size: 0,
            concurrency: 1,
        })
        .map_err(|e| here(e.to_string()))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| here(e.to_string()))?;
        runtime.block_on(async {
            let health = remote.health_and_time().await;
            let missing = match &health {
                Ok(_) => None,
                Err(e) => Some(no_such_answer(e).ok_or_else(|| e.clone())?),
            };
            // The cheapest request that needs the token. Some proxies do not show their health to all, so it decides.
            let (health, time) = match (remote.index(None, None).await, missing) {
                (Ok(_), Some(_)) => return Ok(Answer::default()),
                (Ok(_), None) => health?,
                (Err(e), Some(why)) if no_such_answer(&e).is_some() => {
                    return Err(RemoteError::NotAProxy { url: target.url.clone(), why });
                }
                (Err(e), _) => return Err(e),
            };
            let offers_events = health.capabilities.iter().any(|name| name == capability::EVENTS);
            let events = if offers_events { Some(remote.try_events(EVENTS_WAIT).await) } else { None };
            let events = events.map(|events| events.map_err(|e| e.to_string()));
            Ok(Answer { capabilities: health.capabilities, warnings: health.warnings, events, time })
        })
    }
}

/// Why an answer is that of another kind of server, where it is.
fn no_such_answer(error: &RemoteError) -> Option<String> {
    match error {
        RemoteError::Protocol { why, .. } => Some(why.clone()),
        RemoteError::Refused { status: status @ (404 | 405), .. } => Some(format!("it has no /health ({status})")),
        _ => None,
    }
}
