//! Servers, machines and proxies that several tests use.

pub(crate) mod address;
pub(crate) mod faulty;
pub(crate) mod foreign_proxy;
pub(crate) mod frames;
pub(crate) mod killed;
pub(crate) mod left_out;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod packed;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod relay;
pub(crate) mod s3;
pub(crate) mod serving;
pub(crate) mod terminal;
pub(crate) mod world;
