//! [`FakeServer`] and [`FakeRemote`]: a Memory Proxy in memory, with the weaknesses of real proxies.
//!
//! Tests run several engines on one thread with a seed: the same calls give the same run. Blobs are strongly consistent
//! with compare-and-swap. [`FakeConfig`] sets the faults of the index. There is no HTTP. If the server compares
//! versions, it behaves like a namespaced proxy. Otherwise all versions are 0.

mod client;
mod server;
mod store;
mod types;

pub use client::FakeRemote;
pub use server::FakeServer;
pub use store::FakeBackup;
pub use types::{FakeCall, FakeConfig, FakeFaults, FakeRequest, LostPart, TombstoneKind};
