//! [`ServerState`], which all requests share, and [`RequestContext`], which a route gets. They stand below the routes.

use std::io;
use std::sync::Arc;

use tokio::sync::watch;

use super::auth::Authenticator;
use super::auth::caller::Caller;
use super::encoding::ResponseEncoder;
use super::error::ApiError;
use super::health::StoreCheck;
use super::index_cache::IndexCache;
use super::limits::ProxyLimits;
use super::limits::memory::MemoryPermit;
use super::maintenance::foreign_changes::StreamListeners;
use super::metrics::Metrics;
use super::options::ProxyOptions;
use super::quota::Quotas;
use crate::protocol::Namespace;
use crate::store::Store;

/// The parts of a running proxy.
pub(crate) struct ServerState<S> {
    pub store: Arc<S>,
    pub options: ProxyOptions,
    pub auth: Authenticator<S>,
    pub limits: ProxyLimits,
    pub quotas: Quotas<S>,
    pub health: StoreCheck<S>,
    pub encoder: ResponseEncoder,
    pub indexes: IndexCache,
    pub listeners: Arc<StreamListeners>,
    pub metrics: Arc<Metrics>,
    /// Becomes true once, when the proxy stops.
    pub stopping: watch::Receiver<bool>,
}

impl<S: Store> ServerState<S> {
    /// # Errors
    /// `InvalidInput` for an empty token or an invalid address of the verifier.
    pub(crate) fn new(store: Arc<S>, options: ProxyOptions, stopping: watch::Receiver<bool>) -> io::Result<Self> {
        let auth = Authenticator::new(&options, store.clone());
        let metrics = Metrics::new();
        Ok(Self {
            auth: auth.map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?,
            limits: ProxyLimits::new(&options),
            quotas: Quotas::new(store.clone()),
            health: StoreCheck::new(store.clone(), metrics.clone(), options.low_space),
            encoder: ResponseEncoder::default(),
            indexes: IndexCache::default(),
            listeners: Arc::default(),
            metrics,
            store,
            options,
            stopping,
        })
    }
}

/// An authenticated request to a namespace.
pub(crate) struct RequestContext<'a, S> {
    pub state: &'a ServerState<S>,
    pub caller: Arc<Caller>,
    pub namespace: Namespace,
    /// For the log.
    pub id: &'a str,
}

impl<S: Store> RequestContext<'_, S> {
    pub(crate) fn store(&self) -> &S {
        &self.state.store
    }

    /// The name of the namespace; `""` for the flat dialect's.
    pub(crate) fn ns(&self) -> &str {
        self.namespace.as_str()
    }

    /// Waits for memory for a body. A request that already holds some must not wait: it could wait for itself.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<MemoryPermit, ApiError> {
        Ok(self.state.limits.memory.reserve(&self.caller, bytes).await?)
    }
}
