//! How the C library's allocator is set up, so that an agent that idles gives back what a first sync took.
//!
//! By default glibc keeps a heap for every thread that ever allocated, up to eight a core, and returns little of them.
//! With 10,000 files an idle agent has about a quarter less, at no cost in CPU time. Elsewhere the system's defaults stay.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::time::Duration;

/// Sets the allocator up. Before the first thread is started.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn set_up() {
    /// Enough for the few threads that allocate at one time.
    const HEAPS: i32 = 2;
    /// Bytes. Larger blocks are the system's, and go back to it at once; as much free space at a heap's end does too.
    /// Both are glibc's first values, which it would raise by itself.
    const LARGE: i32 = 128 * 1024;
    for (option, value) in
        [(libc::M_ARENA_MAX, HEAPS), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: mallopt(3) takes any two numbers, and no other thread runs yet. Where it refuses them the default
        // stays, which serves as well.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Gives free memory in the middle of the heaps back whenever the process has worked and then rests. Runs for ever.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub async fn give_back() {
    use rustix::time::{ClockId, clock_gettime};

    /// How often to look.
    const LOOK: Duration = Duration::from_secs(5);
    /// CPU time between two looks with less of which a process rests.
    const RESTS: Duration = Duration::from_millis(20);
    /// CPU time since the last time that makes it worth while.
    const WORKED: Duration = Duration::from_millis(100);
    let used = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
    let (mut last, mut given) = (used(), Duration::ZERO);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = used();
        if now.saturating_sub(last) < RESTS && now.saturating_sub(given) > WORKED {
            // SAFETY: malloc_trim(3) may be called at any time, from any thread.
            unsafe { libc::malloc_trim(0) };
            given = used();
        }
        last = now;
    }
}

/// The system's allocator looks after itself.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub async fn give_back() {}

/// Nothing is to be set up.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn set_up() {}
