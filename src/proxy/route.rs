//! From a request to its answer: who asks, for what, by which method. Logs each request once.

use std::time::Instant;

use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;

use super::answer::{Answer, PathFault, Refusal, json};
use super::{Proxy, blobs, events, index, namespaced, versions};
use crate::path::{PathError, RelPath};
use crate::protocol::{Health, Namespace, capability};
use crate::store::Store;

/// The file that holds the index in a bucket, beside the blobs.
const INDEX_FILE: &str = ".sync-index.json";

/// An address, its names as they stand in the request. The flat dialect's namespace is `""`.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Health,
    Sync(&'a str),
    Events(&'a str),
    /// The namespace, and the path in it.
    Blob(&'a str, &'a str),
    /// As [`Route::Blob`], under `/versions/`.
    Versions(&'a str, &'a str),
}

fn route(raw: &str) -> Option<Route<'_>> {
    let below = |root| raw.strip_prefix(root).filter(|ns| !ns.is_empty());
    match raw {
        "/health" => Some(Route::Health),
        "/sync" => Some(Route::Sync("")),
        "/events" => Some(Route::Events("")),
        _ => None
            .or_else(|| below("/sync/").map(Route::Sync))
            .or_else(|| below("/events/").map(Route::Events))
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
    Ok(Namespace::parse(&percent_decode(raw)?)?)
}

/// The blob's name. It is decoded once and then checked, so that no escape hides what the check looks for.
fn blob_path(raw: &str) -> Result<RelPath, PathFault> {
    let path = RelPath::parse(&percent_decode(raw)?)?;
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
pub async fn respond<S: Store>(proxy: &Proxy<S>, request: Request<Incoming>) -> Answer {
    let began = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let answer = match handle(proxy, request).await {
        Ok(answer) => answer,
        Err(refusal) => refusal.into_answer(),
    };
    let bytes = answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).unwrap_or("-");
    tracing::info!(
        target: "memsync::access",
        %method,
        path = uri.path(),
        status = answer.status().as_u16(),
        bytes,
        ms = began.elapsed().as_secs_f64() * 1000.0,
    );
    answer
}

async fn handle<S: Store>(proxy: &Proxy<S>, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let uri = request.uri().clone();
    let route = route(uri.path());
    if route != Some(Route::Health) && !authorized(proxy.token, request.headers()) {
        return Err(Refusal::Unauthorized);
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match route.ok_or(Refusal::NoSuchRoute)? {
        Route::Health if reads => Ok(health(proxy.store.as_ref()).await),
        Route::Health => Err(Refusal::Method("GET, HEAD")),
        Route::Sync(ns) if reads => index::get(proxy, namespace(ns)?.as_str(), uri.query(), request.headers()).await,
        Route::Sync(_) => Err(Refusal::Method("GET, HEAD")),
        Route::Events(ns) if request.method() == Method::GET => {
            events::get(proxy, namespace(ns)?.as_str(), request.headers()).await
        }
        Route::Events(_) => Err(Refusal::Method("GET")),
        Route::Versions(ns, path) if reads => versions::get(proxy, namespace(ns)?.as_str(), &blob_path(path)?).await,
        Route::Versions(..) => Err(Refusal::Method("GET, HEAD")),
        Route::Blob(ns, path) => {
            let (ns, path) = (namespace(ns)?, blob_path(path)?);
            match *request.method() {
                Method::GET | Method::HEAD => blobs::get(proxy, ns.as_str(), &path, uri.query()).await,
                Method::PUT if ns.is_flat() => blobs::put(proxy, ns.as_str(), &path, request).await,
                Method::PUT => namespaced::put(proxy, &ns, &path, request).await,
                Method::DELETE if ns.is_flat() => blobs::delete(proxy, ns.as_str(), &path, request.headers()).await,
                Method::DELETE => namespaced::delete(proxy, &ns, &path, request.headers()).await,
                _ => Err(Refusal::Method("GET, HEAD, PUT, DELETE")),
            }
        }
    }
}

/// Whether the request shows the token. The comparison takes the same time for any two hashes.
fn authorized(token: blake3::Hash, headers: &HeaderMap) -> bool {
    let shown = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, shown) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(shown)
    });
    shown.is_some_and(|shown| blake3::hash(shown.trim_ascii()) == token)
}

async fn health<S: Store>(store: &S) -> Answer {
    // A delta is built on a mark, which only an exact index has.
    let strong: &[&str] = if S::STRONG { &[capability::STRONG_INDEX, capability::DELTA] } else { &[] };
    let capabilities = [
        capability::HONEST_412,
        capability::INDEX_ETAG,
        capability::EVENTS,
        capability::HTTP_PRECONDITIONS,
        capability::ENCODED_SLASH,
        capability::VERSIONS,
    ];
    let (code, status, storage) = match store.health().await {
        Ok(()) => (StatusCode::OK, "ok", "connected"),
        Err(e) => {
            tracing::error!("{e}");
            (StatusCode::SERVICE_UNAVAILABLE, "error", "disconnected")
        }
    };
    let health = Health {
        status: status.to_owned(),
        storage: storage.to_owned(),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        capabilities: capabilities.iter().chain(strong).map(|c| (*c).to_owned()).collect(),
    };
    json(code, &health)
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
        for nothing in ["//blob/a", "/n/blob", "/sync/", "/events/", "/n", "blob/a", "n/blob/a"] {
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
