//! `/{namespace}/blob/{path}`: what the namespaced dialect has of its own. Its preconditions are versions, a digest
//! that comes with a body is the body's, and a write is answered with the index unless the client wants none.

use http::header::ETAG;
use http::{HeaderMap, Request, StatusCode};
use hyper::body::Incoming as RequestBody;

use super::answer::{Answer, Provided, Refusal, describe, empty, insert};
use super::auth::Caller;
use super::blobs::{content, text, write};
use super::{Proxy, index, versions};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{CONTENT_MD5, IF_MATCH_VERSION, Namespace, PREFER, PREFERENCE_APPLIED, RETURN_MINIMAL};
use crate::store::{DeleteOutcome, IndexEntry, Precondition, Store};

/// PUT with its precondition in `If-Match-Version`, and the digest of its body in `Content-MD5` where it has one.
pub async fn put<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &Namespace,
    path: &RelPath,
    request: Request<RequestBody>,
) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    let version = version(&head.headers)?.ok_or(Refusal::VersionRequired)?;
    let promised = digest(&head.headers)?;
    let meta = caller.sign(versions::told(&head.headers, proxy.store.keeps_versions())?);
    let body = content(proxy, caller, ns.as_str(), path, &head.headers, body, promised).await?;
    let provided = || Provided::Version(version);
    let (status, entry) = write(proxy, ns.as_str(), path, expect(version), meta, body, provided).await?;
    Ok(answer(proxy, caller, ns, (status, &entry), &head.headers).await)
}

/// A version that a write expects, in the words of the store.
pub fn expect(version: u64) -> Precondition {
    if version == 0 { Precondition::Absent } else { Precondition::Version(version) }
}

/// DELETE, with the precondition in `If-Match-Version` where there is one.
pub async fn delete<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &Namespace,
    path: &RelPath,
    headers: &HeaderMap,
) -> Result<Answer, Refusal> {
    let version = version(headers)?;
    let meta = caller.sign(versions::told(headers, proxy.store.keeps_versions())?);
    match proxy.store.delete(ns.as_str(), path, version.map(Precondition::Version), meta).await? {
        DeleteOutcome::Done(entry) => {
            let mut answer = answer(proxy, caller, ns, (StatusCode::OK, &entry), headers).await;
            // There is no content any more that a tag could stand for.
            answer.headers_mut().remove(ETAG);
            Ok(answer)
        }
        DeleteOutcome::Tombstone(entry) => Err(Refusal::Tombstone(entry)),
        DeleteOutcome::Absent => Err(Refusal::Absent),
        DeleteOutcome::Mismatch(held) => {
            let provided = Provided::Version(version.unwrap_or(0));
            Err(Refusal::Precondition { provided, held: Some(held) })
        }
    }
}

/// What a write is answered with: the namespace's whole index, or nothing where the client prefers that, or where the
/// index cannot be read. The write is done, and a refusal would say that it is not.
async fn answer<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &Namespace,
    (status, entry): (StatusCode, &IndexEntry),
    headers: &HeaderMap,
) -> Answer {
    let mut answer = if wants_little(headers) {
        let mut answer = empty(status);
        insert(answer.headers_mut(), PREFERENCE_APPLIED, RETURN_MINIMAL);
        answer
    } else {
        match index::manifest(proxy, caller, ns.as_str()).await {
            Ok(mut manifest) => {
                *manifest.status_mut() = status;
                manifest
            }
            Err(Refusal::Store(e)) => {
                tracing::error!("a write was answered without the index: {e}");
                proxy.metrics.store_errors.inc();
                empty(status)
            }
            Err(_) => {
                tracing::warn!(caller = %caller.id, "a write was answered without the index: no memory was free for it");
                empty(status)
            }
        }
    };
    describe(answer.headers_mut(), entry);
    answer
}

/// `If-Match-Version`, digits and nothing else.
fn version(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(IF_MATCH_VERSION) else { return Ok(None) };
    let digits = text(value).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).map(Some).ok_or(Refusal::BadVersion)
}

fn digest(headers: &HeaderMap) -> Result<Option<Md5>, Refusal> {
    let Some(value) = headers.get(CONTENT_MD5) else { return Ok(None) };
    text(value).and_then(|text| text.parse().ok()).map(Some).ok_or(Refusal::BadDigest)
}

/// Whether `Prefer` asks for `return=minimal` (RFC 7240, 2 and 4.2). Of two preferences of one name the first counts.
fn wants_little(headers: &HeaderMap) -> bool {
    let all = headers.get_all(PREFER);
    let mut preferences = all.iter().filter_map(text).flat_map(|line| line.split(','));
    let wanted = preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("return").then(|| value.trim().trim_matches('"'))
    });
    wanted == Some("minimal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_prefers() {
        for (lines, minimal) in [
            (&["return=minimal"][..], true),
            (&["respond-async, RETURN = \"minimal\"; x=1"], true),
            (&["wait=5", "return=minimal"], true),
            (&["return=representation, return=minimal"], false),
            (&["minimal"], false),
            (&["returns=minimal"], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(PREFER, line.parse().unwrap());
            }
            assert_eq!(wants_little(&headers), minimal, "{lines:?}");
        }
    }

    #[test]
    fn versions_are_digits() {
        for (sent, version) in [("0", Some(0)), ("1700000000000", Some(1_700_000_000_000)), (" 7 ", Some(7))] {
            let headers = HeaderMap::from_iter([(IF_MATCH_VERSION.parse().unwrap(), sent.parse().unwrap())]);
            assert_eq!(super::version(&headers).ok().flatten(), version);
        }
        for bad in ["", "-1", "+1", "1.5", "x", "\"1\"", "99999999999999999999", "*"] {
            let headers = HeaderMap::from_iter([(IF_MATCH_VERSION.parse().unwrap(), bad.parse().unwrap())]);
            assert!(matches!(super::version(&headers), Err(Refusal::BadVersion)), "{bad}");
        }
    }
}
