//! From a request to its answer: who asks, for what, by which method. Logs each request once.

use std::time::Instant;

use http::header::CONTENT_LENGTH;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;

use super::answer::{Answer, PathFault, Refusal, json};
use super::keys::Access;
use super::{Proxy, blobs, events, index, versions};
use crate::path::{PathError, RelPath};
use crate::protocol::{Health, capability};
use crate::store::Store;

/// The namespace of the flat dialect.
pub const FLAT: &str = "";

/// The file that holds the index in a bucket, beside the blobs.
const INDEX_FILE: &str = ".sync-index.json";

/// An address of the flat dialect.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Health,
    Sync,
    Events,
    /// What follows `/blob/`, as it stands in the request.
    Blob(&'a str),
    /// What follows `/versions/`.
    Versions(&'a str),
}

fn route(raw: &str) -> Option<Route<'_>> {
    match raw {
        "/health" => Some(Route::Health),
        "/sync" => Some(Route::Sync),
        "/events" => Some(Route::Events),
        _ => match raw.strip_prefix("/versions/") {
            Some(path) => Some(Route::Versions(path)),
            None => raw.strip_prefix("/blob/").map(Route::Blob),
        },
    }
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
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if route == Some(Route::Health) {
        return if reads { Ok(health(proxy.store.as_ref()).await) } else { Err(Refusal::Method("GET, HEAD")) };
    }
    let caller = proxy.auth.authorize(request.headers()).await?;
    let route = route.ok_or(Refusal::NoSuchRoute)?;
    let access = match *request.method() {
        Method::PUT | Method::DELETE => Access::Write,
        _ => Access::Read,
    };
    caller.may(access, FLAT)?;
    match route {
        Route::Health => Ok(health(proxy.store.as_ref()).await),
        Route::Sync if reads => index::get(proxy, FLAT, uri.query(), request.headers()).await,
        Route::Sync => Err(Refusal::Method("GET, HEAD")),
        Route::Events if request.method() == Method::GET => events::get(proxy, &caller, FLAT, request.headers()).await,
        Route::Events => Err(Refusal::Method("GET")),
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

async fn health<S: Store>(store: &S) -> Answer {
    // A delta is built on a mark, which only an exact index has.
    let strong: &[&str] = if S::STRONG { &[capability::STRONG_INDEX, capability::DELTA] } else { &[] };
    let capabilities = [capability::HONEST_412, capability::INDEX_ETAG, capability::EVENTS, capability::VERSIONS];
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
        capabilities: capabilities.iter().chain(strong).map(|c| (*c).to_owned()).collect(),
    };
    json(code, &health)
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
