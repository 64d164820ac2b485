//! [`Verifier`]: an external service that knows the user of a token, asked by `POST {url}/verify`.
//!
//! Its answers are cached for a moment, by the token's hash. Requests with the same token share one question, and the
//! number of questions in flight is limited. Tokens that were valid before have a limit of their own, so that a flood
//! of invented tokens delays no user but a new one. The cache is our own: a cache library neither shares one question
//! between requests that may be cancelled nor tells apart tokens that were valid before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use parking_lot::Mutex;
use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::keys::{KeyScope, UserPattern};
use crate::protocol::{install_provider, is_loopback};

/// Questions in flight about unknown tokens. Tokens that were valid before have as many more.
const MAX_IN_FLIGHT: usize = 16;
/// Unknown tokens that wait for an answer, those in flight included.
const MAX_PENDING: usize = 256;
/// How long a token counts as one that was valid before.
const VALID_BEFORE: Duration = Duration::from_secs(24 * 3600);
const MAX_CACHED: usize = 10_000;
const MAX_ANSWER_BYTES: usize = 64 * 1024;
const MAX_USER_BYTES: usize = 256;

/// How to reach a verifier.
#[derive(Debug, Clone)]
pub struct VerifierOptions {
    /// `HEARE_AUTH_URL`
    pub url: String,
    /// `HEARE_AUTH_APP_ID`
    pub app_id: Option<String>,
    /// The namespaces that a verified user may read and write; `None`: all.
    pub namespaces: Option<Vec<UserPattern>>,
    /// Bytes that these namespaces of a user may hold together; `None`: no limit.
    pub quota: Option<u64>,
    /// How long a question may take, the wait for its turn included.
    pub timeout: Duration,
    /// How long a valid token is cached.
    pub cache_valid: Duration,
    /// How long an invalid token is cached.
    pub cache_invalid: Duration,
}

impl VerifierOptions {
    /// The defaults, with this address.
    pub fn new(url: String, app_id: Option<String>) -> Self {
        Self {
            url,
            app_id,
            namespaces: None,
            quota: None,
            timeout: Duration::from_secs(10),
            cache_valid: Duration::from_secs(60),
            cache_invalid: Duration::from_secs(5),
        }
    }
}

/// The answer of a verifier about a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenVerdict {
    /// The token is valid and belongs to this user.
    User(Arc<str>),
    Invalid,
    /// The verifier gives no answer now.
    Unavailable,
}

type PendingVerdict = Shared<BoxFuture<'static, TokenVerdict>>;

pub(crate) struct Verifier {
    client: Client,
    url: Url,
    options: VerifierOptions,
    permits: Semaphore,
    permits_valid_before: Semaphore,
    cached: Mutex<HashMap<blake3::Hash, CachedVerdict>>,
    pending: Mutex<HashMap<blake3::Hash, PendingVerdict>>,
}

struct CachedVerdict {
    verdict: TokenVerdict,
    at: Instant,
    /// How long it is given without another question.
    max_age: Duration,
}

impl CachedVerdict {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < self.max_age
    }

    fn was_valid(&self) -> bool {
        matches!(self.verdict, TokenVerdict::User(_)) && self.at.elapsed() < VALID_BEFORE
    }
}

