//! [`Authenticator`]: from the token of a request to its [`Caller`].
//!
//! Callers show the proxy's own token, a key of the store, or a token that an external verifier accepts.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use crate::proxy::error::ApiError;
use crate::proxy::options::ProxyOptions;
use crate::store::Store;
use caller::{Caller, Credential};
use keys::{KeyCache, KeyLease, KeyScope, KeysError, hash_of, id_in};
use verifier::{TokenVerdict, Verifier};

pub(super) mod caller;
pub mod keys;
pub(super) mod verifier;

const MAX_TOKEN_BYTES: usize = 4096;
/// How long a stream of a verified user stays open. The client then connects again and is verified again.
const VERIFIED_LEASE: Duration = Duration::from_secs(5 * 60);

pub(crate) struct Authenticator<S> {
    token: Option<(blake3::Hash, Arc<Caller>)>,
    pub keys: KeyCache<S>,
    verifier: Option<Arc<Verifier>>,
}

impl<S: Store> Authenticator<S> {
    /// # Errors
    /// The fault of the options, in words.
    pub(crate) fn new(options: &ProxyOptions, store: Arc<S>) -> Result<Self, String> {
        let token = options.token.as_ref().map(|token| token.expose_secret().as_bytes());
        if token.is_some_and(<[u8]>::is_empty) {
            return Err("the proxy's token is empty".to_owned());
        }
        let caller = || Caller {
            id: "token".to_owned(),
            user: None,
            device: None,
            scope: KeyScope::default(),
            credential: Credential::ProxyToken,
        };
        Ok(Self {
            token: token.map(|token| (hash_of(token), Arc::new(caller()))),
            keys: KeyCache::new(store, options.keys_max_age),
            verifier: options.verifier.as_ref().map(Verifier::new).transpose()?.map(Arc::new),
        })
    }

    /// The caller with this `token`, whose hash is `hash`.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`] for an invalid token; [`ApiError::AuthUnavailable`] or [`ApiError::Store`] if that
    /// cannot be decided now.
    pub(crate) async fn authenticate(&self, token: &[u8], hash: blake3::Hash) -> Result<Arc<Caller>, ApiError> {
        const INVALID: ApiError = ApiError::Unauthorized { token_shown: true };
        if let Some((_, caller)) = self.token.as_ref().filter(|(known, _)| *known == hash) {
            return Ok(caller.clone());
        }
        if let Some(id) = id_in(token) {
            let found = self.keys.find(id, hash).await.map_err(keys_unavailable)?.ok_or(INVALID)?;
            return Ok(Arc::new(Caller {
                id: format!("key {id}"),
                user: found.key.user.clone(),
                device: found.key.device.clone(),
                scope: found.key.scope.clone(),
                credential: Credential::Key(Box::new(found)),
            }));
        }
        let verifier = self.verifier.as_ref().ok_or(INVALID)?;
        let text = std::str::from_utf8(token).map_err(|_| INVALID)?;
        match verifier.verify(text, hash).await {
            TokenVerdict::User(user) => Ok(Arc::new(Caller {
                id: format!("user {user}"),
                user: Some(user.to_string()),
                device: None,
                scope: verifier.scope(&user),
                credential: Credential::Verified(verifier.quota()),
            })),
            TokenVerdict::Invalid => Err(INVALID),
            TokenVerdict::Unavailable => Err(ApiError::AuthUnavailable),
        }
    }

    /// How long a stream of `ns` that this caller opens may stay open.
    pub(crate) fn lease(&self, caller: &Caller, ns: &str) -> StreamLease {
        match &caller.credential {
            Credential::ProxyToken => StreamLease::Unlimited,
            Credential::Key(found) => StreamLease::Key(self.keys.lease(found, ns)),
            Credential::Verified(_) => StreamLease::Until(Instant::now() + VERIFIED_LEASE),
        }
    }
}

/// The right of an open stream to stay open.
pub(crate) enum StreamLease {
    Unlimited,
    Key(KeyLease),
    Until(Instant),
}

impl StreamLease {
    /// Returns when the lease is over. Cancel safe.
    pub(crate) async fn ended(&mut self) {
        match self {
            Self::Unlimited => std::future::pending().await,
            Self::Key(lease) => lease.ended().await,
            Self::Until(at) => tokio::time::sleep_until(*at).await,
        }
    }
}

/// The token of a request.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && (1..=MAX_TOKEN_BYTES).contains(&token.len())).then_some(token)
}

fn keys_unavailable(e: KeysError) -> ApiError {
    match e {
        KeysError::Store(e) => ApiError::Store(e),
        other => {
            tracing::error!("{other}");
            ApiError::AuthUnavailable
        }
    }
}
