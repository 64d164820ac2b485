//! [`Caller`]: an authenticated client, and its rights.

use hyper::Method;

use super::keys::{AccessKind, KeyScope, MatchedKey, NamespacePattern};
use crate::store::BlobMeta;

/// The access that a request needs. A POST is a batch: [`access_of_op`] decides about each `op` in it. A method that no
/// route has gets 405 from every key.
pub(crate) fn access_of_method(method: &Method) -> AccessKind {
    if matches!(*method, Method::PUT | Method::DELETE) { AccessKind::Write } else { AccessKind::Read }
}

/// The access that an `op` of a batch needs. An unknown one counts as a write.
pub(crate) fn access_of_op(op: &str) -> AccessKind {
    if op == "get" { AccessKind::Read } else { AccessKind::Write }
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
    fn writes_need_write_access() {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PATCH] {
            assert_eq!(access_of_method(&method), AccessKind::Read, "{method}");
        }
        for method in [Method::PUT, Method::DELETE] {
            assert_eq!(access_of_method(&method), AccessKind::Write, "{method}");
        }
        assert_eq!(access_of_op("get"), AccessKind::Read);
        for op in ["put", "delete", "Get", "GET", "move", ""] {
            assert_eq!(access_of_op(op), AccessKind::Write, "{op:?}");
        }
    }
}
