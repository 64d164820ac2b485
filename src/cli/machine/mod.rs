//! The files of memsync on this machine: state files, the proxy of `up`, the store, certificates.

pub(crate) mod agent_setup;
pub(crate) mod certificate;
pub(crate) mod own_proxy;
pub(crate) mod proxy_store;
pub(crate) mod state_files;
