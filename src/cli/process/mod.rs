//! The process of a command: output, logs, signals, secrets typed at a terminal, runtimes.

pub(crate) mod logging;
pub(crate) mod output;
pub(crate) mod runtime;
pub(crate) mod secret;
pub(crate) mod server;
