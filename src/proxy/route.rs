//! From a request to its answer: who asks, for what, by which method. Logs each request once.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, Method, Request};
use hyper::body::Incoming;

use super::answer::{Answer, PathFault, Refusal, insert};
use super::auth::{self, Caller};
use super::connection::{Door, Peer};
use super::keys::{Access, hash_of};
use super::{Proxy, batch, blobs, encoding, events, health, index, namespaced, rates, versions};
use crate::path::{MAX_PATH, PathError, RelPath};
use crate::protocol::{INDEX_NAME, Namespace, X_MEMSYNC_HISTORY, X_REQUEST_ID};
use crate::store::Store;

/// Longest id of a request that is taken over, bytes.
const LONGEST_ID: usize = 64;
/// Longest name of a blob or a namespace as it stands in a request: every byte of it may be escaped.
const LONGEST_RAW: usize = 3 * MAX_PATH;

/// An address, its names as they stand in the request. The flat dialect's namespace is `""`.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Health,
    Metrics,
    Sync(&'a str),
    Events(&'a str),
    Batch(&'a str),
    /// The namespace, and the path in it.
    Blob(&'a str, &'a str),
    /// As [`Route::Blob`], under `/versions/`.
    Versions(&'a str, &'a str),
}

impl Route<'_> {
    /// For metrics: says nothing of what was asked for.
    fn name(&self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Metrics => "metrics",
            Self::Sync(_) => "sync",
            Self::Events(_) => "events",
            Self::Batch(_) => "batch",
            Self::Blob(..) => "blob",
            Self::Versions(..) => "versions",
        }
    }

    /// The namespace that it is about, as it stands in the request.
    fn namespace(&self) -> &str {
        match self {
            Self::Health | Self::Metrics => "",
            Self::Sync(ns) | Self::Events(ns) | Self::Batch(ns) | Self::Blob(ns, _) | Self::Versions(ns, _) => ns,
        }
    }
}

fn route(raw: &str) -> Option<Route<'_>> {
    let below = |root| raw.strip_prefix(root).filter(|ns| !ns.is_empty());
    match raw {
        "/health" => Some(Route::Health),
        "/metrics" => Some(Route::Metrics),
        "/sync" => Some(Route::Sync("")),
        "/events" => Some(Route::Events("")),
        "/batch" => Some(Route::Batch("")),
        _ => None
            .or_else(|| below("/sync/").map(Route::Sync))
            .or_else(|| below("/events/").map(Route::Events))
            .or_else(|| below("/batch/").map(Route::Batch))
            .or_else(|| raw.strip_prefix("/blob/").map(|path| Route::Blob("", path)))
            .or_else(|| raw.strip_prefix("/versions/").map(|path| Route::Versions("", path)))
            .or_else(|| namespaced(raw)),
    }
}

/// Both may contain slashes, plain ones or hidden as `%2F`: the last plain `/blob/` stands between them, or where there
/// is none the last `/versions/`.
fn namespaced(raw: &str) -> Option<Route<'_>> {
    let raw = raw.strip_prefix('/')?;
    let (ns, path, route): (_, _, fn(_, _) -> _) = match raw.rsplit_once("/blob/") {
        Some((ns, path)) => (ns, path, Route::Blob),
        None => raw.rsplit_once("/versions/").map(|(ns, path)| (ns, path, Route::Versions as fn(_, _) -> _))?,
    };
    (!ns.is_empty()).then(|| route(ns, path))
}

/// Decoded once and then checked, as a path is.
fn namespace(raw: &str) -> Result<Namespace, Refusal> {
    if raw.len() > LONGEST_RAW {
        return Err(PathFault::TooLong.into());
    }
    Ok(Namespace::parse(&percent_decode(raw)?)?)
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
    if path.segments().any(|name| name == INDEX_NAME) { Err(PathFault::Reserved) } else { Ok(path) }
}

