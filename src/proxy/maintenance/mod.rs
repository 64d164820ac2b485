//! Work that no request asks for: expiry and retention, and noticing the writes of other proxies on the same store.

pub(super) mod expiry;
pub(super) mod foreign_changes;
