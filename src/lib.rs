//! memsync keeps a folder of notes in sync with a Memory Proxy, and loses nothing that a user wrote.
//!
//! Data flows one way: a trigger wakes a cycle; the cycle scans the folder ([`local`]), fetches the index
//! ([`remote`]), asks a pure function what to do ([`sync`]), checks that the answer is plausible, applies it
//! action by action, and commits each outcome to the base ([`state`]).
//!
//! # The dependency rule
//!
//! Left never imports right; `tests/boundaries.rs` holds it up:
//!
//! `path, digest, clock` → `sync` → `protocol` → `disk` → `local | remote | state | store` → `agent | proxy` →
//! `config, dirs` → `cli` → `main`
//!
//! `sync` does no I/O. `agent` never sees `store` or `proxy`; `proxy` never sees `sync`, `local` or `state`:
//! they meet in `protocol`. Printing is `cli`'s, leaving the process is `main`'s, and nothing below `cli`
//! reads the environment.

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod digest;
pub mod dirs;
pub mod disk;
pub mod failpoint;
pub mod local;
pub mod path;
pub mod protocol;
pub mod proxy;
pub mod remote;
pub mod state;
pub mod store;
pub mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

/// What the tests in here share with those outside.
#[cfg(test)]
#[path = "../tests/common/seed.rs"]
mod seed;