pub fn percent_decode(raw: &str) -> Result<String, PathFault> {
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

/// Answers one request and logs it: never its headers, its query or its body. A field that is not known is left out.
pub async fn respond<S: Store>(proxy: &Proxy<S>, peer: &Peer, request: Request<Incoming>) -> Answer {
    let began = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let id = request_id(request.headers());
    let wanted = encoding::wanted(request.headers());
    let admitted = OnceLock::new();
    let mut answer = match handle(proxy, peer, request, (&id, &admitted)).await {
        Ok(answer) => answer,
        Err(refusal) => {
            proxy.metrics.refused(&refusal);
            refusal.into_answer(&id)
        }
    };
    answer = encoding::encode(proxy, wanted, &method, answer).await;
    let took = began.elapsed();
    let route = route(uri.path());
    proxy.metrics.answered(route.as_ref().map_or("none", Route::name), answer.status(), took);
    if matches!(route, Some(Route::Blob(..))) && !method.is_safe() && answer.status().is_success() {
        proxy.metrics.wrote(1);
    }
    insert(answer.headers_mut(), X_REQUEST_ID, &id);
    let bytes: Option<u64> = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let caller: Option<&Arc<Caller>> = admitted.get();
    tracing::info!(
        target: "memsync::access",
        %method,
        path = uri.path(),
        status = answer.status().as_u16(),
        bytes,
        client = %peer.ip,
        caller = caller.map(|caller| caller.id.as_str()),
        user = caller.and_then(|caller| caller.user.as_deref()),
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
    (id, admitted): (&str, &OnceLock<Arc<Caller>>),
) -> Result<Answer, Refusal> {
    let uri = request.uri().clone();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut route = route(uri.path());
    match (peer.door, proxy.options.metrics_listener.is_some()) {
        (Door::Metrics, _) if route == Some(Route::Metrics) && reads => return Ok(metrics(proxy)),
        (Door::Metrics, _) => return Err(Refusal::NoSuchRoute),
        // They have a door of their own.
        (Door::Main, true) => route = route.filter(|route| *route != Route::Metrics),
        (Door::Main, false) => {}
    }
    if route == Some(Route::Health) {
        return if reads { Ok(health::get(proxy, id).await) } else { Err(Refusal::Method("GET, HEAD")) };
    }
    let caller = admit(proxy, peer, request.headers()).await?;
    let caller = admitted.get_or_init(|| caller);
    let route = route.ok_or(Refusal::NoSuchRoute)?;
    if route == Route::Metrics {
        // Numbers of the proxy as a whole: any key opens them, whatever it is for.
        return if reads { Ok(metrics(proxy)) } else { Err(Refusal::Method("GET, HEAD")) };
    }
    let access = match *request.method() {
        Method::PUT | Method::DELETE => Access::Write,
        _ => Access::Read,
    };
    // Nothing is done in a namespace but what was asked for by this name.
    let namespace = namespace(route.namespace())?;
    let ns = namespace.as_str();
    caller.may(access, ns)?;
    let writes = !reads;
    let answer = act(proxy, caller, &namespace, route, (request, id)).await;
    answer.map(|answer| if writes { stamped(proxy, ns, answer) } else { answer })
}

/// The answer to a write, with where in its history the store stands with it.
fn stamped<S: Store>(proxy: &Proxy<S>, ns: &str, mut answer: Answer) -> Answer {
    if let Some(point) = proxy.store.history_point(ns).filter(|_| answer.status().is_success()) {
        insert(answer.headers_mut(), HeaderName::from_static(X_MEMSYNC_HISTORY), &point.to_string());
    }
    answer
}

/// Does what a caller may have done.
async fn act<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    namespace: &Namespace,
    route: Route<'_>,
    (request, id): (Request<Incoming>, &str),
) -> Result<Answer, Refusal> {
    let (ns, uri) = (namespace.as_str(), request.uri().clone());
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match route {
        // They were answered above.
        Route::Health | Route::Metrics => Err(Refusal::NoSuchRoute),
        Route::Sync(_) if reads => index::get(proxy, caller, ns, uri.query(), request.headers()).await,
        Route::Sync(_) => Err(Refusal::Method("GET, HEAD")),
        // Of the answer to HEAD hyper drops the stream.
        Route::Events(_) if reads => events::get(proxy, caller, ns, request.headers()).await,
        Route::Events(_) => Err(Refusal::Method("GET, HEAD")),
        Route::Batch(_) if request.method() == Method::POST => batch::post(proxy, caller, ns, request, id).await,
        Route::Batch(_) => Err(Refusal::Method("POST")),
        Route::Versions(_, path) if reads => versions::get(proxy, caller, ns, &blob_path(path)?).await,
        Route::Versions(..) => Err(Refusal::Method("GET, HEAD")),
        Route::Blob(_, path) => {
            let (path, flat) = (blob_path(path)?, namespace.is_flat());
            match *request.method() {
                Method::GET | Method::HEAD => {
                    let is_head = request.method() == Method::HEAD;
                    let read = blobs::ReadRequest { query: uri.query(), headers: request.headers(), is_head };
                    blobs::get(proxy, caller, ns, &path, read).await
                }
                Method::PUT if flat => blobs::put(proxy, caller, ns, &path, request).await,
                Method::PUT => namespaced::put(proxy, caller, namespace, &path, request).await,
                Method::DELETE if flat => blobs::delete(proxy, caller, ns, &path, request.headers()).await,
                Method::DELETE => namespaced::delete(proxy, caller, namespace, &path, request.headers()).await,
                _ => Err(Refusal::Method("GET, HEAD, PUT, DELETE")),
            }
        }
    }
}

fn metrics<S: Store>(proxy: &Proxy<S>) -> Answer {
    proxy.metrics.answer(proxy.store.index_traffic())
}

/// Lets a caller in who may call, within the limits of its rate and of its address's failures.
async fn admit<S: Store>(proxy: &Proxy<S>, peer: &Peer, headers: &HeaderMap) -> Result<Arc<Caller>, Refusal> {
    // Who shows nothing guesses nothing.
    let token = auth::bearer(headers).ok_or(Refusal::Unauthorized { wrong: false })?;
    let shown = hash_of(token);
    if let Some(wait) = proxy.rates.barred(peer.address, &shown) {
        return Err(Refusal::TooOften(wait));
    }
    let attempt = proxy.rates.attempt(peer.address);
    let caller = match proxy.auth.authorize(token, shown).await {
        Err(refusal @ Refusal::Unauthorized { .. }) => {
            return Err(attempt.failed().map_or(refusal, Refusal::TooOften));
        }
        known => {
            attempt.over();
            known?
        }
    };
    if !peer.is_let_in(&proxy.callers, &caller) {
        return Err(Refusal::TooManyConnections);
    }
    peer.is_known();
    // Of every request: behind a reverse proxy one connection carries the tokens of many.
    proxy.rates.succeeded(peer.address, shown);
    let wait = proxy.rates.too_fast(&rates::Caller(caller.id.as_str().into()));
    wait.map_or(Ok(caller), |wait| Err(Refusal::TooOften(wait)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_blob_separates() {
        for (raw, ns, path) in [
            ("/blob/a", "", "a"),
            ("/blob/a/blob/b", "", "a/blob/b"),
            ("/n/blob/a", "n", "a"),
            ("/n/m/blob/a/b", "n/m", "a/b"),
            ("/n%2Fm/blob/a%2Fblob%2Fb", "n%2Fm", "a%2Fblob%2Fb"),
            ("/n/blob/a/blob/b", "n/blob/a", "b"),
            ("/n/blob/blob/b", "n/blob", "b"),
            ("/n/blob/a/blob", "n", "a/blob"),
            ("/n/blob/", "n", ""),
            ("/health/blob/a", "health", "a"),
            ("/blob%2Fx/blob/a", "blob%2Fx", "a"),
        ] {
            assert_eq!(route(raw), Some(Route::Blob(ns, path)), "{raw}");
        }
        assert_eq!(route("/sync/n/blob/b"), Some(Route::Sync("n/blob/b")));
        assert_eq!(route("/versions/a/b"), Some(Route::Versions("", "a/b")));
        assert_eq!(route("/n/m/versions/a/b"), Some(Route::Versions("n/m", "a/b")));
        assert_eq!(route("/n/versions/blob/b"), Some(Route::Blob("n/versions", "b")));
        assert_eq!(route("/events/n/m"), Some(Route::Events("n/m")));
        assert_eq!((route("/batch"), route("/batch/n/m")), (Some(Route::Batch("")), Some(Route::Batch("n/m"))));
        for nothing in ["//blob/a", "/n/blob", "/sync/", "/events/", "/batch/", "/n", "blob/a", "n/blob/a"] {
            assert_eq!(route(nothing), None, "{nothing}");
        }
    }

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
            (".sync-index.json/a", Err(PathFault::Reserved)),
        ] {
            assert_eq!(blob_path(raw), why, "{raw}");
        }
    }
}
