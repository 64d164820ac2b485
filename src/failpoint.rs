//! Named points at which a debug build can die or stop on request. Tests use them to kill the real binary at every step of an
//! action, or to run another process between two steps. A release build has none.

#[cfg(debug_assertions)]
mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    static ARMED: OnceLock<(String, AtomicU32)> = OnceLock::new();
    static STOPS: OnceLock<(PathBuf, Vec<String>)> = OnceLock::new();

    /// Arms the point `name` in `name` or `name:N`: the process dies at the N-th pass, from 1. Ignores later calls.
    pub fn arm(spec: &str) {
        let (name, count) = match spec.rsplit_once(':') {
            Some((name, n)) => (name, n.parse().unwrap_or(1)),
            None => (spec, 1),
        };
        ARMED.get_or_init(|| (name.to_owned(), AtomicU32::new(count)));
    }

    /// Arms the stops in `DIR:name,name`. A thread that passes one creates the file `DIR/name` and waits until it is removed.
    /// Ignores later calls.
    pub fn arm_stops(spec: &str) {
        if let Some((dir, names)) = spec.rsplit_once(':') {
            STOPS.get_or_init(|| (dir.into(), names.split(',').map(str::to_owned).collect()));
        }
    }

    fn stop_at(name: &str) {
        let Some((dir, _)) = STOPS.get().filter(|(_, names)| names.iter().any(|stop| stop == name)) else { return };
        let file = dir.join(name);
        // If the file cannot be created, the loop below ends at once.
        let _ = std::fs::write(&file, "");
        while file.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops or aborts here, if this point is armed. The abort acts like `kill -9`.
    pub fn pass(name: &str) {
        stop_at(name);
        if let Some((armed, left)) = ARMED.get()
            && armed == name
            && left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            #[expect(clippy::disallowed_methods, reason = "a crash is the purpose of an armed point")]
            std::process::abort();
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::{arm, arm_stops, pass};

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub fn arm(_spec: &str) {}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub fn arm_stops(_names: &str) {}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pass(_name: &str) {}
