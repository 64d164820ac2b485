//! Conversions between rows, objects and the store's types.

use std::collections::BTreeMap;

use super::super::{BlobMeta, BlobVersion, IndexEntry, IndexState};
use super::blobs::NewBlob;
use super::bucket::ObjectInfo;
use super::index_cache::BucketIndex;
use super::index_document::BlobRow;
use super::object_metadata::ObjectMetadata;
use super::spool::SpooledBody;

/// The cursor is 0, because a weak index has none.
pub(super) fn entry_of(row: &BlobRow) -> IndexEntry {
    let BlobRow { md5, size, is_deleted, version } = *row;
    IndexEntry { md5, size, is_deleted, version, cursor: 0 }
}

pub(super) fn new_blob(row: BlobRow, content: SpooledBody, meta: &BlobMeta) -> NewBlob {
    let named = [("device", meta.device.clone()), ("key", meta.key.clone())];
    let expires = meta.expires.map(|at| ("expires".to_owned(), at.to_string()));
    let mut ours: BTreeMap<String, String> =
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).chain(expires).collect();
    if !meta.free.is_empty()
        && let Ok(json) = serde_json::to_string(&meta.free)
    {
        // One value, because not every name can be the name of a header.
        ours.insert("meta".to_owned(), json);
    }
    NewBlob { row, content, content_type: meta.content_type.clone(), ours, expires: meta.expires, is_another: false }
}

pub(super) fn meta_of(metadata: &ObjectMetadata) -> BlobMeta {
    let ours = |name: &str| metadata.ours.get(name).cloned();
    BlobMeta {
        content_type: metadata.content_type.clone(),
        device: ours("device"),
        key: ours("key"),
        expires: metadata.expires(),
        free: ours("meta").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
    }
}

pub(super) fn state_of(index: &BucketIndex) -> IndexState {
    let modified = index.document.modified;
    IndexState { tag: index.tag().into(), mark: None, modified, history: index.document.history.point(modified) }
}

pub(super) fn version_of(row: &BlobRow, object: &ObjectInfo) -> BlobVersion {
    let BlobRow { md5, size, is_deleted, version } = *row;
    BlobVersion { version, md5, size, is_deleted, meta: meta_of(&object.metadata) }
}
