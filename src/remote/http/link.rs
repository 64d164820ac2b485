//! [`ProxyLink`]: the connections to one proxy, the facts learned about it, and the errors that name it.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use reqwest::{Client, RequestBuilder};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::classify::{self, TransportFailure};
use super::options::AGENT;
use crate::protocol::{HistoryPoint, IndexCursor, Namespace, X_MEMSYNC_DEVICE, X_MEMSYNC_HISTORY};
use crate::remote::RemoteError;

/// The device that writes, for the proxy's record.
const DEVICE: HeaderName = HeaderName::from_static(X_MEMSYNC_DEVICE);
/// Longest answer read where the status says nearly all, bytes.
pub(super) const MAX_SMALL: u64 = 64 * 1024;
/// Slower transfers are aborted, bytes a second.
const MIN_RATE: u64 = 32 * 1024;
/// An index of hints is fetched whole again after this time with deltas, because a wrong delta would stay unnoticed.
const WHOLE_AGAIN: Duration = Duration::from_secs(3600);
/// Bytes of an upload that may be in buffers on the way.
const MAX_BUFFERED: u64 = 8 * 1024 * 1024;

/// The connections to one proxy. Body streams keep it alive.
pub(super) struct ProxyLink {
    pub(super) client: Client,
    /// Without a trailing `/`.
    pub(super) origin: String,
    pub(super) namespace: Namespace,
    /// The proxy is on this machine.
    pub(super) loopback: bool,
    pub(super) token: SecretString,
    pub(super) authorization: HeaderValue,
    pub(super) device: Option<HeaderValue>,
    pub(super) timeout: Duration,
    pub(super) max_file_size: u64,
    pub(super) permits: Arc<Semaphore>,
    pub(super) facts: Mutex<ProxyFacts>,
    /// The history point of the store after the last acknowledged write.
    pub(super) written: Mutex<Option<HistoryPoint>>,
}

/// Facts learned from the proxy. They are dropped when it cannot be reached, because another proxy may answer next time.
#[derive(Default)]
pub(super) struct ProxyFacts {
    pub(super) capabilities: Option<Arc<[String]>>,
    /// The proxy refused a compressed content.
    pub(super) refuses_encoding: bool,
    pub(super) index: Option<ServedIndex>,
}

/// The last index that the caller received.
#[derive(Clone)]
pub(super) struct ServedIndex {
    /// The address it came from, see `IndexQuery::address`.
    pub(super) url: String,
    pub(super) etag: HeaderValue,
    pub(super) cursor: Option<IndexCursor>,
    /// The time since which deltas from ETags have been applied to a whole index.
    pub(super) patched: Option<Instant>,
}

impl ProxyLink {
    /// Records the history point in the answer to a write.
    pub(super) fn note_written(&self, headers: &HeaderMap) {
        let point = headers.get(X_MEMSYNC_HISTORY).and_then(|value| value.to_str().ok()?.parse().ok());
        if point.is_some() {
            *self.written.lock() = point;
        }
    }

    /// The URL of `path`, which begins with `/` and is encoded.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// A request with the token.
    pub(super) fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let mut request = self
            .client
            .request(method, url)
            .header(AUTHORIZATION, self.authorization.clone())
            .header(USER_AGENT, AGENT);
        if let Some(device) = &self.device {
            request = request.header(DEVICE, device.clone());
        }
        request
    }

    /// The longest time that a transfer of `bytes` may take.
    pub(super) fn total_timeout(&self, bytes: u64) -> Duration {
        self.timeout * 2 + Duration::from_secs(bytes / MIN_RATE)
    }

    /// The idle timeout of an upload of `bytes`: the time that a slow link needs for the bytes in buffers on the way.
    pub(super) fn idle_timeout(&self, bytes: u64) -> Duration {
        self.timeout + Duration::from_secs(bytes.min(MAX_BUFFERED) / MIN_RATE)
    }

    /// The error for a failure below HTTP. `what`: the start of the reason, if the proxy was unreachable.
    pub(super) fn transport_error(&self, url: &str, what: &str, e: &reqwest::Error) -> RemoteError {
        match classify::transport_failure(e) {
            TransportFailure::Unreachable(why) => self.unreachable(url, &format!("{what}{why}")),
            TransportFailure::Protocol(why) => self.protocol(url, &why),
        }
    }

    pub(super) fn unreachable(&self, url: &str, why: &str) -> RemoteError {
        *self.facts.lock() = ProxyFacts::default();
        RemoteError::Unreachable { url: url.to_owned(), why: self.clean(why) }
    }

    pub(super) fn protocol(&self, url: &str, why: &str) -> RemoteError {
        RemoteError::Protocol { url: url.to_owned(), why: self.clean(why) }
    }

    /// A server's text without control characters and the token, cut to a few lines.
    pub(super) fn clean(&self, text: &str) -> String {
        classify::clean(text, self.token.expose_secret())
    }
}

impl ServedIndex {
    /// The text in the quotes of its ETag. A server on the way may have made the ETag weak, which does not matter here.
    pub(super) fn tag(&self) -> Option<&str> {
        let etag = self.etag.to_str().ok()?;
        etag.strip_prefix("W/").unwrap_or(etag).strip_prefix('"')?.strip_suffix('"')
    }

    /// True if the index must be fetched whole again.
    pub(super) fn is_due_whole(&self, now: Instant) -> bool {
        self.patched.is_some_and(|since| now >= since + WHOLE_AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patched_index_is_due_whole_after_an_hour() {
        let now = Instant::now();
        let mut served =
            ServedIndex { url: String::new(), etag: http::HeaderValue::from_static("x"), cursor: None, patched: None };
        assert!(!served.is_due_whole(now + 100 * WHOLE_AGAIN), "a whole index from the proxy does not age");
        served.patched = Some(now);
        assert!(!served.is_due_whole(now + WHOLE_AGAIN / 2) && served.is_due_whole(now + WHOLE_AGAIN));
    }

    #[test]
    fn tag_is_the_text_in_the_etag_quotes() {
        let tag = |etag: &'static str| {
            let etag = http::HeaderValue::from_static(etag);
            ServedIndex { url: String::new(), etag, cursor: None, patched: None }.tag().map(str::to_owned)
        };
        assert_eq!((tag("\"a-1\"").as_deref(), tag("W/\"a\"").as_deref()), (Some("a-1"), Some("a")));
        assert_eq!((tag("a"), tag("\""), tag("W/a\"")), (None, None, None));
    }
}
