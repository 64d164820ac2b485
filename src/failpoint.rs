//! Named points at which a debug build can be told to die, for the tests that kill the real binary at every
//! step of an action. A release build has none.

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static ARMED: OnceLock<(String, AtomicU32)> = OnceLock::new();

    /// Arms one point: `name` or `name:N` to die at the N-th pass (from 1). Later calls are ignored.
    pub fn arm(spec: &str) {
        let (name, count) = match spec.rsplit_once(':') {
            Some((name, n)) => (name, n.parse().unwrap_or(1)),
            None => (spec, 1),
        };
        ARMED.get_or_init(|| (name.to_owned(), AtomicU32::new(count)));
    }

    /// Aborts the process, as `kill -9` would, when this point is armed and its turn has come.
    pub fn pass(name: &str) {
        if let Some((armed, left)) = ARMED.get()
            && armed == name
            && left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            #[expect(clippy::disallowed_methods, reason = "to die like this is the point")]
            std::process::abort();
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::{arm, pass};

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub fn arm(_spec: &str) {}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pass(_name: &str) {}
