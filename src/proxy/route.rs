//! From a request to its answer: who asks, for what, by which method. Logs each request once.

use std::sync::Arc;
use std::time::Instant;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request};
use hyper::body::Incoming;

use super::answer::{Answer, PathFault, Refusal, insert};
use super::auth::{self, Caller};
use super::connection::{Door, Peer};
use super::keys::{Access, hash_of};
use super::{Proxy, batch, blobs, events, health, index, rates, versions};
use crate::path::{MAX_PATH, PathError, RelPath};
use crate::protocol::X_REQUEST_ID;
use crate::store::Store;

/// The namespace of the flat dialect.
pub const FLAT: &str = "";

/// The file that holds the index in a bucket, beside the blobs.
const INDEX_FILE: &str = ".sync-index.json";

/// Longest id of a request that is taken over, bytes.
const LONGEST_ID: usize = 64;
/// Longest name of a blob as it stands in a request: every byte of it may be escaped.
const LONGEST_RAW: usize = 3 * MAX_PATH;

/// An address of the flat dialect.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Health,
    Sync,
    Events,
    Metrics,
    Batch,
    /// What follows `/blob/`, as it stands in the request.
    Blob(&'a str),
    /// What follows `/versions/`.
    Versions(&'a str),
}

impl Route<'_> {
    /// For metrics: says nothing of what was asked for.
    fn name(&self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Sync => "sync",
            Self::Events => "events",
            Self::Metrics => "metrics",
            Self::Batch => "batch",
            Self::Blob(_) => "blob",
            Self::Versions(_) => "versions",
        }
    }
}

fn route(raw: &str) -> Option<Route<'_>> {
    match raw {
        "/health" => Some(Route::Health),
        "/sync" => Some(Route::Sync),
        "/events" => Some(Route::Events),
        "/metrics" => Some(Route::Metrics),
        "/batch" => Some(Route::Batch),
        _ => match raw.strip_prefix("/versions/") {
            Some(path) => Some(Route::Versions(path)),
            None => raw.strip_prefix("/blob/").map(Route::Blob),
        },
    }
}

/// The blob's name. It is decoded once and then checked, so that no escape hides what the check looks for.
fn blob_path(raw: &str) -> Result<RelPath, PathFault> {
    if raw.len() > LONGEST_RAW {
        return Err(PathFault::TooLong);
    }
    stored_path(&percent_decode(raw)?)
}

/// A name, not encoded, under which blobs may be stored.
pub fn stored_path(name: &str) -> Result<RelPath, PathFault> {
    let path = RelPath::parse(name)?;
    if path.file_name() == INDEX_FILE { Err(PathFault::Reserved) } else { Ok(path) }
}

fn percent_decode(raw: &str) -> Result<String, PathFault> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = tail else { return Err(PathFault::Escape) };
        let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match (digit(high), digit(low)) {
            (Some(high), Some(low)) => out.push(high << 4 | low),
            _ => return Err(PathFault::Escape),
        }
        rest = tail;
    }
    String::from_utf8(out).map_err(|_| PathFault::Name(PathError::NotUtf8))
}

/// Answers one request and logs it: never its headers, its query or its body.
pub async fn respond<S: Store>(proxy: &Proxy<S>, peer: &Peer, request: Request<Incoming>) -> Answer {
    let began = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let id = request_id(request.headers());
    let mut answer = match handle(proxy, peer, request, &id).await {
        Ok(answer) => answer,
        Err(refusal) => {
            proxy.metrics.refused(&refusal);
            refusal.into_answer(&id)
        }
    };
    let took = began.elapsed();
    let route = route(uri.path());
    proxy.metrics.answered(route.as_ref().map_or("none", Route::name), answer.status(), took);
    if matches!(route, Some(Route::Blob(_))) && !method.is_safe() && answer.status().is_success() {
        proxy.metrics.writes.inc();
    }
    insert(answer.headers_mut(), X_REQUEST_ID, &id);
    let bytes = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).unwrap_or("-");
    tracing::info!(
        target: "memsync::access",
        %method,
        path = uri.path(),
        status = answer.status().as_u16(),
        bytes,
        ms = took.as_secs_f64() * 1000.0,
        id,
    );
    answer
}

/// The caller's own id for the request, where it is one that is safe to repeat; else one is made.
fn request_id(headers: &HeaderMap) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let given = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok());
    match given.filter(|id| (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(safe)) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}", fastrand::u64(..)),
    }
}

