//! The tokio runtimes of commands, and the C library's allocator, set up so that an idle agent returns the memory that a
//! first sync took.
//!
//! By default glibc keeps up to eight heaps a core and returns little of them. With these settings an idle agent with
//! 10,000 files takes about a quarter less memory, at no cost in CPU time. Other systems keep their defaults.

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

/// One thread, for a command that asks the agent and exits.
pub(crate) fn client_runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("the runtime cannot start")
}

/// Two workers, for a command that stays. The store writes on a thread of its own. Free memory returns to the system
/// while the process idles.
pub(crate) fn server_runtime() -> anyhow::Result<Runtime> {
    let runtime =
        Builder::new_multi_thread().worker_threads(2).enable_all().build().context("the runtime cannot start")?;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    runtime.spawn(return_free_memory());
    Ok(runtime)
}

/// Limits the heaps of the allocator. Call it before the first thread starts.
pub fn configure_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Few threads allocate at the same time.
        const MAX_HEAPS: i32 = 2;
        /// Blocks from this size are mapped, and unmapped when freed. Free space of this size at the end of a heap
        /// returns as well. This is glibc's first value, which it would raise by itself.
        const THRESHOLD_BYTES: i32 = 128 * 1024;
        for (option, value) in [
            (libc::M_ARENA_MAX, MAX_HEAPS),
            (libc::M_MMAP_THRESHOLD, THRESHOLD_BYTES),
            (libc::M_TRIM_THRESHOLD, THRESHOLD_BYTES),
        ] {
            // SAFETY: mallopt(3) takes any two numbers, and no other thread runs yet. If it refuses them, the default
            // stays.
            unsafe { libc::mallopt(option, value) };
        }
    }
}

/// Returns free memory to the system each time the process has worked and is idle again. Runs forever.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
async fn return_free_memory() {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    const CHECK_INTERVAL: Duration = Duration::from_secs(5);
    /// A process that used less CPU time in one interval is idle.
    const IDLE_CPU: Duration = Duration::from_millis(20);
    /// CPU time since the last return that makes another one worth its cost.
    const WORKED_CPU: Duration = Duration::from_millis(100);
    let used = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
    let (mut last_check, mut last_return) = (used(), Duration::ZERO);
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let now = used();
        if now.saturating_sub(last_check) < IDLE_CPU && now.saturating_sub(last_return) > WORKED_CPU {
            // SAFETY: malloc_trim(3) may be called at any time, from any thread.
            unsafe { libc::malloc_trim(0) };
            last_return = used();
        }
        last_check = now;
    }
}
