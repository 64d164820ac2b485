//! What people do with memsync, told with real processes: a proxy, agents, and the commands.

#[path = "../common/packed.rs"]
mod packed;
#[path = "../common/s3.rs"]
mod s3;
#[path = "../common/world.rs"]
mod world;

mod basics;
mod bucket;
mod commands;
mod conflicts;
mod editors;
mod encoding;
mod filesystem;
mod gates;
mod namespaces;
mod opened;
mod rules;
mod trouble;
