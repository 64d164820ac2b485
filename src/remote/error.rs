//! [`RemoteError`]: the failures of a request.

use std::time::Duration;

/// A request without a usable answer. The texts name the URL, never the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// 401 or 403. The cycle ends, except after a 403 on a write, which concerns one path.
    #[error("{url}: {}", refused(*status))]
    Auth { url: String, status: u16 },
    /// No connection, a timeout, or an answer that broke off. A write may or may not have happened.
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    /// The answer is too slow.
    #[error("{url}: only {bytes} bytes came in {time:?}; it is asked for again later")]
    Slow { url: String, bytes: u64, time: Duration },
    /// 429, or 503 with Retry-After (capped at 15 minutes).
    #[error("{url}: the proxy asks to wait ({status})")]
    Throttled { url: String, status: u16, after: Option<Duration> },
    /// Other 5xx.
    #[error("{url}: the proxy failed ({status}): {detail}")]
    Server { url: String, status: u16, detail: String },
    /// 413, or a blob beyond the size limit.
    #[error("{url}: too large: {why}")]
    TooLarge { url: String, why: String },
    /// 400, 409, 422, 428 and other 4xx: a retry of the same request would fail again.
    #[error("{url}: the proxy refused the request ({status}): {detail}")]
    Refused { url: String, status: u16, detail: String },
    /// An answer that violates the protocol: a redirect, a body that does not match its ETag, no JSON.
    #[error("{url}: not an answer of a Memory Proxy: {why}")]
    Protocol { url: String, why: String },
    /// Another server than a Memory Proxy.
    #[error("{url}: this is no Memory Proxy but another server: {why}; check the address")]
    NotAProxy { url: String, why: String },
    /// This proxy cannot address the path. Nothing was sent.
    #[error("{url}: {why}")]
    Name { url: String, why: String },
    /// The content could not be read here. The proxy has written nothing.
    #[error("{0}")]
    Source(String),
}

/// The meaning of a refused token, with advice.
fn refused(status: u16) -> &'static str {
    if status == 403 {
        "the proxy knows the token, but it does not open this namespace or may not write to it (403); ask the operator \
         of the proxy for another key"
    } else {
        "the proxy refused the token (401); check proxy.token_file"
    }
}

impl RemoteError {
    /// True if the proxy knows the key but does not allow it this request (403).
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Auth { status: 403, .. })
    }

    /// True if the error concerns the whole proxy, so that the cycle ends, and not only one path.
    pub fn ends_cycle(&self) -> bool {
        matches!(self, Self::Auth { .. } | Self::Unreachable { .. } | Self::Throttled { .. })
    }
}
