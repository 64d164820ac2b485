//! Stories: people use memsync, with real processes for proxy, agents and commands.

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
mod undo;
