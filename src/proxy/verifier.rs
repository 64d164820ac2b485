//! [`Verifier`]: a service elsewhere that knows whose a token is: `POST {url}/verify`, as the protocol has it.
//!
//! Its answers are remembered for a moment, by the token's hash. Any number of requests with the same token ask once,
//! and only so many tokens are asked about, or wait for that, at a time. Tokens that were good before have turns of their
//! own, so that whoever makes tokens up holds up no user but a new one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::keys::{Scope, UserPattern};
use crate::protocol::{install_provider, is_loopback};

/// Questions under way at once about tokens of which nothing is known; and as many about those that were good before.
const AT_ONCE: usize = 16;
/// Tokens of which nothing is known and that wait or are asked about.
const FLIGHTS: usize = 256;
/// How long a token counts as one that was good before.
const GOOD_BEFORE: Duration = Duration::from_secs(24 * 3600);
/// Answers remembered, at most.
const REMEMBERED: usize = 10_000;
/// Longest answer read, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Longest name of a user, in bytes.
const LONGEST_USER: usize = 256;

/// How to reach a verifier.
#[derive(Debug, Clone)]
pub struct VerifierOptions {
    /// `HEARE_AUTH_URL`
    pub url: String,
    /// `HEARE_AUTH_APP_ID`
    pub app_id: Option<String>,
    /// The namespaces that a verified user may read and write; `None`: all of them.
    pub namespaces: Option<Vec<UserPattern>>,
    /// Bytes that these namespaces of a user may hold together; `None`: any number.
    pub quota: Option<u64>,
    /// How long a question may take, waiting for its turn included.
    pub timeout: Duration,
    /// How long a good answer is remembered.
    pub remember_good: Duration,
    /// How long a refusal is remembered.
    pub remember_bad: Duration,
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
            remember_good: Duration::from_secs(60),
            remember_bad: Duration::from_secs(5),
        }
    }
}

/// What a verifier says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is this user's.
    User(Arc<str>),
    Invalid,
    /// It cannot be asked now.
    Unknown,
}

type Flight = Shared<BoxFuture<'static, Verdict>>;

pub struct Verifier(Arc<Inner>);

struct Inner {
    client: Client,
    url: Url,
    options: VerifierOptions,
    turns: Semaphore,
    turns_of_known: Semaphore,
    known: Mutex<HashMap<blake3::Hash, Remembered>>,
    flights: Mutex<HashMap<blake3::Hash, Flight>>,
}

/// A verdict of before.
struct Remembered {
    verdict: Verdict,
    at: Instant,
    /// How long it is given without asking again.
    keep: Duration,
}

impl Remembered {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < self.keep
    }

    /// Whether it still makes a difference.
    fn is_of_use(&self) -> bool {
        self.is_fresh() || self.was_good()
    }

    fn was_good(&self) -> bool {
        matches!(self.verdict, Verdict::User(_)) && self.at.elapsed() < GOOD_BEFORE
    }
}

/// What these mutexes guard is whole after every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Verifier {
    /// # Errors
    /// Says what is wrong with the address.
    pub fn new(options: &VerifierOptions) -> Result<Self, String> {
        let fault = |why: &str| format!("the verifier's address is no http or https URL ({why})");
        let url = Url::parse(&format!("{}/verify", options.url.trim_end_matches('/')));
        let url = url.map_err(|e| fault(&e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(fault("another scheme, or no host"));
        }
        let client = client(&url).map_err(|e| format!("there can be no client for the verifier: {e}"))?;
        Ok(Self(Arc::new(Inner {
            client,
            url,
            options: options.clone(),
            turns: Semaphore::new(AT_ONCE),
            turns_of_known: Semaphore::new(AT_ONCE),
            known: Mutex::default(),
            flights: Mutex::default(),
        })))
    }

    /// What a verified user may do.
    pub fn scope(&self, user: &str) -> Scope {
        match &self.0.options.namespaces {
            Some(patterns) => {
                let namespaces = patterns.iter().filter_map(|pattern| pattern.of(user)).collect();
                Scope { namespaces, read_only: false }
            }
            None => Scope::default(),
        }
    }

    /// Bytes that a verified user may hold.
    pub fn quota(&self) -> Option<u64> {
        self.0.options.quota
    }

    /// Whose `token` is; `hash` is its hash.
    pub async fn ask(&self, token: &str, hash: blake3::Hash) -> Verdict {
        if let Some(verdict) = self.0.remembered(hash) {
            return verdict;
        }
        let was_good = lock(&self.0.known).get(&hash).is_some_and(Remembered::was_good);
        let flight = {
            let mut flights = lock(&self.0.flights);
            match flights.get(&hash) {
                Some(flight) => flight.clone(),
                None if !was_good && flights.len() >= FLIGHTS => {
                    return self.0.unknown("too many questions wait for it");
                }
                None => {
                    let (inner, token) = (self.0.clone(), SecretString::from(token));
                    let flight = async move { inner.settle(&token, hash, was_good).await }.boxed().shared();
                    flights.insert(hash, flight.clone());
                    // It goes on for the others, and for what is remembered, when this caller leaves.
                    tokio::spawn(flight.clone());
                    flight
                }
            }
        };
        flight.await
    }
}

