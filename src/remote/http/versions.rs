//! The versions that the proxy keeps of a path (capability `versions`), and the index with its times.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use jiff::Timestamp;

use super::client::HttpRemote;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{WireIndex, WireVersion, WireVersions, capability, decode_name};
use crate::remote::{GetReply, RemoteError, RemoteVersion};

/// Largest list taken, bytes.
const MAX_LIST: u64 = 4 * 1024 * 1024;
/// Largest index taken, bytes.
const MAX_INDEX: u64 = 64 * 1024 * 1024;

/// A path in the index, with the time of its last write or deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatedEntry {
    pub md5: Md5,
    pub is_deleted: bool,
    /// `None` if this proxy does not say.
    pub at: Option<Timestamp>,
}

impl HttpRemote {
    /// The index with its times. Leaves out names that cannot be synced.
    pub async fn dated_index(&self) -> Result<BTreeMap<RelPath, DatedEntry>, RemoteError> {
        let url = self.link.url(&self.link.namespace.below("/sync"));
        let request = self.request_accepting_encoding(Method::GET, &url).await?;
        let answer = self.send(&url, request, None, MAX_INDEX).await?;
        if answer.status() != StatusCode::OK {
            return Err(answer.refusal().await);
        }
        let text = answer.read(MAX_INDEX).await?;
        let bad = |why: &str| self.link.protocol(&url, &format!("its index is not what was expected: {why}"));
        let index: WireIndex = serde_json::from_slice(&text).map_err(|e| bad(&e.to_string()))?;
        let mut entries = BTreeMap::new();
        for (name, entry) in index.files {
            if let Some(path) = RelPath::parse(&name).ok().filter(RelPath::is_nfc) {
                let at = entry.last_modified.parse().ok();
                entries.insert(path, DatedEntry { md5: entry.md5, is_deleted: entry.is_deleted, at });
            }
        }
        Ok(entries)
    }

    /// As [`Remote::versions`](crate::remote::Remote::versions).
    pub(super) async fn list_versions(&self, path: &RelPath) -> Result<Option<Vec<RemoteVersion>>, RemoteError> {
        if !self.supports(capability::VERSIONS).await? {
            return Ok(None);
        }
        let url = self.link.url(&self.link.namespace.versions(path));
        let request = self.request_accepting_encoding(Method::GET, &url).await?;
        let answer = self.send(&url, request, None, MAX_LIST).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                answer.finish().await;
                return Ok(Some(Vec::new()));
            }
            _ => return Err(answer.refusal().await),
        }
        let text = answer.read(MAX_LIST).await?;
        let bad =
            |why: &str| self.link.protocol(&url, &format!("its list of versions is not what was expected: {why}"));
        let list: WireVersions = serde_json::from_slice(&text).map_err(|e| bad(&e.to_string()))?;
        let versions = list.versions.into_iter().map(parse_version).collect::<Result<_, _>>();
        versions.map(Some).map_err(|e| bad(&e.to_string()))
    }

    /// As [`Remote::get_version`](crate::remote::Remote::get_version).
    pub(super) async fn read_version(&self, path: &RelPath, version: u64) -> Result<GetReply, RemoteError> {
        let url = self.blob_url(path).await?;
        self.read_content(format!("{url}?version={version}")).await
    }
}

fn parse_version(wire: WireVersion) -> Result<RemoteVersion, jiff::Error> {
    Ok(RemoteVersion {
        version: wire.version,
        md5: wire.md5,
        size: wire.size,
        is_deleted: wire.is_deleted,
        at: wire.last_modified.parse()?,
        device: wire.device.as_deref().and_then(decode_name),
    })
}
