//! The agent: triggers wake cycles; a cycle brings one folder and one proxy to agree.
//!
//! A watcher event, a timer, an event of the proxy or a command reaches the `folder_task` of its folder. The `schedule`
//! decides when a cycle is due. [`cycle`] observes both sides, plans, applies and commits. The `reporter` writes the
//! outcome to the status. The `supervisor` starts and stops the tasks, and `running_agent` answers the control API.
//!
//! The cycle runs over the traits `Disk`, `Remote` and [`World`], so that the simulator runs the same code.

mod active_folder;
mod activity;
pub(crate) mod change;
mod conditions;
pub(crate) mod control;
pub mod cycle;
pub mod engine;
mod findings;
mod folder_task;
mod inbox;
pub(crate) mod merge_map;
mod open_folder;
mod pause;
pub mod problems;
mod proxy_events;
mod reporter;
mod retention;
pub(crate) mod root;
pub mod rules;
mod running_agent;
mod schedule;
pub(crate) mod setup;
pub(crate) mod standalone;
pub(crate) mod standstill;
pub(crate) mod status;
mod status_cell;
mod status_file;
mod supervisor;
pub mod world;

pub(crate) use conditions::describe_action;
pub use cycle::{BatchOptions, CycleError, CycleReport, Engine, EngineOptions, EnginePorts};
pub use merge_map::MergeMap;
pub(crate) use running_agent::Agent;
pub(crate) use setup::FolderSetup;
pub use setup::{ConflictPolicy, FolderConfig, HistoryConfig, StateConfig, SyncConfig};
pub use status::Pending;
pub(crate) use status::halt_status;
pub(crate) use status_file::offline_status;
pub(crate) use supervisor::AgentOptions;
pub use world::{RealWorld, World};
