//! What people do with memsync, told with real processes: a proxy, agents, and the commands.

#[path = "../common/packed.rs"]
mod packed;
#[path = "../common/world.rs"]
mod world;

mod basics;
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
