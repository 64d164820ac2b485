//! [`HttpRemote`]: a Memory Proxy over HTTP.
//!
//! It asks once and says what became of it: it does not retry, decide or log, and it reads no files. The wire
//! is the flat dialect (`flat`), or for a folder with a namespace the namespaced one (`namespaced`), and many requests
//! in one (`batch`); `classify` tells errors apart, `body` watches over what comes and goes, `packed` makes it smaller.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use reqwest::{Client, RequestBuilder, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{BatchReply, BatchRequest, DeleteReply, GetReply, IndexUpdate, PutReply, Remote, RemoteError, UploadBody};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{
    Health, HistoryPoint, IndexCursor, Namespace, NamespaceError, Pin, Precondition, X_MEMSYNC_DEVICE,
    X_MEMSYNC_HISTORY, encode_path, is_loopback,
};

mod batch;
mod body;
mod classify;
mod flat;
mod index;
mod namespaced;
mod packed;
mod pinned;
mod resume;
mod tls;

use body::{HttpReply, Progress};

/// Who wrote it, for the proxy's record.
const DEVICE: HeaderName = HeaderName::from_static(X_MEMSYNC_DEVICE);
/// Longest answer read where only a few words are wanted, bytes.
const MAX_SMALL: u64 = 64 * 1024;
/// Transfers slower than this, bytes a second, are given up.
const MIN_RATE: u64 = 32 * 1024;
/// As much of an upload may be in buffers, bytes.
const MAX_BUFFERED: u64 = 8 * 1024 * 1024;

/// Where the proxy is and how to talk to it.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// `https://host[:port][/base/path]`, without user, query and fragment.
    pub origin: String,
    pub token: SecretString,
    /// Empty: the flat dialect. Else the namespaced one, by the rules of [`Namespace`].
    pub namespace: String,
    /// Sent as `X-Memsync-Device`, percent-encoded; not sent when empty.
    pub device: String,
    /// Certificates in PEM to trust besides the system's: the content, not the name of a file.
    pub ca_pem: Option<Vec<u8>>,
    /// The one certificate that is trusted, whatever any authority says.
    pub pin: Option<Pin>,
    /// Lets plain http go beyond loopback.
    pub allow_http: bool,
    /// To connect, and between any two signs of life. A whole transfer may take longer, by its size.
    pub timeout: Duration,
    /// Larger blobs are not taken, bytes.
    pub max_file_size: u64,
    /// Requests at one time, at least 1.
    pub concurrency: usize,
}

/// Why [`HttpRemote::new`] refused its options. Names the key to mend, never the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("proxy.url is not a URL: {0}")]
    Url(String),
    #[error("proxy.url must begin with https:// or http://")]
    Scheme,
    #[error("proxy.url must not hold a user or password; the token goes into proxy.token_file")]
    Userinfo,
    #[error("proxy.url must end with its path: no `?` or `#`")]
    Suffix,
    #[error("{0}: plain http would show the token to the network; use https, or set proxy.allow_http = true")]
    PlainHttp(String),
    #[error("{0}: plain http shows no certificate to compare with proxy.pin; use https")]
    PinWithoutTls(String),
    #[error("folder.namespace {0:?} is no name of a namespace: {1}")]
    Namespace(String, NamespaceError),
    #[error("the token is empty or has characters that cannot be sent; check proxy.token_file")]
    Token,
    #[error("proxy.ca_file holds no certificate in PEM form: {0}")]
    Ca(String),
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}

/// One namespace of a Memory Proxy. Cloning gives another handle to the same connections.
#[derive(Clone)]
pub struct HttpRemote {
    inner: Arc<Inner>,
}

/// What the body streams keep alive.
struct Inner {
    client: Client,
    /// Without a trailing `/`.
    origin: String,
    namespace: Namespace,
    /// The proxy is on this machine.
    loopback: bool,
    token: SecretString,
    authorization: HeaderValue,
    device: Option<HeaderValue>,
    timeout: Duration,
    max_file_size: u64,
    permits: Arc<Semaphore>,
    known: Mutex<Known>,
    /// Where the store stood with the last write that was answered.
    written: Mutex<Option<HistoryPoint>>,
}

/// What was learnt from the proxy; forgotten when it cannot be reached, as another may answer next time.
#[derive(Default)]
struct Known {
    capabilities: Option<Arc<[String]>>,
    /// A packed content was refused.
    refuses_packed: bool,
    index: Option<Given>,
}

/// The last index that the caller got.
#[derive(Clone)]
struct Given {
    /// Where it came from.
    url: String,
    etag: HeaderValue,
    cursor: Option<IndexCursor>,
    /// Since when it is the last whole one with deltas from its ETag laid over it.
    patched: Option<Instant>,
}

