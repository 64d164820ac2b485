//! [`Caller`]: an authenticated client, and its rights.

use super::keys::{AccessKind, KeyScope, MatchedKey, NamespacePattern};
use crate::store::BlobMeta;

/// The access that a request needs, by its method or, inside a batch, by its `op`. Any other name counts as a write. The
/// batch itself only needs to be read: each `op` in it is checked.
pub(crate) fn required_access(operation: &str) -> AccessKind {
    match operation {
        "GET" | "HEAD" | "POST" | "get" => AccessKind::Read,
        _ => AccessKind::Write,
    }
}

/// An authenticated client.
pub(crate) struct Caller {
    /// For limits and the log: `token`, `key <id>` or `user <id>`.
    pub id: String,
    pub user: Option<String>,
    /// The device of the key. It overrides the device that a request names.
    pub device: Option<String>,
    pub scope: KeyScope,
    pub credential: Credential,
}

/// The credential that a caller showed.
pub(crate) enum Credential {
    /// The proxy's own token. Several devices may share it.
    ProxyToken,
    Key(Box<MatchedKey>),
    /// A token that the external verifier accepted, with the user's quota in bytes.
    Verified(Option<u64>),
}

/// The scope of a key does not cover a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessDenied {
    #[error("this key does not open the namespace {0:?}")]
    Namespace(String),
    #[error("this key may read and not write")]
    ReadOnly,
}

impl Caller {
    pub(crate) fn require(&self, access: AccessKind, ns: &str) -> Result<(), AccessDenied> {
        let denied = if !self.scope.covers(ns) {
            AccessDenied::Namespace(ns.to_owned())
        } else if !self.scope.allows(access) {
            AccessDenied::ReadOnly
        } else {
            return Ok(());
        };
        tracing::warn!(target: "memsync::audit", caller = %self.id, namespace = ns, "refused: {denied}");
        Err(denied)
    }

    /// False for the proxy's own token: it opens everything, and all its holders count as one caller.
    pub(crate) fn is_limited(&self) -> bool {
        !matches!(self.credential, Credential::ProxyToken)
    }

    /// `meta` with the key and the device of this caller.
    pub(crate) fn sign(&self, meta: BlobMeta) -> BlobMeta {
        let key = match &self.credential {
            Credential::Key(found) => Some(found.key.name.clone()),
            Credential::ProxyToken | Credential::Verified(_) => None,
        };
        BlobMeta { device: self.device.clone().or(meta.device), key, ..meta }
    }

    /// The user, its quota in bytes, and the namespaces that count towards it. `None`: no quota.
    pub(crate) fn quota(&self) -> Option<(&str, u64, Vec<NamespacePattern>)> {
        match &self.credential {
            Credential::ProxyToken => None,
            Credential::Key(found) => {
                let user = self.user.as_deref()?;
                let (limit, patterns) = found.keys.quota(user)?;
                Some((user, limit, patterns))
            }
            // The id has a prefix, so it differs from the name of every user in the store's keys.
            Credential::Verified(limit) => limit.map(|limit| (self.id.as_str(), limit, self.scope.namespaces.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_operation_needs_write_access() {
        for operation in ["GET", "HEAD", "POST", "get"] {
            assert_eq!(required_access(operation), AccessKind::Read, "{operation}");
        }
        for operation in ["PUT", "DELETE", "PATCH", "put", "delete", "Get", "move", ""] {
            assert_eq!(required_access(operation), AccessKind::Write, "{operation}");
        }
    }
}
