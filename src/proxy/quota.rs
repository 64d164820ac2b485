//! [`Quotas`]: how many bytes the namespaces of a user may hold together.
//!
//! The live files of every namespace that the user's keys may write to count, and earlier versions are free. Writes of
//! this proxy in flight count as well, so concurrent writes cannot exceed the quota together. On a store that several
//! proxies share, the writes of the others count some seconds later.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::auth::caller::Caller;
use super::auth::keys::NamespacePattern;
use super::error::ApiError;
use crate::path::RelPath;
use crate::store::{Store, StoreError};

/// Namespaces whose usage is read at once.
const MAX_CONCURRENT_READS: usize = 8;
/// How often the usage is read when other writes of the user end meanwhile.
const MAX_READS: usize = 3;
/// How long a namespace that another proxy created may go uncounted.
const NAMESPACES_MAX_AGE: Duration = Duration::from_secs(60);

/// The quotas of one store.
pub(crate) struct Quotas<S> {
    store: Arc<S>,
    accounts: Arc<QuotaAccounts>,
    namespaces: Arc<QuotaNamespaces>,
}

impl<S: Store> Quotas<S> {
    pub(crate) fn new(store: Arc<S>) -> Self {
        Self { store, accounts: Arc::default(), namespaces: Arc::default() }
    }

    /// Admits a write of `size` bytes to `path`, as [`Quotas::admit_many`].
    pub(crate) async fn admit(
        &self,
        caller: &Caller,
        ns: &str,
        path: &RelPath,
        size: u64,
    ) -> Result<Option<QuotaPermit>, ApiError> {
        let mut permits = self.admit_many(caller, ns, &[(path.clone(), size)]).await?;
        permits.pop().unwrap_or(Ok(None))
    }

    /// Admits each of many writes, by path and size, that fits into the quota of the caller's user. The usage is read
    /// once for all. Keep a permit until its write is done; a write without one does not grow the usage.
    ///
    /// # Errors
    /// The error of the store; for a single write [`ApiError::QuotaExceeded`].
    pub(crate) async fn admit_many(
        &self,
        caller: &Caller,
        ns: &str,
        writes: &[(RelPath, u64)],
    ) -> Result<Vec<Result<Option<QuotaPermit>, ApiError>>, ApiError> {
        let Some((user, limit, patterns)) = caller.quota().filter(|_| !writes.is_empty()) else {
            return Ok(writes.iter().map(|_| Ok(None)).collect());
        };
        let paths: Vec<RelPath> = writes.iter().map(|(path, _)| path.clone()).collect();
        let mut reads = 1;
        loop {
            // Begins before the store is read, so it counts all writes that end during the read.
            let reading = self.accounts.begin_reading(user);
            let used = self.usage(&patterns, ns).await?;
            let held = self.store.held_bytes(ns, &paths).await?;
            let mut is_unclear = false;
            let permits = writes.iter().zip(held).map(|((_, size), held)| {
                // A write that does not grow the usage is always admitted.
                let Some(growth) = size.checked_sub(held).filter(|growth| *growth > 0) else { return Ok(None) };
                match reading.reserve(growth, used, limit) {
                    Reservation::Granted(permit) => Ok(Some(permit)),
                    refused => {
                        is_unclear |= matches!(refused, Reservation::Unclear);
                        Err(ApiError::QuotaExceeded { limit, used })
                    }
                }
            });
            let permits: Vec<_> = permits.collect();
            if !is_unclear || reads == MAX_READS {
                return Ok(permits);
            }
            reads += 1;
        }
    }

    /// Runs a write to `ns` to its end, even if the client hangs up. `holds`, such as permits, is dropped only then.
    /// If the write `happened`, quotas count `ns` from then on.
    pub(crate) async fn run_write<T: Send + 'static, H: Send + 'static>(
        &self,
        ns: &str,
        write: impl Future<Output = T> + Send + 'static,
        holds: H,
        happened: fn(&T) -> bool,
    ) -> Result<(T, H), StoreError> {
        let (namespaces, ns) = (self.namespaces.clone(), ns.to_owned());
        let write = tokio::spawn(async move {
            let outcome = write.await;
            if happened(&outcome) {
                namespaces.add_written(&ns);
            }
            (outcome, holds)
        });
        write.await.map_err(|_| StoreError::Closed)
    }

