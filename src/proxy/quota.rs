//! Quotas: how many bytes the namespaces of a user may hold together.
//!
//! What counts are the live files of every namespace that the user's keys may write to, whoever wrote them; earlier
//! versions are free. Writes under way are counted as well, so that many at once do not pass the limit together: those
//! of this proxy. Where several proxies share a store, what another took counts some seconds later.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::Instant;

use super::Proxy;
use super::answer::Refusal;
use super::auth::Caller;
use super::keys::Pattern;
use crate::path::RelPath;
use crate::store::{Store, StoreError};

/// Namespaces asked about side by side.
const AT_ONCE: usize = 8;
/// How often the store is asked again because other writes of the user ended meanwhile.
const LOOKS: usize = 3;
/// How long a namespace that another proxy made may go uncounted, where others write to the store as well.
const KNOWN: Duration = Duration::from_secs(60);

/// Bytes of the writes under way, by user, and which namespaces there are.
#[derive(Default)]
pub struct Quotas {
    users: Mutex<HashMap<String, Account>>,
    known: Mutex<Known>,
    /// Held by who lists the namespaces.
    listing: tokio::sync::Mutex<()>,
}

/// What is under way of one user.
#[derive(Default)]
struct Account {
    /// Bytes.
    under_way: u64,
    /// Bytes of writes that ended since somebody began to look.
    ended: u64,
    lookers: usize,
}

/// The namespaces of a store to which others write as well.
#[derive(Default)]
struct Known {
    /// When they were last listed, or began to be.
    asked: Option<Instant>,
    listed: Option<BTreeSet<String>>,
    /// Those that were written to since.
    since: BTreeSet<String>,
}

/// Room that a write holds while it is under way.
pub struct Reserved {
    of: Arc<Quotas>,
    user: String,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.of.change(&self.user, |account| {
            account.under_way = account.under_way.saturating_sub(self.bytes);
            account.ended += self.bytes;
        });
    }
}

/// A look at what a user holds. What ends while it lasts may or may not be in what is seen.
struct Look<'a> {
    of: &'a Arc<Quotas>,
    user: &'a str,
    /// What had ended before.
    since: u64,
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.of.change(self.user, |account| account.lookers -= 1);
    }
}

/// What became of asking for room.
enum Room {
    Taken(Reserved),
    Full,
    /// There may be room: writes ended meanwhile that may have been counted twice.
    Unclear,
}

impl Quotas {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Account>> {
        // Each change leaves it whole.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the account of `user`, and forgets it when nothing is under way and nobody looks.
    fn change<T>(&self, user: &str, change: impl FnOnce(&mut Account) -> T) -> T {
        let mut users = self.lock();
        let account = users.entry(user.to_owned()).or_default();
        let given = change(account);
        if account.under_way == 0 && account.lookers == 0 {
            users.remove(user);
        }
        given
    }

    fn look<'a>(self: &'a Arc<Self>, user: &'a str) -> Look<'a> {
        let since = self.change(user, |account| {
            account.lookers += 1;
            account.ended
        });
        Look { of: self, user, since }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change leaves it whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the namespaces are to be listed again; of those who ask only the first is told so.
    fn is_due(&self) -> bool {
        let mut known = self.known();
        let is_due = known.asked.is_none_or(|asked| asked.elapsed() >= KNOWN);
        if is_due {
            known.asked = Some(Instant::now());
        }
        is_due
    }

    /// Lists the namespaces anew.
    async fn list(&self, store: &impl Store) -> Result<(), StoreError> {
        {
            let mut known = self.known();
            known.asked = Some(Instant::now());
            // What was written to before this is in the listing that begins now.
            let before = std::mem::take(&mut known.since);
            known.listed.iter_mut().for_each(|listed| listed.extend(before.iter().cloned()));
        }
        let listed = store.namespaces().await?;
        self.known().listed = Some(listed.into_iter().collect());
        Ok(())
    }

    /// Something was written in `ns`: it counts from now on. What only was asked for in vain does not.
    pub fn wrote(&self, ns: &str) {
        let mut known = self.known();
        // Before anybody asks, the first listing will have it.
        if known.asked.is_some() && !known.listed.as_ref().is_some_and(|listed| listed.contains(ns)) {
            known.since.insert(ns.to_owned());
        }
    }
}

impl Look<'_> {
    /// Takes `bytes` more, if these, what others hold and what was seen to be `used` fit into `limit`.
    fn reserve(&self, bytes: u64, used: u64, limit: u64) -> Room {
        self.of.change(self.user, |account| {
            let ended = account.ended - self.since;
            let surely = used.saturating_add(account.under_way).saturating_add(bytes);
            if surely.saturating_add(ended) <= limit {
                account.under_way += bytes;
                Room::Taken(Reserved { of: self.of.clone(), user: self.user.to_owned(), bytes })
            } else if surely <= limit {
                Room::Unclear
            } else {
                Room::Full
            }
        })
    }
}

/// Lets a write of `size` bytes to `path` go on, as [`admit_many`].
///
/// # Errors
/// [`Refusal::Quota`]; what the store says.
pub async fn admit<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    path: &RelPath,
    size: u64,
) -> Result<Option<Reserved>, Refusal> {
    let mut rooms = admit_many(proxy, caller, ns, &[(path.clone(), size)]).await?;
    rooms.pop().unwrap_or(Ok(None))
}

