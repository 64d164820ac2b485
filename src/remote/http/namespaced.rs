//! The namespaced dialect where it is not the flat one under another address: writes whose precondition is a version.
//!
//! The agent thinks in content. A version is sent for the content it was recorded with; where none is known, the blob
//! itself is asked, and only the version of just the content that may be replaced is taken (invariant 4).

use http::{Method, StatusCode};

use super::body::HttpReply;
use super::flat::{Sent, current, tombstone};
use super::{HttpRemote, MAX_SMALL, classify};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{CONTENT_MD5, IF_MATCH_VERSION, PREFER, Precondition, RETURN_MINIMAL, capability};
use crate::remote::{DeleteReply, PromisedDigest, PutReply, RemoteError, UploadBody};

/// How often a deletion looks again for the version of the content it is about.
const LOOKS: usize = 3;

/// A version that no write has: versions are milliseconds since 1970.
const NO_VERSION: u64 = 1;

/// What stands at a path now.
enum Look {
    Live {
        md5: Md5,
        version: u64,
    },
    /// A tombstone or nothing; what is known of it.
    Gone {
        tombstone: Option<Md5>,
        version: u64,
    },
}

impl HttpRemote {
    pub(super) async fn namespaced_put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    ) -> Result<PutReply, RemoteError> {
        let expected = match precondition {
            Precondition::Holds(md5) if version == 0 => match self.look(path).await? {
                Look::Live { md5: held, version } | Look::Gone { tombstone: Some(held), version }
                    if held == md5 && version != 0 =>
                {
                    version
                }
                Look::Live { md5, version } => {
                    return Ok(PutReply::Mismatch { current: Some(md5), is_deleted: Some(false), version });
                }
                Look::Gone { tombstone: current, version } => {
                    return Ok(PutReply::Mismatch { current, is_deleted: current.map(|_| true), version });
                }
            },
            // A tombstone's version, where the proxy counts one as existing.
            Precondition::New | Precondition::Holds(_) => version,
        };
        let url = self.blob_url(path).await?;
        let mut request = self.inner.request(Method::PUT, &url);
        if let PromisedDigest::Known(md5) = body.md5 {
            request = request.header(CONTENT_MD5, md5.to_string());
        }
        let request = request.header(IF_MATCH_VERSION, expected).header(PREFER, RETURN_MINIMAL);
        match self.send_blob(&url, request, body).await? {
            Sent::Stored { version } => Ok(PutReply::Stored { version }),
            Sent::Refused(told) => Ok(PutReply::Mismatch {
                current: current(&told),
                is_deleted: told.context.is_deleted,
                version: told_version(&told),
            }),
        }
    }

    pub(super) async fn namespaced_delete(
        &self,
        path: &RelPath,
        md5: Md5,
        version: u64,
    ) -> Result<DeleteReply, RemoteError> {
        let url = self.blob_url(path).await?;
        let mut expected = version;
        for _ in 0..LOOKS {
            if expected == 0 {
                expected = match self.look(path).await? {
                    Look::Live { md5: held, version } if held == md5 => version,
                    Look::Live { md5, .. } => return Ok(DeleteReply::Mismatch { current: Some(md5) }),
                    Look::Gone { .. } => return Ok(DeleteReply::Absent),
                };
            }
            let answer = self.send_delete(&url, expected).await?;
            match answer.status() {
                StatusCode::NO_CONTENT | StatusCode::OK => {
                    answer.finish().await;
                    return Ok(DeleteReply::Done);
                }
                StatusCode::NOT_FOUND => {
                    answer.finish().await;
                    return Ok(DeleteReply::Absent);
                }
                // The same content may have been written again, which gave it another version.
                StatusCode::PRECONDITION_FAILED => {
                    answer.finish().await;
                    expected = 0;
                }
                _ => return Err(answer.refusal().await),
            }
        }
        Ok(DeleteReply::Mismatch { current: None })
    }

    /// Only the tombstone's version is sent. It is asked for before the blob: a later write has a later version, so that
    /// it is not deleted.
    pub(super) async fn namespaced_delete_again(&self, path: &RelPath) -> Result<DeleteReply, RemoteError> {
        let url = self.blob_url(path).await?;
        let answer = self.send_delete(&url, NO_VERSION).await?;
        let version = match answer.status() {
            StatusCode::PRECONDITION_FAILED => told_version(&answer.told().await),
            StatusCode::NOT_FOUND => 0,
            _ => return Err(answer.refusal().await),
        };
        if version == 0 {
            return Ok(DeleteReply::Absent);
        }
        if let Look::Live { md5, .. } = self.look(path).await? {
            return Ok(DeleteReply::Mismatch { current: Some(md5) });
        }
        let answer = self.send_delete(&url, version).await?;
        let deleted = match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::OK => DeleteReply::Done,
            StatusCode::NOT_FOUND => DeleteReply::Absent,
            StatusCode::PRECONDITION_FAILED => DeleteReply::Mismatch { current: None },
            _ => return Err(answer.refusal().await),
        };
        answer.finish().await;
        Ok(deleted)
    }

    async fn send_delete(&self, url: &str, version: u64) -> Result<HttpReply, RemoteError> {
        let request = self.inner.request(Method::DELETE, url);
        let request = request.header(IF_MATCH_VERSION, version).header(PREFER, RETURN_MINIMAL);
        self.inner.send(url, request, None, MAX_SMALL).await
    }

    /// Asks for what the path holds, without its content where the proxy is known to answer HEAD.
    async fn look(&self, path: &RelPath) -> Result<Look, RemoteError> {
        let honest = self.supports(capability::HONEST_412).await?;
        let url = self.blob_url(path).await?;
        let request = self.inner.request(if honest { Method::HEAD } else { Method::GET }, &url);
        let answer = self.inner.send(&url, request, None, self.inner.max_file_size).await?;
        let version = answer.version();
        match answer.status() {
            StatusCode::OK => {
                let md5 = answer.etag_md5();
                let look = match md5 {
                    Some(_) if version == 0 => Err(answer.protocol("the blob has no X-Version that is a number")),
                    Some(md5) => Ok(Look::Live { md5, version }),
                    None => Err(answer.protocol("the blob has no ETag that is an MD5 in quotes")),
                };
                answer.finish().await;
                look
            }
            StatusCode::NOT_FOUND => {
                let tombstone = tombstone(&answer, honest)?;
                answer.finish().await;
                Ok(Look::Gone { tombstone, version })
            }
            _ => Err(answer.refusal().await),
        }
    }
}

/// The version that a 412 says is held; 0 for nothing, no word and nonsense.
fn told_version(told: &classify::Told) -> u64 {
    told.context.current_version.as_deref().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
