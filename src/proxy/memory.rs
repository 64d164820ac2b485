//! [`Memory`]: the memory that all bodies in flight share, requests and answers. Each caller may hold a part of it at
//! once, so that one that is slow to send or to read holds up none but itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::answer::Refusal;
use super::auth::Caller;

/// One caller may hold one part in as many.
const PARTS: u32 = 4;

/// The budget. The proxy's own token, which opens everything and which all may show, may hold all but one part: so
/// something is left for the keys.
pub struct Memory {
    /// In KiB, as all permits.
    all: Arc<Semaphore>,
    /// The most that one caller may hold, and that anything counts for.
    share: u32,
    /// The most that callers with the proxy's own token may hold together.
    common: u32,
    /// The shares of the callers that hold or wait for something.
    own: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Memory that is set aside for a body, until this is dropped.
pub struct Allotment {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
    share: u32,
}

/// An allotment that lives as long as the content it is for.
pub type SharedAllotment = Arc<Allotment>;

/// `content`, with which `memory` is given back: when its last part is dropped.
pub fn hold(content: Bytes, memory: SharedAllotment) -> Bytes {
    struct Owner(Bytes, #[expect(dead_code, reason = "held")] SharedAllotment);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Owner(content, memory))
}

impl Memory {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(PARTS);
        let (share, common) = (all / PARTS, all - all / PARTS);
        Self { all: Arc::new(Semaphore::new(all as usize)), share, common, own: Mutex::default() }
    }

    /// Sets `bytes` aside as soon as they are there. More than a share counts as a share. A caller that already holds an
    /// allotment for the same request must not wait here: it may hold what it waits for.
    ///
    /// # Errors
    /// [`Refusal::Busy`], when that takes longer than `patience`.
    pub async fn reserve(&self, caller: &Caller, bytes: u64, patience: Duration) -> Result<Allotment, Refusal> {
        let most = if caller.is_limited() { self.share } else { self.common };
        self.reserve_as(&caller.id, most, bytes, patience).await
    }

    /// `most`: what `caller` may hold.
    async fn reserve_as(&self, caller: &str, most: u32, bytes: u64, patience: Duration) -> Result<Allotment, Refusal> {
        let (amount, share) = (kib(bytes).min(self.share), self.share);
        let own = self.own(caller, most);
        let both = async {
            // Its own share first: a caller that waits for that holds nothing that others wait for.
            let own = own.acquire_many_owned(amount).await.map_err(|_| Refusal::Busy)?;
            let all = self.all.clone().acquire_many_owned(amount).await.map_err(|_| Refusal::Busy)?;
            Ok(Allotment { own, all, share })
        };
        timeout(patience, both).await.unwrap_or(Err(Refusal::Busy))
    }

    fn own(&self, caller: &str, most: u32) -> Arc<Semaphore> {
        // Each change leaves it whole.
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.retain(|_, share| Arc::strong_count(share) > 1);
        own.entry(caller.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(most as usize))).clone()
    }
}

impl Allotment {
    /// True if it is as large as a reservation of `bytes` would be.
    pub fn covers(&self, bytes: u64) -> bool {
        self.amount() >= kib(bytes).min(self.share)
    }

    /// Makes it as large as a reservation of `bytes`, where the memory for that is there at once.
    ///
    /// # Errors
    /// [`Refusal::Busy`], where it is not.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let more = kib(bytes).min(self.share).saturating_sub(self.amount());
        let take = |permit: &OwnedSemaphorePermit| permit.semaphore().clone().try_acquire_many_owned(more);
        let own = take(&self.own).map_err(|_| Refusal::Busy)?;
        let all = take(&self.all).map_err(|_| Refusal::Busy)?;
        self.own.merge(own);
        self.all.merge(all);
        Ok(())
    }

    /// Gives back what is beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        drop(self.split_off(self.amount().saturating_sub(kib(bytes))));
    }

    /// Takes `bytes` out of it, as far as it has them.
    pub fn split(&mut self, bytes: u64) -> Option<Self> {
        self.split_off(kib(bytes).min(self.amount()))
    }

    fn split_off(&mut self, amount: u32) -> Option<Self> {
        let (own, all) = (self.own.split(amount as usize)?, self.all.split(amount as usize)?);
        Some(Self { own, all, share: self.share })
    }

    fn amount(&self) -> u32 {
        // It was taken as a `u32`.
        u32::try_from(self.own.num_permits()).unwrap_or(u32::MAX)
    }
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    async fn take(memory: &Memory, caller: &str, kib: u64) -> Option<Allotment> {
        let taken = memory.reserve_as(caller, memory.share, kib * 1024, SHORT).await;
        taken.map_err(|refusal| assert!(matches!(refusal, Refusal::Busy))).ok()
    }

    #[tokio::test]
    async fn caller_with_a_full_share_holds_up_only_itself() {
        let memory = Memory::new(8 * 1024);
        let (one, two) = (take(&memory, "a", 1).await, take(&memory, "a", 1).await);
        assert!(one.is_some() && two.is_some() && take(&memory, "a", 1).await.is_none());
        // More than a share is a share.
        let other = take(&memory, "b", 100).await;
        assert!(other.as_ref().is_some_and(|other| other.covers(1 << 40)) && take(&memory, "b", 1).await.is_none());
        drop(one);
        assert!(take(&memory, "a", 2).await.is_none());
        let again = take(&memory, "a", 1).await;
        assert!(again.is_some());
        // A content holds its memory to its last byte.
        let content = hold(Bytes::from_static(b"content"), Arc::new(again.unwrap()));
        let last = content.slice(6..);
        drop(content);
        let rest = [take(&memory, "c", 2).await, take(&memory, "d", 2).await];
        assert!(rest.iter().all(Option::is_some) && take(&memory, "e", 1).await.is_none(), "four shares are all");
        drop((two, last, other, rest));
        assert!(take(&memory, "e", 1).await.is_some());
        assert_eq!(memory.own.lock().unwrap().len(), 1, "a caller that holds nothing is forgotten");
        // The part that the token cannot hold is for the keys.
        let mut common = Vec::new();
        for _ in 0..7 {
            common.push(memory.reserve_as("token", memory.common, 1024, SHORT).await.ok());
        }
        assert_eq!(common.iter().flatten().count(), 6);
        assert!(take(&memory, "a", 2).await.is_some());
    }

    #[tokio::test]
    async fn allotment_grows_without_waiting_and_shrinks() {
        let memory = Memory::new(16 * 1024);
        let mut one = take(&memory, "a", 1).await.unwrap();
        let two = take(&memory, "a", 2).await.unwrap();
        assert!(one.grow_to(3 * 1024).is_err() && !one.covers(2 * 1024), "it holds what it had");
        assert!(one.grow_to(2 * 1024).is_ok() && one.covers(2 * 1024));
        drop(two);
        assert!(one.grow_to(100 * 1024).is_ok(), "more than a share is a share");
        let half = one.split(2 * 1024).unwrap();
        assert!(half.covers(2 * 1024) && !one.covers(3 * 1024));
        assert!(take(&memory, "a", 1).await.is_none());
        one.shrink_to(1);
        assert!(take(&memory, "a", 1).await.is_some());
    }
}
