//! The versions of a path: `GET /versions/{path}`, the version that a query asks for, and the metadata of a version in
//! headers, both ways.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use jiff::Timestamp;

use crate::path::RelPath;
use crate::protocol::{NEVER, WireVersion, WireVersions, X_MEMSYNC_DEVICE, X_MEMSYNC_EXPIRES, X_MEMSYNC_META, rfc3339};
use crate::proxy::context::RequestContext;
use crate::proxy::error::ApiError;
use crate::proxy::limits::memory::LIST_MEMORY;
use crate::proxy::response::{HttpResponse, set_header, with_reserved_body};
use crate::proxy::routes::names::query_value;
use crate::store::{BlobMeta, BlobVersion, IndexEntry, Store, StoreError, stored_size};

/// Longest `Content-Type` stored, in bytes. No registered type is longer.
const MAX_TYPE_BYTES: usize = 255;
/// Longest device name stored, in bytes of the header.
const MAX_DEVICE_BYTES: usize = 255;
/// The same in the headers of a bucket.
const MAX_DEVICE_STORED_BYTES: usize = 512;

/// The stored versions of a path, the newest first.
pub(super) async fn get<S: Store>(ctx: &RequestContext<'_, S>, path: &RelPath) -> Result<HttpResponse, ApiError> {
    let memory = ctx.reserve(LIST_MEMORY).await?;
    let versions = ctx.store().versions(ctx.ns(), path).await?;
    if versions.is_empty() {
        return Err(ApiError::NotFound);
    }
    let versions = versions.into_iter().map(wire_version).collect();
    let list = serde_json::to_vec(&WireVersions { path: path.as_str().to_owned(), versions });
    let list = list.map_err(|e| StoreError::Database(e.to_string()))?;
    Ok(with_reserved_body("application/json", list.into(), memory))
}

fn wire_version(version: BlobVersion) -> WireVersion {
    let BlobVersion { entry: IndexEntry { md5, size, is_deleted, version, .. }, meta } = version;
    WireVersion {
        version,
        md5,
        size,
        is_deleted,
        last_modified: rfc3339(version),
        expires: expiry_text(&meta),
        content_type: meta.content_type,
        device: meta.device,
        key: meta.key,
        meta: meta.free,
    }
}

/// The version in a query such as `version=7`.
pub(crate) fn query_version(query: &str) -> Result<Option<u64>, ApiError> {
    let version = query_value(query, "version").map(str::parse).transpose();
    version.map_err(|_| ApiError::InvalidHeader("the query's version is not a number"))
}

/// The metadata that a write sends, with the key and the device of its caller.
pub(crate) fn write_meta<S: Store>(ctx: &RequestContext<'_, S>, headers: &HeaderMap) -> Result<BlobMeta, ApiError> {
    Ok(ctx.caller.sign(parse_meta(headers, ctx.store().keeps_versions())?))
}

/// `keeps_versions`: the store has versions and expiry.
fn parse_meta(headers: &HeaderMap, keeps_versions: bool) -> Result<BlobMeta, ApiError> {
    let text = |name: HeaderName, max_bytes| {
        let value = headers.get(name)?.to_str().ok()?.trim();
        (!value.is_empty() && value.len() <= max_bytes).then(|| value.to_owned())
    };
    let expires = headers.get(X_MEMSYNC_EXPIRES).map(parse_expiry).transpose()?;
    if !keeps_versions && expires.is_some_and(|at| at != BlobMeta::NO_EXPIRY) {
        return Err(ApiError::InvalidHeader(
            "X-Memsync-Expires: this store has no expiry (no capability `versions`); leave it out",
        ));
    }
    let mut free = BTreeMap::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(X_MEMSYNC_META).filter(|name| !name.is_empty()) else { continue };
        let value = value.to_str().map_err(|_| ApiError::InvalidHeader("X-Memsync-Meta-* takes visible ASCII"))?;
        free.insert(name.to_owned(), value.to_owned());
    }
    let device = text(HeaderName::from_static(X_MEMSYNC_DEVICE), MAX_DEVICE_BYTES);
    let meta = BlobMeta {
        content_type: text(CONTENT_TYPE, MAX_TYPE_BYTES),
        device: device.filter(|device| stored_size(device) <= MAX_DEVICE_STORED_BYTES),
        key: None,
        expires,
        free,
    };
    if meta.fits() {
        Ok(meta)
    } else {
        Err(ApiError::InvalidHeader("X-Memsync-Meta-*: more than 32 names, or more than 1024 bytes as they are stored"))
    }
}

