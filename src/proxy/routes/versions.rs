//! `GET /versions/{path}`: the stored versions of a path, the newest first.

use crate::path::RelPath;
use crate::protocol::{WireVersion, WireVersions};
use crate::proxy::context::RequestContext;
use crate::proxy::error::ApiError;
use crate::proxy::response::{HttpResponse, rfc3339, with_reserved_body};
use crate::proxy::routes::meta::expiry_text;
use crate::store::{BlobVersion, Store, StoreError};

/// Memory reserved for a list of versions, bytes.
const LIST_MEMORY: u64 = 128 * 1024;

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
    let BlobVersion { version, md5, size, is_deleted, meta } = version;
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