impl Inner {
    fn remembered(&self, hash: blake3::Hash) -> Option<Verdict> {
        let known = lock(&self.known);
        known.get(&hash).filter(|kept| kept.is_fresh()).map(|kept| kept.verdict.clone())
    }

    /// Asks, remembers the answer, and ends the flight.
    async fn settle(&self, token: &SecretString, hash: blake3::Hash, was_good: bool) -> Verdict {
        let turns = if was_good { &self.turns_of_known } else { &self.turns };
        let verdict = match tokio::time::timeout(self.options.timeout, self.question(token, turns)).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(why)) => self.unknown(&why),
            Err(_) => self.unknown("no answer in time"),
        };
        let keep = match verdict {
            Verdict::User(_) => Some(self.options.remember_good),
            Verdict::Invalid => Some(self.options.remember_bad),
            Verdict::Unknown => None,
        };
        if let Some(keep) = keep {
            let mut known = lock(&self.known);
            if known.len() >= REMEMBERED {
                known.retain(|_, kept| kept.is_of_use());
            }
            if known.len() >= REMEMBERED {
                known.retain(|_, kept| kept.is_fresh());
            }
            if known.len() < REMEMBERED || known.contains_key(&hash) {
                known.insert(hash, Remembered { verdict: verdict.clone(), at: Instant::now(), keep });
            }
        }
        lock(&self.flights).remove(&hash);
        verdict
    }

    fn unknown(&self, why: &str) -> Verdict {
        // The address may hold a password of its own.
        tracing::error!("the verifier at {} is of no use: {why}", self.url.host_str().unwrap_or_default());
        Verdict::Unknown
    }

    async fn question(&self, token: &SecretString, turns: &Semaphore) -> Result<Verdict, String> {
        #[derive(Serialize)]
        struct Question<'a> {
            api_key: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            app_id: Option<&'a str>,
        }
        // Half of the time at most, so that some is left for the answer.
        let turn = tokio::time::timeout(self.options.timeout / 2, turns.acquire()).await;
        let _turn = turn.map_err(|_| "too many questions wait for it")?.map_err(|e| e.to_string())?;
        let question = Question { api_key: token.expose_secret(), app_id: self.options.app_id.as_deref() };
        let body = serde_json::to_vec(&question).map_err(|e| e.to_string())?;
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let answer = request.send().await.map_err(without_url)?;
        match answer.status() {
            StatusCode::OK => {
                let user = user_in(&read(answer).await?).ok_or("its answer names no user_id")?;
                Ok(Verdict::User(user.into()))
            }
            StatusCode::UNAUTHORIZED => Ok(Verdict::Invalid),
            other => Err(format!("it answered {}", other.as_u16())),
        }
    }
}

/// The words of an error and of what caused it.
fn without_url(e: reqwest::Error) -> String {
    let e = e.without_url();
    let mut why = e.to_string();
    let mut cause = std::error::Error::source(&e);
    while let Some(e) = cause {
        why = format!("{why}: {e}");
        cause = e.source();
    }
    why
}

async fn read(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(without_url)? {
        body.extend_from_slice(&piece);
        if body.len() > LONGEST_ANSWER {
            return Err("its answer is too long".to_owned());
        }
    }
    Ok(body)
}

/// The `user_id` of a user record: a text or a number.
fn user_in(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Record {
        user_id: Value,
    }
    let user = match serde_json::from_slice::<Record>(body).ok()?.user_id {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let fits = (1..=LONGEST_USER).contains(&user.len()) && !user.chars().any(char::is_control);
    fits.then_some(user)
}

/// A client that goes to the verifier and nowhere else.
fn client(url: &Url) -> reqwest::Result<Client> {
    install_provider();
    let loopback = is_loopback(url.host_str().unwrap_or_default());
    let builder = || {
        let builder = Client::builder().redirect(redirect::Policy::none()).referer(false);
        if loopback { builder.no_proxy() } else { builder }
    };
    // Plain http needs no roots, and without a system bundle the client cannot be built.
    if url.scheme() == "http" { builder().tls_certs_only([]).build() } else { builder().build() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_record_has_a_user_id() {
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
    fn an_address_is_checked_before_anything_starts() {
        for url in ["", "auth.example.org", "ftp://auth.example.org", "unix:/x"] {
            assert!(Verifier::new(&VerifierOptions::new(url.to_owned(), None)).is_err(), "{url:?}");
        }
        let verifier = Verifier::new(&VerifierOptions::new("http://127.0.0.1:1/auth/".to_owned(), None)).unwrap();
        assert_eq!(verifier.0.url.as_str(), "http://127.0.0.1:1/auth/verify");
    }
}