    /// The bytes that count towards a quota for `patterns`.
    async fn usage(&self, patterns: &[NamespacePattern], written: &str) -> Result<u64, StoreError> {
        let all = counted_namespaces(patterns, self.known_namespaces(patterns).await?, written);
        let usages = all.into_iter().map(|ns| async move { self.store.usage(&ns).await });
        let usages = stream::iter(usages.collect::<Vec<_>>()).buffer_unordered(MAX_CONCURRENT_READS);
        usages.try_fold(0u64, |sum, usage| async move { Ok(sum.saturating_add(usage)) }).await
    }

    /// The namespaces of the store. Empty if `patterns` name all they cover.
    async fn known_namespaces(&self, patterns: &[NamespacePattern]) -> Result<BTreeSet<String>, StoreError> {
        if patterns.iter().all(|pattern| matches!(pattern, NamespacePattern::Exact(_))) {
            return Ok(BTreeSet::new());
        }
        if S::STRONG {
            return Ok(self.store.namespaces().await?.into_iter().collect());
        }
        // Such a store must list all its objects for it. So it is listed now and then, and only the first request waits.
        let (cache, store) = (self.namespaces.clone(), self.store.clone());
        if cache.known.lock().listed.is_none() {
            let _first = cache.listing.lock().await;
            if cache.known.lock().listed.is_none() {
                cache.list(store.as_ref()).await?;
            }
        } else if cache.take_due() {
            let cache = cache.clone();
            tokio::spawn(async move {
                let _one_at_a_time = cache.listing.lock().await;
                if let Err(e) = cache.list(store.as_ref()).await {
                    tracing::warn!("the namespaces could not be listed, so quotas count those known before: {e}");
                }
            });
        }
        let known = cache.known.lock();
        Ok(known.listed.iter().flatten().chain(&known.written_since).cloned().collect())
    }
}

/// The namespaces that count: those known and covered, those named by a pattern, and the one that is written to.
fn counted_namespaces(patterns: &[NamespacePattern], known: BTreeSet<String>, written: &str) -> BTreeSet<String> {
    let named = patterns.iter().filter_map(|pattern| match pattern {
        NamespacePattern::Exact(name) => Some(name.clone()),
        NamespacePattern::All | NamespacePattern::Below(_) => None,
    });
    let covered = known.into_iter().filter(|ns| patterns.iter().any(|pattern| pattern.covers(ns)));
    named.chain(covered).chain([written.to_owned()]).collect()
}

/// The namespaces of a store that other processes also write to.
#[derive(Default)]
struct QuotaNamespaces {
    known: Mutex<KnownNamespaces>,
    /// Held during a listing.
    listing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct KnownNamespaces {
    /// When the last listing began, or became due.
    listed_at: Option<Instant>,
    listed: Option<BTreeSet<String>>,
    /// Namespaces with writes since the last listing.
    written_since: BTreeSet<String>,
}

impl QuotaNamespaces {
    /// True if the namespaces must be listed again, for the first caller that asks.
    fn take_due(&self) -> bool {
        let mut known = self.known.lock();
        let is_due = known.listed_at.is_none_or(|at| at.elapsed() >= NAMESPACES_MAX_AGE);
        if is_due {
            known.listed_at = Some(Instant::now());
        }
        is_due
    }

    async fn list(&self, store: &impl Store) -> Result<(), StoreError> {
        {
            let mut known = self.known.lock();
            known.listed_at = Some(Instant::now());
            // The listing that begins now will have the namespaces with earlier writes.
            let before = std::mem::take(&mut known.written_since);
            known.listed.iter_mut().for_each(|listed| listed.extend(before.iter().cloned()));
        }
        let listed = store.namespaces().await?;
        self.known.lock().listed = Some(listed.into_iter().collect());
        Ok(())
    }

    /// Counts `ns` from now on: a write there succeeded.
    fn add_written(&self, ns: &str) {
        let mut known = self.known.lock();
        // The first listing will have the writes before it.
        if known.listed_at.is_some() && !known.listed.as_ref().is_some_and(|listed| listed.contains(ns)) {
            known.written_since.insert(ns.to_owned());
        }
    }
}

/// The writes in flight, by user.
#[derive(Default)]
struct QuotaAccounts(Mutex<HashMap<String, QuotaAccount>>);

#[derive(Default)]
struct QuotaAccount {
    /// Bytes of writes in flight.
    in_flight: u64,
    /// Bytes of writes that ended while any reading was open.
    ended: u64,
    readings: usize,
}

impl QuotaAccounts {
    /// Changes the account of `user`. Removes it once no write is in flight and no reading is open.
    fn change<T>(&self, user: &str, change: impl FnOnce(&mut QuotaAccount) -> T) -> T {
        let mut users = self.0.lock();
        let account = users.entry(user.to_owned()).or_default();
        let result = change(account);
        if account.in_flight == 0 && account.readings == 0 {
            users.remove(user);
        }
        result
    }

