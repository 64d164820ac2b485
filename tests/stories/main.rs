//! What people do with memsync, told with real processes: a proxy, agents, and the commands.

#[path = "../common/world.rs"]
mod world;

mod basics;
mod commands;
mod conflicts;
mod editors;
mod filesystem;
mod gates;
mod namespaces;
mod rules;
mod trouble;