impl Verifier {
    /// # Errors
    /// The fault of the address, in words.
    pub(crate) fn new(options: &VerifierOptions) -> Result<Self, String> {
        let fault = |why: &str| format!("the verifier's address is not an http or https URL ({why})");
        let url = Url::parse(&format!("{}/verify", options.url.trim_end_matches('/')));
        let url = url.map_err(|e| fault(&e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(fault("another scheme, or no host"));
        }
        let client = client(&url).map_err(|e| format!("the client for the verifier cannot be built: {e}"))?;
        Ok(Self {
            client,
            url,
            options: options.clone(),
            permits: Semaphore::new(MAX_IN_FLIGHT),
            permits_valid_before: Semaphore::new(MAX_IN_FLIGHT),
            cached: Mutex::default(),
            pending: Mutex::default(),
        })
    }

    /// The rights of a verified user.
    pub(crate) fn scope(&self, user: &str) -> KeyScope {
        match &self.options.namespaces {
            Some(patterns) => {
                let namespaces = patterns.iter().filter_map(|pattern| pattern.for_user(user)).collect();
                KeyScope { namespaces, read_only: false }
            }
            None => KeyScope::default(),
        }
    }

    /// Bytes that a verified user may store.
    pub(crate) fn quota(&self) -> Option<u64> {
        self.options.quota
    }

    /// The user of `token`, whose hash is `hash`.
    pub(crate) async fn verify(self: &Arc<Self>, token: &str, hash: blake3::Hash) -> TokenVerdict {
        let was_valid = match self.cached.lock().get(&hash) {
            Some(cached) if cached.is_fresh() => return cached.verdict.clone(),
            stale => stale.is_some_and(CachedVerdict::was_valid),
        };
        let verdict = {
            let mut pending = self.pending.lock();
            match pending.get(&hash) {
                Some(verdict) => verdict.clone(),
                None if !was_valid && pending.len() >= MAX_PENDING => {
                    return self.unavailable("too many questions wait for it");
                }
                None => {
                    let (verifier, token) = (self.clone(), SecretString::from(token));
                    let verdict = async move { verifier.ask_and_cache(&token, hash, was_valid).await }.boxed().shared();
                    pending.insert(hash, verdict.clone());
                    // The question goes on for others and for the cache if this request is cancelled.
                    tokio::spawn(verdict.clone());
                    verdict
                }
            }
        };
        verdict.await
    }

    async fn ask_and_cache(&self, token: &SecretString, hash: blake3::Hash, was_valid: bool) -> TokenVerdict {
        let permits = if was_valid { &self.permits_valid_before } else { &self.permits };
        let verdict = match tokio::time::timeout(self.options.timeout, self.ask(token, permits)).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(why)) => self.unavailable(&why),
            Err(_) => self.unavailable("no answer in time"),
        };
        match verdict {
            TokenVerdict::User(_) => self.cache(hash, &verdict, self.options.cache_valid),
            TokenVerdict::Invalid => self.cache(hash, &verdict, self.options.cache_invalid),
            TokenVerdict::Unavailable => {}
        }
        self.pending.lock().remove(&hash);
        verdict
    }

    fn cache(&self, hash: blake3::Hash, verdict: &TokenVerdict, max_age: Duration) {
        let mut cached = self.cached.lock();
        if cached.len() >= MAX_CACHED {
            cached.retain(|_, cached| cached.is_fresh() || cached.was_valid());
        }
        if cached.len() >= MAX_CACHED {
            cached.retain(|_, cached| cached.is_fresh());
        }
        if cached.len() < MAX_CACHED || cached.contains_key(&hash) {
            cached.insert(hash, CachedVerdict { verdict: verdict.clone(), at: Instant::now(), max_age });
        }
    }

    fn unavailable(&self, why: &str) -> TokenVerdict {
        // The address may contain a password.
        tracing::error!("the verifier at {} is of no use: {why}", self.url.host_str().unwrap_or_default());
        TokenVerdict::Unavailable
    }

    async fn ask(&self, token: &SecretString, permits: &Semaphore) -> Result<TokenVerdict, String> {
        #[derive(Serialize)]
        struct VerifyRequest<'a> {
            api_key: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            app_id: Option<&'a str>,
        }
        // Half of the time at most, so that some is left for the answer.
        let permit = tokio::time::timeout(self.options.timeout / 2, permits.acquire()).await;
        let _permit = permit.map_err(|_| "too many questions wait for it")?.map_err(|e| e.to_string())?;
        let question = VerifyRequest { api_key: token.expose_secret(), app_id: self.options.app_id.as_deref() };
        let body = serde_json::to_vec(&question).map_err(|e| e.to_string())?;
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let answer = request.send().await.map_err(describe_error)?;
        match answer.status() {
            StatusCode::OK => {
                let user = user_in(&read(answer).await?).ok_or("its answer names no user_id")?;
                Ok(TokenVerdict::User(user.into()))
            }
            StatusCode::UNAUTHORIZED => Ok(TokenVerdict::Invalid),
            other => Err(format!("it answered {}", other.as_u16())),
        }
    }
}

/// An error and its causes in words, without the address, which may contain a password.
fn describe_error(e: reqwest::Error) -> String {
    format!("{:#}", anyhow::Error::from(e.without_url()))
}

async fn read(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(describe_error)? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER_BYTES {
            return Err("its answer is too long".to_owned());
        }
    }
    Ok(body)
}

/// The `user_id` of an answer: a text or a number.
fn user_in(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct UserAnswer {
        user_id: Value,
    }
    let user = match serde_json::from_slice::<UserAnswer>(body).ok()?.user_id {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let fits = (1..=MAX_USER_BYTES).contains(&user.len()) && !user.chars().any(char::is_control);
    fits.then_some(user)
}

/// A client that follows no redirects, so that tokens go to the verifier alone.
fn client(url: &Url) -> reqwest::Result<Client> {
    install_provider();
    let loopback = is_loopback(url.host_str().unwrap_or_default());
    let builder = || {
        let builder = Client::builder().redirect(redirect::Policy::none()).referer(false);
        if loopback { builder.no_proxy() } else { builder }
    };
    // Plain http needs no root certificates, and on a system without any the client could not be built.
    if url.scheme() == "http" { builder().tls_certs_only([]).build() } else { builder().build() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_id_is_read_from_the_answer() {
        for (body, user) in [
            (r#"{"user_id":"ana","plan":"x"}"#, Some("ana")),
            (r#"{"user_id":42}"#, Some("42")),
            (r#"{"user_id":""}"#, None),
            (r#"{"user_id":null}"#, None),
            (r#"{"user_id":["a"]}"#, None),
            (r#"{"user_id":"a\nb"}"#, None),
            (r#"{"id":"ana"}"#, None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(user_in(body.as_bytes()).as_deref(), user, "{body}");
        }
    }

    #[test]
    fn invalid_verifier_address_is_refused() {
        for url in ["", "auth.example.org", "ftp://auth.example.org", "unix:/x"] {
            assert!(Verifier::new(&VerifierOptions::new(url.to_owned(), None)).is_err(), "{url:?}");
        }
        let verifier = Verifier::new(&VerifierOptions::new("http://127.0.0.1:1/auth/".to_owned(), None)).unwrap();
        assert_eq!(verifier.url.as_str(), "http://127.0.0.1:1/auth/verify");
    }
}