    fn begin_reading<'a>(self: &'a Arc<Self>, user: &'a str) -> UsageReading<'a> {
        let ended_before = self.change(user, |account| {
            account.readings += 1;
            account.ended
        });
        UsageReading { accounts: self, user, ended_before }
    }
}

/// A reading of a user's usage from the store. Writes that end during it may or may not be included.
struct UsageReading<'a> {
    accounts: &'a Arc<QuotaAccounts>,
    user: &'a str,
    /// Bytes that had ended when the reading began.
    ended_before: u64,
}

impl Drop for UsageReading<'_> {
    fn drop(&mut self) {
        self.accounts.change(self.user, |account| account.readings -= 1);
    }
}

/// The outcome of a reservation.
enum Reservation {
    Granted(QuotaPermit),
    Full,
    /// Writes that ended during the reading may count twice. Another reading decides.
    Unclear,
}

impl UsageReading<'_> {
    /// Reserves `bytes`, if they fit into `limit` beside the writes in flight and the `used` bytes of this reading.
    fn reserve(&self, bytes: u64, used: u64, limit: u64) -> Reservation {
        self.accounts.change(self.user, |account| {
            let ended = account.ended - self.ended_before;
            let at_least = used.saturating_add(account.in_flight).saturating_add(bytes);
            if at_least.saturating_add(ended) <= limit {
                account.in_flight += bytes;
                Reservation::Granted(QuotaPermit { accounts: self.accounts.clone(), user: self.user.to_owned(), bytes })
            } else if at_least <= limit {
                Reservation::Unclear
            } else {
                Reservation::Full
            }
        })
    }
}

/// Bytes of a quota that a write in flight holds, until this is dropped.
pub(crate) struct QuotaPermit {
    accounts: Arc<QuotaAccounts>,
    user: String,
    bytes: u64,
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        self.accounts.change(&self.user, |account| {
            account.in_flight = account.in_flight.saturating_sub(self.bytes);
            account.ended += self.bytes;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(reservation: Reservation) -> QuotaPermit {
        match reservation {
            Reservation::Granted(permit) => permit,
            Reservation::Full | Reservation::Unclear => panic!("it fits into the quota"),
        }
    }

    #[test]
    fn concurrent_writes_share_the_quota() {
        let accounts = Arc::new(QuotaAccounts::default());
        let (ana, bo) = (accounts.begin_reading("ana"), accounts.begin_reading("bo"));
        let first = granted(ana.reserve(40, 50, 100));
        assert!(matches!(ana.reserve(11, 50, 100), Reservation::Full));
        drop(granted(bo.reserve(11, 50, 100)));
        let second = granted(ana.reserve(10, 50, 100));
        drop((ana, bo));
        let one_more = accounts.begin_reading("ana").reserve(1, 50, 100);
        assert!(matches!(one_more, Reservation::Full), "exactly the limit is used");
        drop(first);
        let third = granted(accounts.begin_reading("ana").reserve(40, 50, 100));
        drop((second, third));
        assert!(accounts.0.lock().is_empty(), "idle accounts are removed");
        assert!(matches!(accounts.begin_reading("ana").reserve(u64::MAX, 1, 100), Reservation::Full));
        assert!(accounts.0.lock().is_empty());
    }

    #[test]
    fn write_that_ends_during_a_reading_is_counted() {
        let accounts = Arc::new(QuotaAccounts::default());
        let other = granted(accounts.begin_reading("ana").reserve(60, 0, 100));
        let reading = accounts.begin_reading("ana");
        drop(other);
        // The store was read before the write: 0 bytes are used.
        assert!(matches!(reading.reserve(50, 0, 100), Reservation::Unclear));
        drop(granted(reading.reserve(40, 0, 100)));
        drop(reading);
        let again = accounts.begin_reading("ana");
        assert!(matches!(again.reserve(50, 60, 100), Reservation::Full), "this reading includes the write");
        drop(granted(again.reserve(40, 60, 100)));
    }

    #[test]
    fn quota_counts_namespaces_known_named_or_written() {
        let patterns: Vec<NamespacePattern> = ["ana", "team/*"].map(|text| text.parse().unwrap()).into();
        let known = ["", "team/a", "other"].map(str::to_owned).into();
        let counted: Vec<_> = counted_namespaces(&patterns, known, "team/new").into_iter().collect();
        assert_eq!(counted, ["ana", "team/a", "team/new"]);
    }
}
