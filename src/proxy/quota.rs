//! Quotas: how many bytes the namespaces of a user may hold together.
//!
//! What counts are the live files of every namespace that the user's keys may write to, whoever wrote them; earlier
//! versions are free. Writes under way are counted as well, so that many at once do not pass the limit together.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use super::Proxy;
use super::answer::Refusal;
use super::auth::Caller;
use super::keys::Pattern;
use crate::path::RelPath;
use crate::store::{Got, Store};

/// Bytes of the writes under way, by user.
#[derive(Default)]
pub struct Quotas(Mutex<HashMap<String, u64>>);

/// Room that a write holds while it is under way.
pub struct Reserved<'a> {
    of: &'a Quotas,
    user: String,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut under_way = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = under_way.get_mut(&self.user) {
            *bytes = bytes.saturating_sub(self.bytes);
            if *bytes == 0 {
                under_way.remove(&self.user);
            }
        }
    }
}

impl Quotas {
    /// Takes `bytes` more for `user`, if these, what others hold and what is `used` fit into `limit`.
    fn reserve(&self, user: &str, bytes: u64, used: u64, limit: u64) -> Option<Reserved<'_>> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = under_way.entry(user.to_owned()).or_default();
        let fits = used.saturating_add(*held).saturating_add(bytes) <= limit;
        if fits {
            *held += bytes;
        } else if *held == 0 {
            under_way.remove(user);
        }
        fits.then(|| Reserved { of: self, user: user.to_owned(), bytes })
    }
}

/// Lets a write of `size` bytes to `path` go on, if the caller's user has room for it. The answer is to be kept until
/// the write is done.
///
/// # Errors
/// [`Refusal::Quota`]; what the store says.
pub async fn admit<'a, S: Store>(
    proxy: &'a Proxy<S>,
    caller: &Caller,
    ns: &str,
    path: &RelPath,
    size: u64,
) -> Result<Option<Reserved<'a>>, Refusal> {
    let Some((user, limit, patterns)) = caller.quota() else { return Ok(None) };
    let replaced = match proxy.store.get(ns, path).await? {
        Got::Found(blob) => blob.entry.size,
        Got::Tombstone(_) | Got::Absent => 0,
    };
    // What does not grow is always taken: it cannot make it worse.
    let Some(growth) = size.checked_sub(replaced).filter(|growth| *growth > 0) else { return Ok(None) };
    let mut used = 0u64;
    for ns in counted(&patterns, proxy.store.namespaces().await?, ns) {
        used = used.saturating_add(proxy.store.usage(&ns).await?);
    }
    match proxy.quotas.reserve(user, growth, used, limit) {
        Some(reserved) => Ok(Some(reserved)),
        None => Err(Refusal::Quota { limit, used }),
    }
}

/// The namespaces that count: of those known, those named, and the one written to.
fn counted(patterns: &[Pattern], known: Vec<String>, written: &str) -> BTreeSet<String> {
    let named = patterns.iter().filter_map(|pattern| match pattern {
        Pattern::Exact(name) => Some(name.clone()),
        Pattern::All | Pattern::Below(_) => None,
    });
    let covered = known.into_iter().filter(|ns| patterns.iter().any(|pattern| pattern.covers(ns)));
    named.chain(covered).chain([written.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_at_once_share_the_room() {
        let quotas = Quotas::default();
        let first = quotas.reserve("ana", 40, 50, 100).expect("90 of 100");
        assert!(quotas.reserve("ana", 11, 50, 100).is_none());
        assert!(quotas.reserve("bo", 11, 50, 100).is_some(), "another user's");
        let second = quotas.reserve("ana", 10, 50, 100).expect("exactly the limit");
        drop(first);
        assert!(quotas.reserve("ana", 40, 50, 100).is_some());
        drop(second);
        assert!(quotas.0.lock().unwrap().is_empty(), "nothing is left behind");
        assert!(quotas.reserve("ana", u64::MAX, 1, 100).is_none());
        assert!(quotas.0.lock().unwrap().is_empty());
    }

    #[test]
    fn what_counts_is_known_named_or_written_to() {
        let patterns: Vec<Pattern> = ["ana", "team/*"].map(|text| text.parse().unwrap()).into();
        let known = ["", "team/a", "other"].map(str::to_owned).into();
        let counted: Vec<_> = counted(&patterns, known, "team/new").into_iter().collect();
        assert_eq!(counted, ["ana", "team/a", "team/new"]);
    }
}
