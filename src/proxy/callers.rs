//! [`Callers`]: how many connections each caller has open, so that one key cannot take all places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of all callers but the one with the proxy's own token, which opens everything anyway.
pub struct Callers {
    /// Of one caller, at once.
    most: usize,
    open: Mutex<HashMap<String, usize>>,
}

impl Callers {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Each change leaves it whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection of `caller`; `None`: it has as many as it may.
    pub fn enter(self: &Arc<Self>, caller: &str) -> Option<Place> {
        let mut open = self.lock();
        let has = open.get(caller).copied().unwrap_or(0);
        if has >= self.most {
            return None;
        }
        open.insert(caller.to_owned(), has + 1);
        Some(Place { of: self.clone(), caller: caller.to_owned() })
    }
}

/// One connection of a caller, as long as this lives.
pub struct Place {
    of: Arc<Callers>,
    pub caller: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.lock();
        if let Some(has) = open.get_mut(&self.caller) {
            *has -= 1;
            if *has == 0 {
                open.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_its_own_places() {
        let callers = Callers::new(2);
        let (one, two) = (callers.enter("a"), callers.enter("a"));
        assert!(one.is_some() && two.is_some() && callers.enter("a").is_none());
        let other = callers.enter("b");
        assert!(other.is_some());
        drop(one);
        assert!(callers.enter("a").is_some());
        drop((two, other));
        assert!(callers.lock().is_empty(), "nothing is left behind");
    }
}
