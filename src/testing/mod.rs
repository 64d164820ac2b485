//! Test doubles: a simulated disk, a fake proxy and a store in memory.
//!
//! They are built for this crate's own tests, and with the feature `testing`, which the crate's dev-dependency on
//! itself turns on. The product does not contain them.

mod fake_remote;
mod mem_disk;
mod memory_store;
mod seed;
mod sim_disk;

pub use fake_remote::{
    FakeBackup, FakeCall, FakeConfig, FakeFaults, FakeRemote, FakeRequest, FakeServer, LostPart, TombstoneKind,
};
pub use mem_disk::{DiskFault, MemDisk, MemFile};
pub use memory_store::MemoryStore;
pub use seed::seed;
pub use sim_disk::{DiskStep, SimDisk, SimFile, StepFate, StepHook, StepKind};
