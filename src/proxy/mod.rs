//! The Memory Proxy: [`serve`] answers both dialects over any [`Store`](crate::store::Store).
//!
//! A request passes `listen` (accept, TLS, timeouts), `limits`, `auth` and one of the `routes`, which calls the store. The
//! store decides every conditional write. The caller of [`serve`] owns the port and the stop signal. Each request is
//! logged once, at level info, under the target `memsync::access`.

mod auth;
mod body;
mod context;
mod encoding;
mod error;
mod health;
mod index_cache;
mod limits;
mod listen;
mod maintenance;
mod metrics;
mod options;
mod quota;
mod response;
mod routes;

pub use auth::keys;
pub use auth::verifier::VerifierOptions;
pub use listen::serve;
pub use listen::tls;
pub use options::ProxyOptions;
