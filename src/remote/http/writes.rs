//! Writes in both dialects. The precondition of a flat write is a content, and that of a namespaced one is a version.
//!
//! The agent's preconditions are contents. If the version of a content is not known, it is read from the proxy, and used
//! only if the path holds just that content (invariant 4).

use http::header::IF_MATCH;
use http::{Method, StatusCode};
use reqwest::RequestBuilder;

use super::classify::ErrorBody;
use super::client::HttpRemote;
use super::download::tombstone;
use super::link::MAX_SMALL;
use super::reply::HttpReply;
use super::upload::Upload;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{CONTENT_MD5, IF_MATCH_VERSION, PREFER, Precondition, RETURN_MINIMAL, capability};
use crate::remote::{DeleteReply, PromisedDigest, PutReply, RemoteError, UploadBody};

/// Most attempts of a deletion to find the version of its content.
const MAX_DELETE_ATTEMPTS: usize = 3;

/// A version that no path has, because versions are milliseconds since 1970.
const NO_VERSION: u64 = 1;

/// The state of a path on the proxy.
enum HeldVersion {
    Live {
        md5: Md5,
        version: u64,
    },
    /// A tombstone or nothing, as far as it is known.
    Gone {
        tombstone: Option<Md5>,
        version: u64,
    },
}

impl HttpRemote {
    /// As [`Remote::put`](crate::remote::Remote::put).
    pub(super) async fn write_blob(
        &self,
        path: &RelPath,
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    ) -> Result<PutReply, RemoteError> {
        let url = self.blob_url(path).await?;
        if self.link.namespace.is_flat() {
            let request = self.link.request(Method::PUT, &url).header(CONTENT_MD5, precondition.to_string());
            return self.send_blob(&url, request, body).await;
        }
        let expected = match precondition {
            Precondition::Holds(md5) if version == 0 => match self.fetch_version(&url).await? {
                HeldVersion::Live { md5: held, version } | HeldVersion::Gone { tombstone: Some(held), version }
                    if held == md5 && version != 0 =>
                {
                    version
                }
                HeldVersion::Live { md5, version } => {
                    return Ok(PutReply::Mismatch { current: Some(md5), is_deleted: Some(false), version });
                }
                HeldVersion::Gone { tombstone: current, version } => {
                    return Ok(PutReply::Mismatch { current, is_deleted: current.map(|_| true), version });
                }
            },
            // The version of a tombstone, where the proxy counts it as existing.
            Precondition::New | Precondition::Holds(_) => version,
        };
        let mut request = self.link.request(Method::PUT, &url);
        if let PromisedDigest::Known(md5) = body.md5 {
            request = request.header(CONTENT_MD5, md5.to_string());
        }
        let request = request.header(IF_MATCH_VERSION, expected).header(PREFER, RETURN_MINIMAL);
        self.send_blob(&url, request, body).await
    }

