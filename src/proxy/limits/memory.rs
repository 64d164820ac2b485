//! [`BodyMemory`]: the memory that all bodies in flight share, of requests and responses. One caller may hold a part of
//! it, so a caller that sends or reads slowly delays only itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::proxy::auth::caller::Caller;

/// Most memory that a blob on its way out takes, bytes: a piece that is read, and one that is written.
pub(crate) const DOWNLOAD_MEMORY: u64 = 512 * 1024;
/// The same for a blob on its way in: a piece that comes, and one that is written.
pub(crate) const UPLOAD_MEMORY: u64 = 576 * 1024;
/// Memory that unpacking a body takes besides its window, bytes.
pub(crate) const DECODER_MEMORY: u64 = 512 * 1024;
/// Memory reserved at first for a batch of unknown length, bytes.
pub(crate) const UNKNOWN_BODY_MEMORY: u64 = 1024 * 1024;
/// Memory reserved for an index of unknown size, bytes.
pub(crate) const MIN_INDEX_MEMORY: u64 = 1024 * 1024;
/// Memory reserved for each change of a delta before it is read, bytes.
pub(crate) const CHANGE_MEMORY: u64 = 1024;
/// Memory reserved for a list of versions, bytes.
pub(crate) const LIST_MEMORY: u64 = 128 * 1024;

/// A caller may hold one part in this many. Holders of the proxy's own token may together hold all parts but one, so
/// that one is left for the keys.
const PARTS: u32 = 4;

/// The memory is not free, or was not within the time allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryBusy;

pub(crate) struct BodyMemory {
    /// In KiB, as all permits.
    total: Arc<Semaphore>,
    /// The most that one caller may hold, and the most that one reservation takes.
    part: u32,
    /// The most that holders of the proxy's own token may hold together.
    token_part: u32,
    /// How long a reservation may wait.
    timeout: Duration,
    /// The callers that hold memory or wait for it.
    by_caller: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Memory reserved for a body, until this is dropped.
pub(crate) struct MemoryPermit {
    own: OwnedSemaphorePermit,
    total: OwnedSemaphorePermit,
    part: u32,
}

/// `content`, which keeps `memory` reserved until its last slice is dropped.
pub(crate) fn attach(content: Bytes, memory: Arc<MemoryPermit>) -> Bytes {
    struct HeldContent(Bytes, #[expect(dead_code, reason = "held")] Arc<MemoryPermit>);
    impl AsRef<[u8]> for HeldContent {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(HeldContent(content, memory))
}

impl BodyMemory {
    pub(crate) fn new(bytes: u64, timeout: Duration) -> Self {
        let total = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(PARTS);
        let (part, token_part) = (total / PARTS, total - total / PARTS);
        let total = Arc::new(Semaphore::new(total as usize));
        Self { total, part, token_part, timeout, by_caller: Mutex::default() }
    }

    /// Waits until `bytes` are free, and reserves them. More than a part counts as a part.
    ///
    /// A request that already holds memory must not wait here: it could wait for itself.
    pub(crate) async fn reserve(&self, caller: &Caller, bytes: u64) -> Result<MemoryPermit, MemoryBusy> {
        let max = if caller.is_limited() { self.part } else { self.token_part };
        self.reserve_for(&caller.id, max, bytes).await
    }

    /// `max`: KiB that `caller` may hold.
    async fn reserve_for(&self, caller: &str, max: u32, bytes: u64) -> Result<MemoryPermit, MemoryBusy> {
        let (amount, part) = (kib(bytes).min(self.part), self.part);
        let own = self.caller_memory(caller, max);
        let reservation = async {
            // The caller's own part comes first: while it waits for that, it holds nothing that others need.
            let own = own.acquire_many_owned(amount).await.map_err(|_| MemoryBusy)?;
            let total = self.total.clone().acquire_many_owned(amount).await.map_err(|_| MemoryBusy)?;
            Ok(MemoryPermit { own, total, part })
        };
        timeout(self.timeout, reservation).await.unwrap_or(Err(MemoryBusy))
    }

    fn caller_memory(&self, caller: &str, max: u32) -> Arc<Semaphore> {
        let mut by_caller = self.by_caller.lock();
        by_caller.retain(|_, memory| Arc::strong_count(memory) > 1);
        by_caller.entry(caller.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(max as usize))).clone()
    }
}

impl MemoryPermit {
    /// True if it is as large as a reservation of `bytes` would be.
    pub(crate) fn covers(&self, bytes: u64) -> bool {
        self.kib() >= kib(bytes).min(self.part)
    }

    /// Grows to the size of a reservation of `bytes`, without waiting.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), MemoryBusy> {
        let more = kib(bytes).min(self.part).saturating_sub(self.kib());
        let take = |permit: &OwnedSemaphorePermit| permit.semaphore().clone().try_acquire_many_owned(more);
        let own = take(&self.own).map_err(|_| MemoryBusy)?;
        let total = take(&self.total).map_err(|_| MemoryBusy)?;
        self.own.merge(own);
        self.total.merge(total);
        Ok(())
    }

    /// Gives back all memory beyond `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        drop(self.split_kib(self.kib().saturating_sub(kib(bytes))));
    }

