//! Versions: `GET /versions/{path}`, and what a version is told and tells about itself in headers.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use jiff::Timestamp;

use super::Proxy;
use super::answer::{Answer, Refusal, insert, rfc3339, with_held_body};
use super::auth::Caller;
use crate::path::RelPath;
use crate::protocol::{NEVER, WireVersion, WireVersions, X_MEMSYNC_DEVICE, X_MEMSYNC_EXPIRES, X_MEMSYNC_META};
use crate::store::{BlobMeta, BlobVersion, Store, StoreError, stored_size};

/// Memory set aside for a list of versions, bytes.
const LIST_MEMORY: u64 = 128 * 1024;
/// Longest `Content-Type` kept, in bytes; a longer one is no type that anybody registered.
const LONGEST_TYPE: usize = 255;
/// Longest name of a device kept, in bytes as it stands in the header.
const LONGEST_DEVICE: usize = 255;
/// The same as it is kept in a bucket.
const LONGEST_KEPT: usize = 512;

/// What is kept of a path, the newest first.
pub async fn get<S: Store>(proxy: &Proxy<S>, caller: &Caller, ns: &str, path: &RelPath) -> Result<Answer, Refusal> {
    let memory = proxy.memory.reserve(caller, LIST_MEMORY, proxy.options.body_timeout).await?;
    let versions = proxy.store.versions(ns, path).await?;
    if versions.is_empty() {
        return Err(Refusal::Absent);
    }
    let versions = versions.into_iter().map(wire).collect();
    let list = serde_json::to_vec(&WireVersions { path: path.as_str().to_owned(), versions });
    let list = list.map_err(|e| StoreError::Database(e.to_string()))?;
    Ok(with_held_body("application/json", list.into(), memory))
}

fn wire(version: BlobVersion) -> WireVersion {
    let BlobVersion { version, md5, size, is_deleted, meta } = version;
    let expires = meta.expires.filter(|at| *at != u64::MAX).map(rfc3339);
    WireVersion {
        version,
        md5,
        size,
        is_deleted,
        last_modified: rfc3339(version),
        content_type: meta.content_type,
        device: meta.device,
        key: meta.key,
        expires,
        meta: meta.free,
    }
}

/// The version that a query asks for.
///
/// # Errors
/// When what it asks for is no number.
pub fn asked(query: Option<&str>) -> Result<Option<u64>, Refusal> {
    let value = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("version=")));
    value.map(|text| text.parse().map_err(|_| Refusal::BadHeader("the query's version is not a number"))).transpose()
}

/// What a request says of the version that it writes.
///
/// # Errors
/// When it is too much, or no time, or one that a store which `keeps` no versions would forget.
pub fn told(headers: &HeaderMap, keeps: bool) -> Result<BlobMeta, Refusal> {
    let text = |name: HeaderName, longest| {
        let value = headers.get(name)?.to_str().ok()?.trim();
        (!value.is_empty() && value.len() <= longest).then(|| value.to_owned())
    };
    let expires = headers.get(X_MEMSYNC_EXPIRES).map(|value| {
        let due = value.to_str().ok().map(str::trim).and_then(|text| match text {
            NEVER => Some(u64::MAX),
            text => text.parse::<Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok()),
        });
        due.ok_or(Refusal::BadHeader("X-Memsync-Expires is neither `never` nor a time such as 2027-01-31T12:00:00Z"))
    });
    let expires = expires.transpose()?;
    if !keeps && expires.is_some_and(|at| at != u64::MAX) {
        return Err(Refusal::BadHeader(
            "X-Memsync-Expires: nothing expires here (no capability `versions`); leave it out",
        ));
    }
    let mut free = BTreeMap::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(X_MEMSYNC_META).filter(|name| !name.is_empty()) else { continue };
        let value = value.to_str().map_err(|_| Refusal::BadHeader("X-Memsync-BlobMeta-* takes visible ASCII"))?;
        free.insert(name.to_owned(), value.to_owned());
    }
    let device = text(HeaderName::from_static(X_MEMSYNC_DEVICE), LONGEST_DEVICE);
    let meta = BlobMeta {
        content_type: text(CONTENT_TYPE, LONGEST_TYPE),
        device: device.filter(|device| stored_size(device) <= LONGEST_KEPT),
        key: None,
        expires,
        free,
    };
    if meta.fits() {
        Ok(meta)
    } else {
        Err(Refusal::BadHeader("X-Memsync-BlobMeta-*: more than 32 names, or more than 1024 bytes as they are kept"))
    }
}

/// What a version tells of itself beside its content.
pub fn tell(headers: &mut HeaderMap, meta: &BlobMeta) {
    if let Some(device) = &meta.device {
        insert(headers, X_MEMSYNC_DEVICE, device);
    }
    if let Some(at) = meta.expires.filter(|at| *at != u64::MAX) {
        insert(headers, X_MEMSYNC_EXPIRES, &rfc3339(at));
    }
    // Earlier versions of memsync kept any number: more than many clients take, who could not read the file then.
    for (name, value) in meta.free.iter().take(BlobMeta::MAX_NAMES) {
        let name = HeaderName::try_from(format!("{X_MEMSYNC_META}{name}"));
        // Both came in as headers once.
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn what_is_told_is_told_back() {
        let sent = headers(&[
            ("x-memsync-device", "laptop"),
            ("x-memsync-expires", "2027-01-31T13:00:00+01:00"),
            ("x-memsync-meta-topic", "ai"),
            ("x-memsync-meta-", "no name"),
            ("content-type", "text/markdown"),
        ]);
        let meta = told(&sent, true).ok().unwrap();
        assert_eq!(meta.content_type.as_deref(), Some("text/markdown"));
        assert_eq!(meta.free, BTreeMap::from([("topic".to_owned(), "ai".to_owned())]));
        let mut back = HeaderMap::new();
        tell(&mut back, &meta);
        assert_eq!(back.len(), 3);
        assert_eq!(back["x-memsync-expires"], "2027-01-31T12:00:00.000Z");
        assert_eq!(
            (&back["x-memsync-device"], &back["x-memsync-meta-topic"]),
            (&sent["x-memsync-device"], &sent["x-memsync-meta-topic"])
        );

        let never = told(&headers(&[("x-memsync-expires", "never")]), false).ok().unwrap();
        assert!(never.expires.is_some());
        let mut back = HeaderMap::new();
        tell(&mut back, &never);
        assert!(back.is_empty());
    }

    #[test]
    fn too_much_and_nonsense_are_refused() {
        let long = "x".repeat(BlobMeta::MAX_FREE_BYTES);
        for bad in [
            ("x-memsync-expires", "soon"),
            ("x-memsync-expires", "1999"),
            ("x-memsync-expires", "1969-01-01T00:00:00Z"),
            ("x-memsync-meta-a", &long),
        ] {
            assert!(matches!(told(&headers(&[bad]), true), Err(Refusal::BadHeader(_))), "{}", bad.0);
        }
        let due = headers(&[("x-memsync-expires", "2027-01-31T12:00:00Z")]);
        assert!(matches!(told(&due, false), Err(Refusal::BadHeader(_))), "a store that forgets it must not take it");
        assert!(matches!(asked(Some("version=x")), Err(Refusal::BadHeader(_))));
        assert!(matches!(asked(Some("version=-1")), Err(Refusal::BadHeader(_))));
        assert!(matches!(asked(Some("a=b&version=7")), Ok(Some(7))));
        assert!(matches!((asked(None), asked(Some("x=1"))), (Ok(None), Ok(None))));
    }
}
