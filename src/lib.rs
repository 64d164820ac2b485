//! memsync keeps a folder of notes in sync with a Memory Proxy, and loses no text that a user wrote.
//!
//! Everything belongs to one of two flows. `docs/architecture.md` follows both step by step.
//!
//! ```text
//! agent:  trigger → folder task → cycle { observe → plan → apply → commit } → base
//! proxy:  socket  → listen → limits → auth → routes → store → answer
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`path`], [`digest`], [`clock`], [`failpoint`] | validated names; MD5; the reliability of the wall clock; kill points of debug builds |
//! | [`merge`] | pure: one note out of two versions and their base |
//! | [`sync`] | pure: vocabulary, decision table, plans, gates |
//! | [`protocol`] | everything that agent and proxy share |
//! | [`disk`] | the filesystem operations behind everything durable |
//! | [`local`] | the user's folder: scan, watcher, moves, history |
//! | [`state`] | the base on disk |
//! | [`remote`] | the proxy as the agent sees it |
//! | [`agent`] | cycles, and the task of each folder |
//! | [`store`] | blobs of a proxy, in SQLite or on S3 |
//! | [`proxy`] | HTTP over a store |
//! | [`config`], [`dirs`] | configuration, and the places of files |
//! | [`cli`] | the commands |
//! | `testing` | test doubles, behind the feature of that name; not in the product |
//!
//! A module uses only modules to its left. `tests/it/boundaries.rs` enforces this:
//!
//! `path, digest, clock, merge` → `sync` → `protocol` → `disk` → `local | remote | state | store` → `agent | proxy` →
//! `config, dirs` → `cli` → `main`
//!
//! `agent` never uses `store` or `proxy`. `proxy` never uses `sync`, `local` or `state`. They meet in `protocol`. Only `cli`
//! prints and reads the environment. Only `main` leaves the process.

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod digest;
pub mod dirs;
pub mod disk;
pub mod failpoint;
pub mod local;
pub mod merge;
pub mod path;
pub mod protocol;
pub mod proxy;
pub mod remote;
pub mod state;
pub mod store;
pub mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
