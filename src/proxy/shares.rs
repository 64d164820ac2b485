//! [`Shares`]: something that there is so much of, and of which each caller may hold a part at once, so that who is slow
//! to give it back holds up none but itself.

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

/// What all callers share. The proxy's own token, which opens everything and which all may show, may hold all but one
/// part: so something is left for the keys.
pub struct Shares {
    all: Arc<Semaphore>,
    /// What one caller may hold.
    share: u32,
    /// What those who show the proxy's own token may hold together.
    common: u32,
    /// Of the callers that hold or wait for something.
    own: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// So much of it, until this is dropped.
pub struct Held {
    _own: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

/// A turn that goes on as long as something in memory does.
pub type Turn = Arc<Held>;

/// `content`, with which `turn` ends: when its last part is dropped.
pub fn hold(content: Bytes, turn: Turn) -> Bytes {
    struct Owner(Bytes, #[expect(dead_code, reason = "held")] Turn);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Owner(content, turn))
}

impl Shares {
    pub fn new(all: u32) -> Self {
        let (share, common) = ((all / PARTS).max(1), (all - all / PARTS).max(1));
        Self { all: Arc::new(Semaphore::new(all as usize)), share, common, own: Mutex::default() }
    }

    /// Takes `amount`, at most a share, as soon as it is there.
    ///
    /// # Errors
    /// [`Refusal::Busy`], when that takes longer than `patience`.
    pub async fn take(&self, caller: &Caller, amount: u32, patience: Duration) -> Result<Held, Refusal> {
        let most = if caller.is_limited() { self.share } else { self.common };
        self.take_as(&caller.id, most, amount, patience).await
    }

    /// `most`: what `caller` may hold.
    async fn take_as(&self, caller: &str, most: u32, amount: u32, patience: Duration) -> Result<Held, Refusal> {
        let amount = amount.min(self.share);
        let own = self.own(caller, most);
        let both = async {
            // Its own share first: who waits for that holds nothing that others wait for.
            let own = own.acquire_many_owned(amount).await.ok();
            // Neither is ever closed; were it so, going on without would be right.
            Held { _own: own, _all: self.all.clone().acquire_many_owned(amount).await.ok() }
        };
        timeout(patience, both).await.map_err(|_| Refusal::Busy)
    }

    fn own(&self, caller: &str, most: u32) -> Arc<Semaphore> {
        // Each change leaves it whole.
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.retain(|_, share| Arc::strong_count(share) > 1);
        own.entry(caller.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(most as usize))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_holds_its_share_holds_up_itself_alone() {
        let shares = Shares::new(8);
        let take = async |caller: &str, amount| {
            let taken = shares.take_as(caller, shares.share, amount, Duration::from_millis(20)).await;
            taken.map_err(|refusal| assert!(matches!(refusal, Refusal::Busy))).ok()
        };
        let (one, two) = (take("a", 1).await, take("a", 1).await);
        assert!(one.is_some() && two.is_some() && take("a", 1).await.is_none());
        // More than a share is a share.
        let other = take("b", 100).await;
        assert!(other.is_some() && take("b", 1).await.is_none());
        drop(one);
        assert!(take("a", 2).await.is_none());
        let again = take("a", 1).await;
        assert!(again.is_some());
        // All of it is held by four, and what nobody has a share of as well.
        // A content holds its turn to its last byte.
        let content = hold(Bytes::from_static(b"content"), Arc::new(again.unwrap()));
        let last = content.slice(6..);
        drop(content);
        let rest = [take("c", 2).await, take("d", 2).await];
        assert!(rest.iter().all(Option::is_some) && take("e", 1).await.is_none());
        drop((two, last, other, rest));
        assert!(take("e", 1).await.is_some());
        assert_eq!(shares.own.lock().unwrap().len(), 1, "who holds nothing is forgotten");
        // What the token cannot hold is for the keys.
        let mut common = Vec::new();
        for _ in 0..7 {
            common.push(shares.take_as("token", shares.common, 1, Duration::from_millis(20)).await.ok());
        }
        assert_eq!(common.iter().flatten().count(), 6);
        assert!(take("a", 2).await.is_some());
    }
}
