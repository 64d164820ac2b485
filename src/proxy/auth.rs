//! Who may call: the one static token, the keys of the store, or a token that an external verifier vouches for.
//!
//! [`Auth::authorize`] tells who a caller is, [`Caller::may`] whether they may do what they ask for. Tokens are only ever
//! compared as hashes, which takes the same time for any two.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::answer::{Forbidden, Refusal};
use super::keys::{self, Access, Found, KeysError, Pattern, Ring, Scope, Standing};
use super::verifier::{Verdict, Verifier};
use super::{Options, keys::hash_of};
use crate::store::{BlobMeta, Store};

/// Longest token looked at, in bytes.
const LONGEST_TOKEN: usize = 4096;
/// How long a stream stays open on a verifier's word; then the client connects again and is verified again.
const VERIFIED_STREAM: Duration = Duration::from_secs(5 * 60);

/// What decides who may call.
pub struct Auth<S> {
    token: Option<(blake3::Hash, Arc<Caller>)>,
    ring: Ring<S>,
    verifier: Option<Verifier>,
}

/// Somebody who may call.
pub struct Caller {
    /// Whose limits count, and who did it, for the log: `token`, `key <id>` or `user <id>`.
    pub id: String,
    pub user: Option<String>,
    /// Of the key; it goes before what the request says.
    device: Option<String>,
    scope: Scope,
    shown: Shown,
}

/// What a caller showed.
enum Shown {
    Token,
    Key(Box<Found>),
    /// To a verifier, with the bytes that the user may hold.
    Verified(Option<u64>),
}

impl Caller {
    /// # Errors
    /// [`Refusal::Forbidden`], when the key is not for this.
    pub fn may(&self, access: Access, ns: &str) -> Result<(), Refusal> {
        let why = if !self.scope.covers(ns) {
            Forbidden::Namespace(ns.to_owned())
        } else if access == Access::Write && self.scope.read_only {
            Forbidden::ReadOnly
        } else {
            return Ok(());
        };
        tracing::warn!(target: "memsync::audit", caller = %self.id, namespace = ns, "refused: {why}");
        Err(Refusal::Forbidden(why))
    }

    /// Whether its connections are counted: not those of the token that opens everything and that all may share.
    pub fn is_limited(&self) -> bool {
        !matches!(self.shown, Shown::Token)
    }

    /// Puts into `meta` who writes.
    pub fn sign(&self, meta: BlobMeta) -> BlobMeta {
        let key = match &self.shown {
            Shown::Key(found) => Some(found.key.name.clone()),
            Shown::Token | Shown::Verified(_) => None,
        };
        BlobMeta { device: self.device.clone().or(meta.device), key, ..meta }
    }

    /// The user, the limit in bytes, and the namespaces that count towards it; `None` where nothing limits the caller.
    pub fn quota(&self) -> Option<(&str, u64, Vec<Pattern>)> {
        match &self.shown {
            Shown::Token => None,
            Shown::Key(found) => {
                let user = self.user.as_deref()?;
                let (limit, patterns) = found.keys.quota(user)?;
                Some((user, limit, patterns))
            }
            // By its id, which no user of the store's keys has.
            Shown::Verified(limit) => limit.map(|limit| (self.id.as_str(), limit, self.scope.namespaces.clone())),
        }
    }
}

impl<S: Store> Auth<S> {
    /// # Errors
    /// Says what is wrong with the options.
    pub fn new(options: &Options, store: Arc<S>) -> Result<Self, String> {
        let token = options.token.as_ref().map(|token| token.expose_secret().as_bytes());
        if token.is_some_and(<[u8]>::is_empty) {
            return Err("the proxy's token is empty".to_owned());
        }
        let caller = || Caller {
            id: "token".to_owned(),
            user: None,
            device: None,
            scope: Scope::default(),
            shown: Shown::Token,
        };
        Ok(Self {
            token: token.map(|token| (hash_of(token), Arc::new(caller()))),
            ring: Ring::new(store, options.keys_fresh),
            verifier: options.verifier.as_ref().map(Verifier::new).transpose()?,
        })
    }

    /// Who calls with `token`, whose hash is `hash`.
    ///
    /// # Errors
    /// [`Refusal::Unauthorized`] for whoever shows nothing that is known, without a reason; [`Refusal::Unverified`],
    /// [`Refusal::Store`] when that cannot be found out.
    pub async fn authorize(&self, token: &[u8], hash: blake3::Hash) -> Result<Arc<Caller>, Refusal> {
        const WRONG: Refusal = Refusal::Unauthorized { wrong: true };
        if let Some((_, caller)) = self.token.as_ref().filter(|(known, _)| *known == hash) {
            return Ok(caller.clone());
        }
        if let Some(id) = keys::id_in(token) {
            let found = self.ring.find(id, hash).await.map_err(unreadable)?.ok_or(WRONG)?;
            return Ok(Arc::new(Caller {
                id: format!("key {id}"),
                user: found.key.user.clone(),
                device: found.key.device.clone(),
                scope: found.key.scope.clone(),
                shown: Shown::Key(Box::new(found)),
            }));
        }
        let verifier = self.verifier.as_ref().ok_or(WRONG)?;
        let text = std::str::from_utf8(token).map_err(|_| WRONG)?;
        match verifier.ask(text, hash).await {
            Verdict::User(user) => Ok(Arc::new(Caller {
                id: format!("user {user}"),
                user: Some(user.to_string()),
                device: None,
                scope: verifier.scope(&user),
                shown: Shown::Verified(verifier.quota()),
            })),
            Verdict::Invalid => Err(WRONG),
            Verdict::Unknown => Err(Refusal::Unverified),
        }
    }

    /// How long a stream of `ns` may stay open that this caller opens.
    pub fn lease(&self, caller: &Caller, ns: &str) -> Lease {
        match &caller.shown {
            Shown::Token => Lease::Unlimited,
            Shown::Key(found) => Lease::Key(self.ring.follow(found, ns)),
            Shown::Verified(_) => Lease::Until(Instant::now() + VERIFIED_STREAM),
        }
    }

    /// Returns when nothing is being written any more.
    pub async fn finish(&self) {
        self.ring.finish().await;
    }

    /// Notices changes of the keys while streams are open. Runs until it is dropped.
    pub async fn tend(&self) {
        self.ring.tend().await;
    }
}

/// How long a stream may stay open.
pub enum Lease {
    Unlimited,
    Key(Standing),
    Until(Instant),
}

impl Lease {
    /// Returns when it is over. May be dropped and called again.
    pub async fn ended(&mut self) {
        match self {
            Self::Unlimited => std::future::pending().await,
            Self::Key(standing) => standing.ended().await,
            Self::Until(at) => tokio::time::sleep_until(*at).await,
        }
    }
}

/// The token that a request shows.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, shown) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    let shown = shown.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && (1..=LONGEST_TOKEN).contains(&shown.len())).then_some(shown)
}

fn unreadable(e: KeysError) -> Refusal {
    match e {
        KeysError::Store(e) => Refusal::Store(e),
        other => {
            tracing::error!("{other}");
            Refusal::Unverified
        }
    }
}
