//! Builds the HTTP client: its trusted certificates, no redirects, and no HTTP proxy for this machine.

use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Url, redirect};

use super::options::OptionsError;
use super::pinned;
use crate::protocol::{Pin, install_provider};

/// The `User-Agent`.
pub(super) const AGENT: &str = concat!("memsync/", env!("CARGO_PKG_VERSION"));

/// An unused connection is closed after this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The client for one origin.
pub(super) fn client(
    origin: &Url,
    loopback: bool,
    ca_pem: Option<&[u8]>,
    pin: Option<Pin>,
    timeout: Duration,
) -> Result<Client, OptionsError> {
    install_provider();
    let extra = match ca_pem {
        Some(pem) => {
            let certs = Certificate::from_pem_bundle(pem).map_err(|e| OptionsError::Ca(e.to_string()))?;
            if certs.is_empty() {
                return Err(OptionsError::Ca("it is empty".to_owned()));
            }
            certs
        }
        None => Vec::new(),
    };
    let base = || -> ClientBuilder {
        let builder = Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(timeout)
            .pool_idle_timeout(KEEP_ALIVE)
            .tcp_nodelay(true);
        if loopback { builder.no_proxy() } else { builder }
    };
    if let Some(pin) = pin {
        let tls = pinned::config(pin).map_err(|e| OptionsError::Client(e.to_string()))?;
        return base().tls_backend_preconfigured(tls).build().map_err(|e| OptionsError::Client(e.to_string()));
    }
    // Plain http needs no certificates, and reading the system's takes time and memory.
    if origin.scheme() == "http" {
        return base().tls_certs_only(extra).build().map_err(|e| OptionsError::Client(e.to_string()));
    }
    // The client cannot be built without the system's certificates. Then it trusts only `ca_pem`, if any, and the first
    // connection reports it.
    match base().tls_certs_merge(extra.clone()).build() {
        Ok(client) => Ok(client),
        Err(first) => base()
            .tls_certs_only(extra)
            .build()
            .map_err(|second| OptionsError::Client(format!("{first}; without the system's certificates: {second}"))),
    }
}
