//! The HTTP client: what it trusts, and that it neither follows redirects nor strays from the origin.

use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Url, redirect};

use super::{OptionsError, pinned};
use crate::protocol::{Pin, install_provider};

/// How we call ourselves.
pub(super) const AGENT: &str = concat!("memsync/", env!("CARGO_PKG_VERSION"));

/// An unused connection is closed after this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The client for one origin.
///
/// # Errors
/// A bad `ca_pem`; a client that cannot be set up.
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
    // Plain http needs no roots, and reading the system's takes time and memory.
    if origin.scheme() == "http" {
        return base().tls_certs_only(extra).build().map_err(|e| OptionsError::Client(e.to_string()));
    }
    // Without a system bundle the client cannot be built. Then only the extra CA is trusted, or nothing; the
    // first connection says so and what to do.
    match base().tls_certs_merge(extra.clone()).build() {
        Ok(client) => Ok(client),
        Err(first) => base()
            .tls_certs_only(extra)
            .build()
            .map_err(|second| OptionsError::Client(format!("{first}; without the system's certificates: {second}"))),
    }
}
