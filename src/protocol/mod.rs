//! The vocabulary that agent and proxy share: wire types, headers, capabilities, names and codings.

pub mod batch;
pub mod capability;
pub mod encoding;
mod headers;
mod history;
mod index;
mod namespace;
pub mod packing;
mod pin;
mod precondition;
mod transport;
mod url;
mod wire;

pub use headers::*;
pub use history::{BadHistoryPoint, HistoryPoint};
pub use index::{IndexCursor, IndexEntry};
pub use namespace::{INDEX_NAME, Namespace, NamespaceError};
pub use pin::{BadPin, Pin};
pub use precondition::Precondition;
pub use transport::{install_provider, is_loopback};
pub use url::{decode_name, encode_path};
pub use wire::{ErrorContext, Health, WireEntry, WireError, WireIndex, WireVersion, WireVersions};