impl HttpRemote {
    /// Sets up the client; nothing is sent yet.
    ///
    /// # Errors
    /// The first option that cannot be used.
    pub fn new(options: HttpOptions) -> Result<Self, OptionsError> {
        let namespace =
            Namespace::parse(&options.namespace).map_err(|e| OptionsError::Namespace(options.namespace.clone(), e))?;
        let origin = Url::parse(&options.origin).map_err(|e| OptionsError::Url(e.to_string()))?;
        if !matches!(origin.scheme(), "http" | "https") {
            return Err(OptionsError::Scheme);
        }
        if !origin.username().is_empty() || origin.password().is_some() {
            return Err(OptionsError::Userinfo);
        }
        if origin.query().is_some() || origin.fragment().is_some() {
            return Err(OptionsError::Suffix);
        }
        let loopback = is_loopback(origin.host_str().unwrap_or_default());
        let text = origin.as_str().trim_end_matches('/').to_owned();
        if origin.scheme() == "http" && !loopback && !options.allow_http {
            return Err(OptionsError::PlainHttp(text));
        }
        if origin.scheme() == "http" && options.pin.is_some() {
            return Err(OptionsError::PinWithoutTls(text));
        }
        let token = options.token.expose_secret();
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| OptionsError::Token)?;
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(OptionsError::Token);
        }
        authorization.set_sensitive(true);
        let device = Some(encode_path(&options.device)).filter(|d| !d.is_empty());
        let device = device.and_then(|d| HeaderValue::from_str(&d).ok());
        Ok(Self {
            inner: Arc::new(Inner {
                client: tls::client(&origin, loopback, options.ca_pem.as_deref(), options.pin, options.timeout)?,
                origin: text,
                namespace,
                loopback,
                token: options.token,
                authorization,
                device,
                timeout: options.timeout,
                max_file_size: options.max_file_size,
                permits: Arc::new(Semaphore::new(options.concurrency.max(1))),
                known: Mutex::default(),
                written: Mutex::default(),
            }),
        })
    }

    /// Asks `GET /health`, without the token, and remembers the capabilities.
    ///
    /// # Errors
    /// As any request; a proxy that has lost its storage is [`RemoteError::Server`] with status 503.
    pub async fn health(&self) -> Result<Health, RemoteError> {
        Ok(self.health_and_time().await?.0)
    }

    /// [`HttpRemote::health`], and the proxy's clock where it tells (RFC 9110, section 6.6.1).
    ///
    /// # Errors
    /// As [`HttpRemote::health`].
    pub async fn health_and_time(&self) -> Result<(Health, Option<Timestamp>), RemoteError> {
        let url = self.inner.url("/health");
        let request = self.inner.client.get(&url).header(USER_AGENT, tls::AGENT);
        let answer = self.inner.send(&url, request, None, MAX_SMALL).await?;
        if answer.status() != StatusCode::OK {
            return Err(answer.refusal().await);
        }
        let time = classify::date(answer.headers());
        let text = answer.read(MAX_SMALL).await?;
        let health: Health = serde_json::from_slice(&text)
            .map_err(|e| self.inner.protocol(&url, &format!("its health is not what was expected: {e}")))?;
        self.inner.known().capabilities = Some(health.capabilities.clone().into());
        Ok((health, time))
    }

    /// The capabilities the proxy advertises, asked for once and again after it could not be reached. A proxy
    /// that shows no health to strangers (4xx) has none.
    ///
    /// # Errors
    /// As [`HttpRemote::health`].
    pub async fn capabilities(&self) -> Result<Arc<[String]>, RemoteError> {
        let known = self.inner.known().capabilities.clone();
        if let Some(known) = known {
            return Ok(known);
        }
        match self.health().await {
            Ok(health) => Ok(health.capabilities.into()),
            Err(RemoteError::Refused { .. } | RemoteError::Auth { .. }) => {
                let none: Arc<[String]> = Arc::new([]);
                self.inner.known().capabilities = Some(Arc::clone(&none));
                Ok(none)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the proxy advertises `capability`.
    ///
    /// # Errors
    /// As [`HttpRemote::health`].
    pub async fn supports(&self, capability: &str) -> Result<bool, RemoteError> {
        Ok(self.capabilities().await?.iter().any(|c| c == capability))
    }

    /// The address of this namespace's part of the proxy at `root`, such as `/events`.
    pub(super) fn part(&self, root: &str) -> String {
        self.inner.namespace.below(root)
    }

    /// Opens a stream that has no end: no permit, no limit on its length or duration.
    pub(super) async fn open_stream(&self, url_path: &str, last: Option<u64>) -> Result<HttpReply, RemoteError> {
        let url = self.inner.url(url_path);
        let mut request = self.inner.request(Method::GET, &url).header(http::header::ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = self.inner.send_unbounded(&url, request).await?;
        if answer.status() != StatusCode::OK {
            return Err(answer.refusal().await);
        }
        Ok(answer)
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, Known> {
        // The fields are each replaced whole, so a panic elsewhere cannot leave them half written.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Option<HistoryPoint>> {
        // It is replaced whole.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what an answer to a write says of the store's history.
    fn note_written(&self, headers: &HeaderMap) {
        let point = headers.get(X_MEMSYNC_HISTORY).and_then(|value| value.to_str().ok()?.parse().ok());
        if point.is_some() {
            *self.written() = point;
        }
    }

    /// The address of `path`, which begins with `/` and is already encoded.
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// A request with the token.
    fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let mut request = self
            .client
            .request(method, url)
            .header(AUTHORIZATION, self.authorization.clone())
            .header(USER_AGENT, tls::AGENT);
        if let Some(device) = &self.device {
            request = request.header(DEVICE, device.clone());
        }
        request
    }

    /// The longest a transfer of `bytes` may take.
    fn total(&self, bytes: u64) -> Duration {
        self.timeout * 2 + Duration::from_secs(bytes / MIN_RATE)
    }

    /// The longest that nothing more may be taken from an upload of `bytes`: as long as a slow link needs for what
    /// the buffers between here and there hold.
    fn silence(&self, bytes: u64) -> Duration {
        self.timeout + Duration::from_secs(bytes.min(MAX_BUFFERED) / MIN_RATE)
    }

    /// Sends and waits for the head of the answer. `upload`: the body's signs of life and its size; `cap`: the
    /// most bytes that the answer may have.
    async fn send(
        self: &Arc<Self>,
        url: &str,
        request: RequestBuilder,
        upload: Option<(&Progress, u64)>,
        cap: u64,
    ) -> Result<HttpReply, RemoteError> {
        // Never closed; were it so, going on without a permit would be right.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let started = Progress::new();
        let (progress, size) = upload.unwrap_or((&started, 0));
        progress.touch();
        let deadline = Instant::now() + self.total(size);
        tokio::select! {
            answer = request.send() => match answer {
                Ok(response) => {
                    self.note_written(response.headers());
                    Ok(HttpReply::new(Arc::clone(self), url, response, cap, permit))
                }
                Err(e) => Err(self.transport(url, &e)),
            },
            () = progress.idle(self.silence(size), deadline) => {
                Err(self.unreachable(url, "no answer in time"))
            }
        }
    }

    async fn send_unbounded(self: &Arc<Self>, url: &str, request: RequestBuilder) -> Result<HttpReply, RemoteError> {
        match tokio::time::timeout(self.timeout, request.send()).await {
            Ok(Ok(response)) => Ok(HttpReply::new(Arc::clone(self), url, response, u64::MAX, None)),
            Ok(Err(e)) => Err(self.transport(url, &e)),
            Err(_) => Err(self.unreachable(url, "no answer in time")),
        }
    }

    /// What a failure below HTTP is to the caller.
    fn transport(&self, url: &str, e: &reqwest::Error) -> RemoteError {
        match classify::transport(e) {
            classify::Transport::Unreachable(why) => self.unreachable(url, &why),
            classify::Transport::Protocol(why) => self.protocol(url, &why),
        }
    }

    fn unreachable(&self, url: &str, why: &str) -> RemoteError {
        *self.known() = Known::default();
        RemoteError::Unreachable { url: url.to_owned(), why: self.clean(why) }
    }

    fn protocol(&self, url: &str, why: &str) -> RemoteError {
        RemoteError::Protocol { url: url.to_owned(), why: self.clean(why) }
    }

    /// A server's words, fit to be shown: without control characters and the token, and not long.
    fn clean(&self, text: &str) -> String {
        classify::clean(text, self.token.expose_secret())
    }
}

impl fmt::Debug for HttpRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRemote").field("origin", &self.inner.origin).finish_non_exhaustive()
    }
}

impl Remote for HttpRemote {
    fn forget_index(&self) {
        self.inner.known().index = None;
    }

    fn written_at(&self) -> Option<HistoryPoint> {
        self.inner.written().clone()
    }

    async fn index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<IndexUpdate, RemoteError> {
        self.read_index(since, known).await
    }

    async fn get(&self, path: &RelPath) -> Result<GetReply, RemoteError> {
        self.read_blob(path).await
    }

    async fn put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    ) -> Result<PutReply, RemoteError> {
        if self.inner.namespace.is_flat() {
            return self.flat_put(path, precondition, body).await;
        }
        self.namespaced_put(path, precondition, version, body).await
    }

    async fn delete(&self, path: &RelPath, md5: Md5, version: u64) -> Result<DeleteReply, RemoteError> {
        if self.inner.namespace.is_flat() {
            return self.flat_delete(path, md5).await;
        }
        self.namespaced_delete(path, md5, version).await
    }

    async fn delete_again(&self, path: &RelPath, tombstone: Md5) -> Result<DeleteReply, RemoteError> {
        if self.inner.namespace.is_flat() {
            return self.flat_delete(path, tombstone).await;
        }
        self.namespaced_delete_again(path).await
    }

    async fn batch(
        &self,
        requests: Vec<(RelPath, BatchRequest)>,
    ) -> Result<Option<Vec<Option<BatchReply>>>, RemoteError> {
        self.send_batch(requests).await
    }
}