async fn handle<S: Store>(
    proxy: &Proxy<S>,
    peer: &Peer,
    request: Request<Incoming>,
    id: &str,
) -> Result<Answer, Refusal> {
    let uri = request.uri().clone();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut route = route(uri.path());
    match (peer.door, proxy.options.metrics_listener.is_some()) {
        (Door::Metrics, _) if route == Some(Route::Metrics) && reads => return Ok(proxy.metrics.answer()),
        (Door::Metrics, _) => return Err(Refusal::NoSuchRoute),
        // They have a door of their own.
        (Door::Main, true) => route = route.filter(|route| *route != Route::Metrics),
        (Door::Main, false) => {}
    }
    if route == Some(Route::Health) {
        return if reads { Ok(health::get(proxy, id).await) } else { Err(Refusal::Method("GET, HEAD")) };
    }
    let caller = admit(proxy, peer, request.headers()).await?;
    let route = route.ok_or(Refusal::NoSuchRoute)?;
    let access = match *request.method() {
        Method::PUT | Method::DELETE => Access::Write,
        _ => Access::Read,
    };
    caller.may(access, FLAT)?;
    match route {
        Route::Health | Route::Metrics if !reads => Err(Refusal::Method("GET, HEAD")),
        Route::Health | Route::Metrics => Ok(proxy.metrics.answer()),
        Route::Sync if reads => index::get(proxy, FLAT, uri.query(), request.headers()).await,
        Route::Sync => Err(Refusal::Method("GET, HEAD")),
        Route::Events if request.method() == Method::GET => events::get(proxy, &caller, FLAT, request.headers()).await,
        Route::Events => Err(Refusal::Method("GET")),
        Route::Batch if request.method() == Method::POST => batch::post(proxy, &caller, FLAT, request, id).await,
        Route::Batch => Err(Refusal::Method("POST")),
        Route::Versions(raw) if reads => versions::get(proxy, FLAT, &blob_path(raw)?).await,
        Route::Versions(_) => Err(Refusal::Method("GET, HEAD")),
        Route::Blob(raw) => match *request.method() {
            Method::GET | Method::HEAD => blobs::get(proxy, FLAT, &blob_path(raw)?, uri.query()).await,
            Method::PUT => blobs::put(proxy, &caller, FLAT, &blob_path(raw)?, request).await,
            Method::DELETE => blobs::delete(proxy, &caller, FLAT, &blob_path(raw)?, request.headers()).await,
            _ => Err(Refusal::Method("GET, HEAD, PUT, DELETE")),
        },
    }
}

/// Lets a caller in who may call, within the limits of its rate and of its address's failures.
async fn admit<S: Store>(proxy: &Proxy<S>, peer: &Peer, headers: &HeaderMap) -> Result<Arc<Caller>, Refusal> {
    // Who shows nothing guesses nothing.
    let token = auth::bearer(headers).ok_or(Refusal::Unauthorized { wrong: false })?;
    let shown = hash_of(token);
    if let Some(wait) = proxy.rates.barred(peer.address, &shown) {
        return Err(Refusal::TooOften(wait));
    }
    let caller = match proxy.auth.authorize(token, shown).await {
        Err(refusal @ Refusal::Unauthorized { .. }) => {
            return Err(proxy.rates.failed(peer.address).map_or(refusal, Refusal::TooOften));
        }
        known => known?,
    };
    if peer.is_known() {
        proxy.rates.succeeded(peer.address, shown);
    }
    let wait = proxy.rates.too_fast(&rates::Caller(caller.id.as_str().into()));
    wait.map_or(Ok(caller), |wait| Err(Refusal::TooOften(wait)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_once_and_then_checked() {
        for (raw, name) in [
            ("a.md", "a.md"),
            ("topics/a%20b.md", "topics/a b.md"),
            ("caf%C3%A9", "café"),
            ("a%2Fb", "a/b"),
            ("a+b", "a+b"),
            ("100%25", "100%"),
            ("%252e%252e/x", "%2e%2e/x"),
        ] {
            assert_eq!(blob_path(raw).unwrap().as_str(), name, "{raw}");
        }
    }

    #[test]
    fn only_safe_ids_are_repeated() {
        let id = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, http::HeaderValue::from_static(text));
            request_id(&headers)
        };
        for safe in ["a", "1f-2_b.C", "0123456789012345678901234567890123456789012345678901234567890123"] {
            assert_eq!(id(safe), safe);
        }
        for unsafe_one in
            ["", "a b", "a\"b", "a;b", "01234567890123456789012345678901234567890123456789012345678901234"]
        {
            assert!(
                id(unsafe_one).len() == 16 && id(unsafe_one).bytes().all(|b| b.is_ascii_hexdigit()),
                "{unsafe_one}"
            );
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn hostile_names_are_refused() {
        let name = |e| Err(PathFault::Name(e));
        for (raw, why) in [
            ("", name(PathError::Empty)),
            ("a//b", name(PathError::EmptySegment)),
            ("a/", name(PathError::EmptySegment)),
            ("%2Fetc/passwd", name(PathError::EmptySegment)),
            ("..", name(PathError::Dot)),
            ("a/%2e%2e/b", name(PathError::Dot)),
            ("%2e%2e%2fb", name(PathError::Dot)),
            ("a%00b", name(PathError::Control)),
            ("a%5Cb", name(PathError::Backslash)),
            ("a%FFb", name(PathError::NotUtf8)),
            ("%C0%AE%C0%AE/x", name(PathError::NotUtf8)),
            ("%2Ememsync/id", name(PathError::Private)),
            ("a%", Err(PathFault::Escape)),
            ("a%2", Err(PathFault::Escape)),
            ("a%zz", Err(PathFault::Escape)),
            ("a%+1", Err(PathFault::Escape)),
            (".sync-index.json", Err(PathFault::Reserved)),
            ("a/%2Esync-index.json", Err(PathFault::Reserved)),
        ] {
            assert_eq!(blob_path(raw), why, "{raw}");
        }
    }
}
