//! The integration tests. `cargo test --test it NAME::` runs one group.

#![expect(clippy::cognitive_complexity, reason = "each assertion counts as a branch")]

mod common;

mod advice;
mod agent_commands;
mod boundaries;
mod cli;
mod commands;
mod config;
mod deploy;
mod engine;
mod keys;
mod kill_points;
mod merge;
mod prose;
mod proxy_crash;
mod proxy_memory;
mod readme;
mod remote_http;
mod s3_serve;
mod state_formats;
mod store_conformance;
mod store_upkeep;
mod stories;
mod table;
mod terminal;
mod units;
mod up;
mod watcher;
mod wire;