/// Milliseconds since the epoch, or [`BlobMeta::NO_EXPIRY`].
fn parse_expiry(value: &HeaderValue) -> Result<u64, ApiError> {
    let expiry = value.to_str().ok().map(str::trim).and_then(|text| match text {
        NEVER => Some(BlobMeta::NO_EXPIRY),
        text => text.parse::<Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok()),
    });
    expiry
        .ok_or(ApiError::InvalidHeader("X-Memsync-Expires is neither `never` nor a time such as 2027-01-31T12:00:00Z"))
}

/// RFC 3339; `None` for a version that never expires.
fn expiry_text(meta: &BlobMeta) -> Option<String> {
    meta.expires.filter(|at| *at != BlobMeta::NO_EXPIRY).map(rfc3339)
}

/// Sets the headers with the metadata of a version.
pub(crate) fn set_meta_headers(headers: &mut HeaderMap, meta: &BlobMeta) {
    if let Some(device) = &meta.device {
        set_header(headers, X_MEMSYNC_DEVICE, device);
    }
    if let Some(expiry) = expiry_text(meta) {
        set_header(headers, X_MEMSYNC_EXPIRES, &expiry);
    }
    // A store may hold more names than clients accept headers, and those clients could not read the file.
    for (name, value) in meta.free.iter().take(BlobMeta::MAX_NAMES) {
        let name = HeaderName::try_from(format!("{X_MEMSYNC_META}{name}"));
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
    fn metadata_survives_both_directions() {
        let sent = headers(&[
            ("x-memsync-device", "laptop"),
            ("x-memsync-expires", "2027-01-31T13:00:00+01:00"),
            ("x-memsync-meta-topic", "ai"),
            ("x-memsync-meta-", "no name"),
            ("content-type", "text/markdown"),
        ]);
        let meta = parse_meta(&sent, true).ok().unwrap();
        assert_eq!(meta.content_type.as_deref(), Some("text/markdown"));
        assert_eq!(meta.free, BTreeMap::from([("topic".to_owned(), "ai".to_owned())]));
        let mut back = HeaderMap::new();
        set_meta_headers(&mut back, &meta);
        assert_eq!(back.len(), 3);
        assert_eq!(back["x-memsync-expires"], "2027-01-31T12:00:00.000Z");
        assert_eq!(
            (&back["x-memsync-device"], &back["x-memsync-meta-topic"]),
            (&sent["x-memsync-device"], &sent["x-memsync-meta-topic"])
        );

        let never = parse_meta(&headers(&[("x-memsync-expires", "never")]), false).ok().unwrap();
        assert!(never.expires.is_some());
        let mut back = HeaderMap::new();
        set_meta_headers(&mut back, &never);
        assert!(back.is_empty());
    }

    #[test]
    fn invalid_metadata_is_refused() {
        let long = "x".repeat(BlobMeta::MAX_FREE_BYTES);
        for bad in [
            ("x-memsync-expires", "soon"),
            ("x-memsync-expires", "1999"),
            ("x-memsync-expires", "1969-01-01T00:00:00Z"),
            ("x-memsync-meta-a", &long),
        ] {
            assert!(matches!(parse_meta(&headers(&[bad]), true), Err(ApiError::InvalidHeader(_))), "{}", bad.0);
        }
        let due = headers(&[("x-memsync-expires", "2027-01-31T12:00:00Z")]);
        assert!(
            matches!(parse_meta(&due, false), Err(ApiError::InvalidHeader(_))),
            "a store without expiry must refuse it"
        );
        assert!(matches!(query_version("version=x"), Err(ApiError::InvalidHeader(_))));
        assert!(matches!(query_version("version=-1"), Err(ApiError::InvalidHeader(_))));
        assert!(matches!(query_version("a=b&version=7"), Ok(Some(7))));
        assert!(matches!((query_version(""), query_version("x=1")), (Ok(None), Ok(None))));
    }
}
