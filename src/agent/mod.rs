//! The agent: triggers wake cycles; a cycle brings one folder and one proxy to agree.
//!
//! [`engine`] holds what is remembered between cycles, [`cycle`] is the cycle, [`apply`] what one action says to the
//! proxy; many small requests go in one (`batch`). They run over the traits `Disk`, `Remote` and [`World`], so that the simulator runs the same code.

pub mod apply;
mod approval;
mod batch;
mod batch_pacing;
pub mod change;
mod commit;
mod conditions;
pub mod control;
pub mod cycle;
mod emptied;
pub mod engine;
mod findings;
mod heal;
mod last_known;
mod leftovers;
pub mod once;
mod planning;
pub mod problems;
mod push;
pub mod quarantine;
mod retention;
pub mod root;
pub mod rules;
pub mod run;
mod scope;
pub mod sent;
pub mod session;
mod shared;
pub mod standstill;
pub mod status;
mod transit;
mod turns;
mod worker;
pub mod world;

pub use batch::BatchOptions;
pub use cycle::Report;
pub use engine::{CycleError, Engine, EngineOptions, Parts};
pub use run::{Agent, AgentOptions, StartError};
pub use session::FolderSetup;
pub use shared::halt_status;
pub use world::{RealWorld, World};
