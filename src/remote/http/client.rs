//! [`HttpRemote`]: sets up the client, asks for the proxy's health, and sends requests.

use std::fmt;
use std::sync::Arc;

use http::header::USER_AGENT;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use parking_lot::Mutex;
use reqwest::RequestBuilder;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::classify;
use super::link::{MAX_SMALL, ProxyLink};
use super::options::{AGENT, HttpOptions, OptionsError};
use super::reply::HttpReply;
use super::upload::Progress;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{
    Health, HistoryPoint, IndexCursor, Namespace, Precondition, capability, encode_path, is_loopback,
};
use crate::remote::{
    BatchReply, BatchRequest, DeleteReply, GetReply, IndexUpdate, PutReply, Remote, RemoteError, RemoteVersion,
    UploadBody,
};

/// One namespace of a Memory Proxy. A clone uses the same connections.
#[derive(Clone)]
pub struct HttpRemote {
    pub(super) link: Arc<ProxyLink>,
}

impl HttpRemote {
    /// Sets up the client. It sends nothing yet.
    pub fn new(options: HttpOptions) -> Result<Self, OptionsError> {
        let namespace =
            Namespace::parse(&options.namespace).map_err(|e| OptionsError::Namespace(options.namespace.clone(), e))?;
        let origin = options.checked_origin()?;
        let authorization = options.authorization()?;
        let loopback = is_loopback(origin.host_str().unwrap_or_default());
        let device = Some(encode_path(&options.device)).filter(|d| !d.is_empty());
        let device = device.and_then(|d| HeaderValue::from_str(&d).ok());
        Ok(Self {
            link: Arc::new(ProxyLink {
                client: options.client(&origin)?,
                origin: origin.as_str().trim_end_matches('/').to_owned(),
                namespace,
                loopback,
                token: options.token,
                authorization,
                device,
                timeout: options.timeout,
                max_file_size: options.max_file_size,
                permits: Arc::new(Semaphore::new(options.concurrency.max(1))),
                facts: Mutex::default(),
                written: Mutex::default(),
            }),
        })
    }

    /// `GET /health`, without the token. Records the capabilities. A proxy without storage gives [`RemoteError::Server`] with
    /// status 503.
    pub async fn health(&self) -> Result<Health, RemoteError> {
        Ok(self.health_and_time().await?.0)
    }

    /// [`HttpRemote::health`], with the proxy's clock where the answer has a `Date`.
    pub async fn health_and_time(&self) -> Result<(Health, Option<Timestamp>), RemoteError> {
        let url = self.link.url("/health");
        let request = self.link.client.get(&url).header(USER_AGENT, AGENT);
        let answer = self.send(&url, request, None, MAX_SMALL).await?;
        if answer.status() != StatusCode::OK {
            return Err(answer.refusal().await);
        }
        let time = classify::date(answer.headers());
        let text = answer.read(MAX_SMALL).await?;
        let health: Health = serde_json::from_slice(&text)
            .map_err(|e| self.link.protocol(&url, &format!("its health is not what was expected: {e}")))?;
        self.link.facts.lock().capabilities = Some(health.capabilities.clone().into());
        Ok((health, time))
    }

    /// The capabilities of the proxy. They are requested once, and again after the proxy could not be reached. A proxy that
    /// refuses `/health` (4xx) has no capabilities.
    pub async fn capabilities(&self) -> Result<Arc<[String]>, RemoteError> {
        let known = self.link.facts.lock().capabilities.clone();
        if let Some(known) = known {
            return Ok(known);
        }
        match self.health().await {
            Ok(health) => Ok(health.capabilities.into()),
            Err(RemoteError::Refused { .. } | RemoteError::Auth { .. }) => {
                let none: Arc<[String]> = Arc::new([]);
                self.link.facts.lock().capabilities = Some(Arc::clone(&none));
                Ok(none)
            }
            Err(e) => Err(e),
        }
    }

    /// True if the proxy advertises `capability`.
    pub async fn supports(&self, capability: &str) -> Result<bool, RemoteError> {
        Ok(self.capabilities().await?.iter().any(|c| c == capability))
    }

    /// The URL of a blob. The error `Name` means that this proxy would read the URL as a path of another namespace.
    pub(super) async fn blob_url(&self, path: &RelPath) -> Result<String, RemoteError> {
        let ns = &self.link.namespace;
        let url = self.link.url(&ns.blob(path));
        if ns.hides_slash(path) && !self.supports(capability::ENCODED_SLASH).await? {
            return Err(RemoteError::Name {
                url,
                why: "this proxy cannot hold a folder called `blob` in a namespace; rename the folder".to_owned(),
            });
        }
        Ok(url)
    }

    /// The URL path of this namespace below `root`, such as `/events`.
    pub(super) fn namespace_path(&self, root: &str) -> String {
        self.link.namespace.below(root)
    }

    /// Sends the request and waits for the head of the answer. `upload`: the progress of the body and its size. `cap`: the
    /// most bytes that the answer may have.
    pub(super) async fn send(
        &self,
        url: &str,
        request: RequestBuilder,
        upload: Option<(&Progress, u64)>,
        cap: u64,
    ) -> Result<HttpReply, RemoteError> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.link.permits).acquire_owned().await.ok();
        let started = Progress::new();
        let (progress, size) = upload.unwrap_or((&started, 0));
        progress.touch();
        let deadline = Instant::now() + self.link.total_timeout(size);
        tokio::select! {
            answer = request.send() => match answer {
                Ok(response) => {
                    self.link.note_written(response.headers());
                    Ok(HttpReply::new(Arc::clone(&self.link), url, response, cap, permit))
                }
                Err(e) => Err(self.link.transport_error(url, "", &e)),
            },
            () = progress.idle(self.link.idle_timeout(size), deadline) => {
                Err(self.link.unreachable(url, "no answer in time"))
            }
        }
    }
}

impl Remote for HttpRemote {
    fn forget_index(&self) {
        self.link.facts.lock().index = None;
    }

    fn written_at(&self) -> Option<HistoryPoint> {
        self.link.written.lock().clone()
    }

    async fn index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<IndexUpdate, RemoteError> {
        self.fetch_index(since, known).await
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
        self.write_blob(path, precondition, version, body).await
    }

    async fn delete(&self, path: &RelPath, md5: Md5, version: u64) -> Result<DeleteReply, RemoteError> {
        self.delete_blob(path, md5, version).await
    }

    async fn delete_again(&self, path: &RelPath, tombstone: Md5) -> Result<DeleteReply, RemoteError> {
        self.delete_tombstone(path, tombstone).await
    }

    async fn versions(&self, path: &RelPath) -> Result<Option<Vec<RemoteVersion>>, RemoteError> {
        self.list_versions(path).await
    }

    fn keeps_versions(&self) -> Option<bool> {
        let capabilities = self.link.facts.lock().capabilities.clone()?;
        Some(capabilities.iter().any(|name| name == capability::VERSIONS))
    }

    async fn get_version(&self, path: &RelPath, version: u64) -> Result<GetReply, RemoteError> {
        self.read_version(path, version).await
    }

    async fn batch(
        &self,
        requests: Vec<(RelPath, BatchRequest)>,
    ) -> Result<Option<Vec<Option<BatchReply>>>, RemoteError> {
        self.send_batch(requests).await
    }
}

impl fmt::Debug for HttpRemote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRemote").field("origin", &self.link.origin).finish_non_exhaustive()
    }
}
