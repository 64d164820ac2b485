//! [`ProxyOptions`]: secrets, limits and times of a proxy.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::TcpListener;

use super::auth::verifier::VerifierOptions;
use super::listen::tls::ServerTls;

#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// A token that opens everything, as `Authorization: Bearer`. The store's keys work beside it.
    pub token: Option<SecretString>,
    /// The service that checks all other tokens.
    pub verifier: Option<VerifierOptions>,
    /// How long a change of the store's keys may go unnoticed.
    pub keys_max_age: Duration,
    /// Longest body accepted, in bytes.
    pub max_body: u64,
    /// Bytes of memory that all bodies in flight share, requests and responses. One key may hold a quarter of it.
    pub body_memory: u64,
    /// How long a request's head may take once it has begun, and how long a new connection may be silent.
    pub head_timeout: Duration,
    /// How long a connection may idle between requests.
    pub idle_timeout: Duration,
    /// How long the next piece of a body may take, in either direction, and how long a body waits for memory.
    pub body_timeout: Duration,
    /// How long requests in flight may go on after the stop signal.
    pub stop_timeout: Duration,
    /// Connections served at once; further ones wait to be accepted.
    pub max_connections: usize,
    /// Connections that have not shown a valid token yet. Beyond it the oldest one is closed, so that newcomers always
    /// get their chance.
    pub max_unauthenticated: usize,
    /// The same for one address (of IPv6: one /64).
    pub max_unauthenticated_per_address: usize,
    /// Connections of one caller (one key). The token that opens everything has no such limit.
    pub max_connections_per_caller: usize,
    /// Requests a second that one caller (one key) may make; `None`: any number.
    pub rate: Option<NonZeroU32>,
    /// Invalid tokens a minute that one address may show.
    pub failed_attempts: NonZeroU32,
    /// A port for `/metrics` alone, in plain HTTP and without a token. Without it, `/metrics` is served beside the other
    /// addresses and needs a token.
    pub metrics_listener: Option<Arc<TcpListener>>,
    /// Less free space than this many bytes is a warning of `/health`.
    pub low_space: u64,
    /// Without it the proxy speaks plain HTTP.
    pub tls: Option<ServerTls>,
    /// How often an idle event stream sends a comment to show that it is alive.
    pub heartbeat: Duration,
    /// How often a store that other proxies also write to is polled for their changes, while event streams are open.
    pub foreign_poll_interval: Duration,
}

impl ProxyOptions {
    /// The defaults, with this token.
    pub fn new(token: SecretString) -> Self {
        Self { token: Some(token), ..Self::default() }
    }
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self {
            token: None,
            verifier: None,
            keys_max_age: Duration::from_secs(1),
            max_body: 64 * 1024 * 1024,
            body_memory: 192 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(8),
            max_connections: 4096,
            max_unauthenticated: 1024,
            max_unauthenticated_per_address: 64,
            max_connections_per_caller: 1024,
            rate: None,
            failed_attempts: const { NonZeroU32::new(20).expect("not zero") },
            metrics_listener: None,
            low_space: 512 << 20,
            tls: None,
            heartbeat: Duration::from_secs(15),
            foreign_poll_interval: Duration::from_millis(1500),
        }
    }
}