/// Lets each of many writes go on, by path and size, for which the caller's user has room; the store is asked once for
/// all. What is given is to be kept until the write is done.
///
/// # Errors
/// What the store says; of a single write [`Refusal::Quota`].
pub async fn admit_many<S: Store>(
    proxy: &Proxy<S>,
    caller: &Caller,
    ns: &str,
    writes: &[(RelPath, u64)],
) -> Result<Vec<Result<Option<Reserved>, Refusal>>, Refusal> {
    let Some((user, limit, patterns)) = caller.quota().filter(|_| !writes.is_empty()) else {
        return Ok(writes.iter().map(|_| Ok(None)).collect());
    };
    let paths: Vec<RelPath> = writes.iter().map(|(path, _)| path.clone()).collect();
    let mut looks = 1;
    loop {
        // Begun before the store is asked: what ends from now on is counted, whether it was seen or not.
        let look = proxy.quotas.look(user);
        let used = used(proxy, &patterns, ns).await?;
        let held = proxy.store.held_bytes(ns, &paths).await?;
        let mut unclear = false;
        let rooms = writes.iter().zip(held).map(|((_, size), held)| {
            // What does not grow is always taken: it cannot make it worse.
            let Some(growth) = size.checked_sub(held).filter(|growth| *growth > 0) else { return Ok(None) };
            match look.reserve(growth, used, limit) {
                Room::Taken(reserved) => Ok(Some(reserved)),
                room => {
                    unclear |= matches!(room, Room::Unclear);
                    Err(Refusal::Quota { limit, used })
                }
            }
        });
        let rooms: Vec<_> = rooms.collect();
        if !unclear || looks == LOOKS {
            return Ok(rooms);
        }
        looks += 1;
    }
}

/// The bytes that count towards a quota for `patterns`.
async fn used<S: Store>(proxy: &Proxy<S>, patterns: &[Pattern], written: &str) -> Result<u64, StoreError> {
    let all = counted(patterns, namespaces(proxy, patterns).await?, written);
    let usages = all.into_iter().map(|ns| async move { proxy.store.usage(&ns).await });
    let usages = stream::iter(usages.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
    usages.try_fold(0u64, |sum, usage| async move { Ok(sum.saturating_add(usage)) }).await
}

/// The namespaces there are, as far as `patterns` leave that open.
async fn namespaces<S: Store>(proxy: &Proxy<S>, patterns: &[Pattern]) -> Result<BTreeSet<String>, StoreError> {
    if patterns.iter().all(|pattern| matches!(pattern, Pattern::Exact(_))) {
        return Ok(BTreeSet::new());
    }
    if S::STRONG {
        return Ok(proxy.store.namespaces().await?.into_iter().collect());
    }
    // Such a store has to be listed whole for it, so it is asked now and then, and nobody but the first waits.
    let (quotas, store) = (proxy.quotas.clone(), proxy.store.clone());
    if quotas.known().listed.is_none() {
        let _first = quotas.listing.lock().await;
        if quotas.known().listed.is_none() {
            quotas.list(store.as_ref()).await?;
        }
    } else if quotas.is_due() {
        let quotas = quotas.clone();
        tokio::spawn(async move {
            let _one_at_a_time = quotas.listing.lock().await;
            if let Err(e) = quotas.list(store.as_ref()).await {
                tracing::warn!("the namespaces could not be listed, for quotas: {e}");
            }
        });
    }
    let known = quotas.known();
    Ok(known.listed.iter().flatten().chain(&known.since).cloned().collect())
}

/// The namespaces that count: of those known, those named, and the one written to.
fn counted(patterns: &[Pattern], known: BTreeSet<String>, written: &str) -> BTreeSet<String> {
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

    fn taken(room: Room) -> Reserved {
        match room {
            Room::Taken(reserved) => reserved,
            Room::Full | Room::Unclear => panic!("there is room"),
        }
    }

    #[test]
    fn writes_at_once_share_the_room() {
        let quotas = Arc::new(Quotas::default());
        let (ana, bo) = (quotas.look("ana"), quotas.look("bo"));
        let first = taken(ana.reserve(40, 50, 100));
        assert!(matches!(ana.reserve(11, 50, 100), Room::Full));
        drop(taken(bo.reserve(11, 50, 100)));
        let second = taken(ana.reserve(10, 50, 100));
        drop((ana, bo));
        assert!(matches!(quotas.look("ana").reserve(1, 50, 100), Room::Full), "exactly the limit");
        drop(first);
        let third = taken(quotas.look("ana").reserve(40, 50, 100));
        drop((second, third));
        assert!(quotas.lock().is_empty(), "nothing is left behind");
        assert!(matches!(quotas.look("ana").reserve(u64::MAX, 1, 100), Room::Full));
        assert!(quotas.lock().is_empty());
    }

    #[test]
    fn what_ends_during_a_look_counts_whether_it_was_seen_or_not() {
        let quotas = Arc::new(Quotas::default());
        let other = taken(quotas.look("ana").reserve(60, 0, 100));
        let look = quotas.look("ana");
        drop(other);
        // 0 were seen to be used: the write had not landed when the store was asked.
        assert!(matches!(look.reserve(50, 0, 100), Room::Unclear));
        drop(taken(look.reserve(40, 0, 100)));
        drop(look);
        let again = quotas.look("ana");
        assert!(matches!(again.reserve(50, 60, 100), Room::Full), "now it is seen");
        drop(taken(again.reserve(40, 60, 100)));
    }

    #[test]
    fn what_counts_is_known_named_or_written_to() {
        let patterns: Vec<Pattern> = ["ana", "team/*"].map(|text| text.parse().unwrap()).into();
        let known = ["", "team/a", "other"].map(str::to_owned).into();
        let counted: Vec<_> = counted(&patterns, known, "team/new").into_iter().collect();
        assert_eq!(counted, ["ana", "team/a", "team/new"]);
    }
}