    /// Sends a PUT. `request` has all other headers.
    async fn send_blob(&self, url: &str, request: RequestBuilder, body: UploadBody) -> Result<PutReply, RemoteError> {
        let (upload, sent) = (Upload::new(), body.md5.clone());
        // If the answer comes before the end of the upload, the rest is not sent.
        let _rest = upload.stop_on_drop();
        let answer = self.send_content(url, request, body, &upload).await?;
        let in_namespace = |version| if self.link.namespace.is_flat() { 0 } else { version };
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => match answer.etag_md5() {
                Some(md5) if sent.get() == Some(md5) => {
                    let version = in_namespace(answer.version());
                    // The answer may carry an index, which is not needed here.
                    answer.finish().await;
                    Ok(PutReply::Stored { version })
                }
                Some(md5) => Err(answer.protocol(&format!("it stored {md5}, which is not the content that was sent"))),
                None => Err(answer.protocol(&format!("a write was answered with {}", answer.describe_bad_etag()))),
            },
            StatusCode::PRECONDITION_FAILED => {
                let body = answer.error_body().await;
                Ok(PutReply::Mismatch {
                    current: body.current_md5(),
                    is_deleted: body.context.is_deleted,
                    version: in_namespace(current_version(&body)),
                })
            }
            // The server may answer an aborted body, but the reason is a failure here.
            _ => match upload.failure() {
                Some(why) => Err(RemoteError::Source(why)),
                None => Err(answer.refusal().await),
            },
        }
    }

    /// As [`Remote::delete`](crate::remote::Remote::delete).
    pub(super) async fn delete_blob(&self, path: &RelPath, md5: Md5, version: u64) -> Result<DeleteReply, RemoteError> {
        let url = self.blob_url(path).await?;
        if self.link.namespace.is_flat() {
            let request = self.link.request(Method::DELETE, &url).header(IF_MATCH, format!("\"{md5}\""));
            return delete_reply(self.send(&url, request, None, MAX_SMALL).await?).await;
        }
        let mut expected = version;
        for _ in 0..MAX_DELETE_ATTEMPTS {
            if expected == 0 {
                expected = match self.fetch_version(&url).await? {
                    HeldVersion::Live { md5: held, version } if held == md5 => version,
                    HeldVersion::Live { md5, .. } => return Ok(DeleteReply::Mismatch { current: Some(md5) }),
                    HeldVersion::Gone { .. } => return Ok(DeleteReply::Absent),
                };
            }
            match delete_reply(self.send_delete(&url, expected).await?).await? {
                // The same content may have been written again, with a new version.
                DeleteReply::Mismatch { .. } => expected = 0,
                done => return Ok(done),
            }
        }
        Ok(DeleteReply::Mismatch { current: None })
    }

    /// As [`Remote::delete_again`](crate::remote::Remote::delete_again).
    ///
    /// In a namespace it sends only the tombstone's version. It is read before the blob, so that a later write, which has a
    /// later version, is not deleted.
    pub(super) async fn delete_tombstone(&self, path: &RelPath, tombstone: Md5) -> Result<DeleteReply, RemoteError> {
        if self.link.namespace.is_flat() {
            return self.delete_blob(path, tombstone, 0).await;
        }
        let url = self.blob_url(path).await?;
        let answer = self.send_delete(&url, NO_VERSION).await?;
        let version = match answer.status() {
            StatusCode::PRECONDITION_FAILED => current_version(&answer.error_body().await),
            StatusCode::NOT_FOUND => 0,
            _ => return Err(answer.refusal().await),
        };
        if version == 0 {
            return Ok(DeleteReply::Absent);
        }
        if let HeldVersion::Live { md5, .. } = self.fetch_version(&url).await? {
            return Ok(DeleteReply::Mismatch { current: Some(md5) });
        }
        match delete_reply(self.send_delete(&url, version).await?).await? {
            DeleteReply::Mismatch { .. } => Ok(DeleteReply::Mismatch { current: None }),
            done => Ok(done),
        }
    }

    /// Sends a DELETE of the namespaced dialect.
    async fn send_delete(&self, url: &str, version: u64) -> Result<HttpReply, RemoteError> {
        let request = self.link.request(Method::DELETE, url);
        let request = request.header(IF_MATCH_VERSION, version).header(PREFER, RETURN_MINIMAL);
        self.send(url, request, None, MAX_SMALL).await
    }

    /// Reads the state of the path: with HEAD where the proxy supports it, else with GET.
    async fn fetch_version(&self, url: &str) -> Result<HeldVersion, RemoteError> {
        let honest = self.supports(capability::HONEST_412).await?;
        let request = self.link.request(if honest { Method::HEAD } else { Method::GET }, url);
        let answer = self.send(url, request, None, self.link.max_file_size).await?;
        let version = answer.version();
        match answer.status() {
            StatusCode::OK => {
                let md5 = answer.etag_md5();
                let held = match md5 {
                    Some(_) if version == 0 => Err(answer.protocol("the blob has no X-Version that is a number")),
                    Some(md5) => Ok(HeldVersion::Live { md5, version }),
                    None => Err(answer.protocol("the blob has no ETag that is an MD5 in quotes")),
                };
                answer.finish().await;
                held
            }
            StatusCode::NOT_FOUND => {
                let tombstone = tombstone(&answer, honest)?;
                answer.finish().await;
                Ok(HeldVersion::Gone { tombstone, version })
            }
            _ => Err(answer.refusal().await),
        }
    }
}

async fn delete_reply(answer: HttpReply) -> Result<DeleteReply, RemoteError> {
    let deleted = match answer.status() {
        StatusCode::NO_CONTENT | StatusCode::OK => DeleteReply::Done,
        StatusCode::NOT_FOUND => DeleteReply::Absent,
        StatusCode::PRECONDITION_FAILED => {
            return Ok(DeleteReply::Mismatch { current: answer.error_body().await.current_md5() });
        }
        _ => return Err(answer.refusal().await),
    };
    answer.finish().await;
    Ok(deleted)
}

/// The version in a 412. 0: nothing held, no version given, or nonsense.
fn current_version(body: &ErrorBody) -> u64 {
    body.context.current_version.as_deref().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
