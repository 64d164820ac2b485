//! Named points at which a debug build can be told to die or to stop, for the tests that kill the real binary at every
//! step of an action, or let another one run between two steps. A release build has none.

#[cfg(debug_assertions)]
mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    static ARMED: OnceLock<(String, AtomicU32)> = OnceLock::new();
    static STOPS: OnceLock<(PathBuf, Vec<String>)> = OnceLock::new();

    /// Arms one point: `name` or `name:N` to die at the N-th pass (from 1). Later calls are ignored.
    pub fn arm(spec: &str) {
        let (name, count) = match spec.rsplit_once(':') {
            Some((name, n)) => (name, n.parse().unwrap_or(1)),
            None => (spec, 1),
        };
        ARMED.get_or_init(|| (name.to_owned(), AtomicU32::new(count)));
    }

    /// Arms stops: `DIR:name,name`. A thread that passes one of them makes the file `DIR/name`, and goes on when the file
    /// is removed. Later calls are ignored.
    pub fn arm_stops(spec: &str) {
        if let Some((dir, names)) = spec.rsplit_once(':') {
            STOPS.get_or_init(|| (dir.into(), names.split(',').map(str::to_owned).collect()));
        }
    }

    fn stop_at(name: &str) {
        let Some((dir, _)) = STOPS.get().filter(|(_, names)| names.iter().any(|stop| stop == name)) else { return };
        let file = dir.join(name);
        // Without the file there is nothing to wait for.
        let _ = std::fs::write(&file, "");
        while file.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Aborts the process, as `kill -9` would, when this point is armed and its turn has come.
    pub fn pass(name: &str) {
        stop_at(name);
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