    /// Splits off up to `bytes`.
    pub(crate) fn split(&mut self, bytes: u64) -> Option<Self> {
        self.split_kib(kib(bytes).min(self.kib()))
    }

    fn split_kib(&mut self, amount: u32) -> Option<Self> {
        let (own, total) = (self.own.split(amount as usize)?, self.total.split(amount as usize)?);
        Some(Self { own, total, part: self.part })
    }

    fn kib(&self) -> u32 {
        // It was acquired as a `u32`.
        u32::try_from(self.own.num_permits()).unwrap_or(u32::MAX)
    }
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(kib: u64) -> BodyMemory {
        BodyMemory::new(kib * 1024, Duration::from_millis(20))
    }

    async fn take(memory: &BodyMemory, caller: &str, kib: u64) -> Option<MemoryPermit> {
        memory.reserve_for(caller, memory.part, kib * 1024).await.ok()
    }

    #[tokio::test]
    async fn caller_with_a_full_part_delays_only_itself() {
        let memory = memory(8);
        let (one, two) = (take(&memory, "a", 1).await, take(&memory, "a", 1).await);
        assert!(one.is_some() && two.is_some() && take(&memory, "a", 1).await.is_none());
        let other = take(&memory, "b", 100).await;
        assert!(other.as_ref().is_some_and(|other| other.covers(1 << 40)), "more than a part is a part");
        assert!(take(&memory, "b", 1).await.is_none());
        drop(one);
        assert!(take(&memory, "a", 2).await.is_none());
        let again = take(&memory, "a", 1).await;
        assert!(again.is_some());

        let content = attach(Bytes::from_static(b"content"), Arc::new(again.unwrap()));
        let last = content.slice(6..);
        drop(content);
        let rest = [take(&memory, "c", 2).await, take(&memory, "d", 2).await];
        assert!(rest.iter().all(Option::is_some));
        assert!(take(&memory, "e", 1).await.is_none(), "the last slice holds the memory of its content");
        drop((two, last, other, rest));
        assert!(take(&memory, "e", 1).await.is_some());
        assert_eq!(memory.by_caller.lock().len(), 1, "callers that hold nothing are removed");
    }

    #[tokio::test]
    async fn proxy_token_leaves_one_part_for_the_keys() {
        let memory = memory(8);
        let mut held = Vec::new();
        for _ in 0..7 {
            held.push(memory.reserve_for("token", memory.token_part, 1024).await.ok());
        }
        assert_eq!(held.iter().flatten().count(), 6);
        assert!(take(&memory, "a", 2).await.is_some());
    }

    #[tokio::test]
    async fn permit_grows_without_waiting_and_shrinks() {
        let memory = memory(16);
        let mut one = take(&memory, "a", 1).await.unwrap();
        let two = take(&memory, "a", 2).await.unwrap();
        assert!(one.grow_to(3 * 1024).is_err() && !one.covers(2 * 1024), "its size is unchanged");
        assert!(one.grow_to(2 * 1024).is_ok() && one.covers(2 * 1024));
        drop(two);
        assert!(one.grow_to(100 * 1024).is_ok(), "more than a part is a part");
        let half = one.split(2 * 1024).unwrap();
        assert!(half.covers(2 * 1024) && !one.covers(3 * 1024));
        assert!(take(&memory, "a", 1).await.is_none());
        one.shrink_to(1);
        assert!(take(&memory, "a", 1).await.is_some());
    }
}
