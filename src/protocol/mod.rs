//! The vocabulary that agent and proxy share: wire types, headers, capabilities, names and codings.

pub mod batch;
pub mod capability;
pub mod encoding;
mod headers;
mod index;
mod namespace;
pub mod packing;
mod transport;
mod wire;

pub use headers::*;
pub use index::{BadHistoryPoint, HistoryPoint, IndexCursor, IndexEntry};
pub use namespace::{INDEX_NAME, Namespace, NamespaceError, decode_name, encode_path};
pub use transport::{BadPin, Pin, install_provider, is_loopback};
pub use wire::{ErrorContext, Health, WireEntry, WireError, WireIndex, WireVersion, WireVersions, rfc3339, timestamp};
