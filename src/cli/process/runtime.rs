//! The tokio runtimes of commands, and the limit of open files.

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

use super::allocator;

/// One thread, for a command that asks the agent and exits.
pub(crate) fn client_runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("the runtime cannot start")
}

/// Two workers, for a command that stays. The store writes on a thread of its own. Free memory returns to the system
/// while the process idles.
pub(crate) fn server_runtime() -> anyhow::Result<Runtime> {
    let runtime =
        Builder::new_multi_thread().worker_threads(2).enable_all().build().context("the runtime cannot start")?;
    runtime.spawn(allocator::return_free_memory());
    Ok(runtime)
}

/// Raises the soft limit of open files to the hard one. Each connection takes one, and the usual soft limit is 1024.
pub(crate) fn raise_open_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("the limit of open files stays at {:?}: {e}", limit.current);
    }
}
