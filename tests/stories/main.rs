//! Stories: people use memsync, with real processes for proxy, agents and commands.

#[path = "../common/foreign.rs"]
mod foreign_proxy;
#[path = "../common/left_out.rs"]
mod left_out;
#[path = "../common/packed.rs"]
mod packed;
#[path = "../common/relay.rs"]
mod relay;
#[path = "../common/s3.rs"]
mod s3;
#[path = "../common/seed.rs"]
mod seed;
#[path = "../common/world.rs"]
mod world;

mod approved;
mod basics;
mod bucket;
mod commands;
mod conflicts;
mod crash;
mod editors;
mod encoding;
mod filesystem;
mod foreign;
mod gates;
mod history;
mod linked;
mod log;
mod mounts;
mod names;
mod namespaces;
mod nested;
mod opened;
mod paused;
mod push;
mod rules;
mod silent;
mod status;
mod trouble;
