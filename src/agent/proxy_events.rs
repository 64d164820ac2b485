//! The stream of the proxy's events. Each is a hint: the next cycle reads the index. Polling finds what it misses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::protocol::capability;
use crate::remote::http::HttpRemote;

use super::schedule::FIRST_BACKOFF;
use super::status_cell::{StatusCell, lock};

/// Notes that the proxy may have news, and wakes the folder's task.
#[derive(Clone)]
pub(super) struct NewsFlag {
    has_news: Arc<AtomicBool>,
    wake: Arc<Notify>,
}

impl NewsFlag {
    pub(super) fn new(wake: Arc<Notify>) -> Self {
        Self { has_news: Arc::default(), wake }
    }

    fn raise(&self) {
        self.has_news.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_raised(&self) -> bool {
        self.has_news.load(Ordering::Relaxed)
    }

    /// Lowers the flag. True: it was raised.
    pub(super) fn take(&self) -> bool {
        self.has_news.swap(false, Ordering::Relaxed)
    }
}

/// Listens for events until dropped. Reconnects after at most `max_wait`.
pub(super) async fn listen(remote: Arc<HttpRemote>, status: Arc<StatusCell>, news: NewsFlag, max_wait: Duration) {
    let mut failures = 0u32;
    loop {
        let has_events = match remote.capabilities().await {
            Ok(all) => {
                lock(&status.proxy).capabilities = all.to_vec();
                all.iter().any(|c| c == capability::EVENTS)
            }
            Err(e) => {
                tracing::debug!("events: {e}");
                false
            }
        };
        if has_events && listen_once(&remote, &status, &news).await {
            failures = 0;
        } else {
            failures += 1;
        }
        tokio::time::sleep(FIRST_BACKOFF.saturating_mul(1 << failures.min(6)).min(max_wait)).await;
    }
}

/// Listens until the connection ends. True: at least one event arrived.
async fn listen_once(remote: &HttpRemote, status: &StatusCell, news: &NewsFlag) -> bool {
    let has_heard = AtomicBool::new(false);
    let on_event = |_| {
        has_heard.store(true, Ordering::Relaxed);
        status.push.note_event();
        news.raise();
    };
    // No event tells of a change between the last cycle and this connection, so the connection itself is news.
    let e = remote.listen(None, || news.raise(), on_event).await;
    tracing::debug!("events: {e}");
    // The next cycle finds out whether the proxy is gone.
    news.raise();
    has_heard.into_inner()
}
