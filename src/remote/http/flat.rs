//! Writes in the flat dialect. Their precondition is a content.

use http::header::IF_MATCH;
use http::{Method, StatusCode};
use reqwest::RequestBuilder;

use super::classify::ErrorBody;
use super::client::HttpRemote;
use super::link::MAX_SMALL;
use super::upload::Upload;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{CONTENT_MD5, Precondition};
use crate::remote::{DeleteReply, PutReply, RemoteError, UploadBody};

impl HttpRemote {
    pub(super) async fn flat_put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        body: UploadBody,
    ) -> Result<PutReply, RemoteError> {
        let url = self.blob_url(path).await?;
        let request = self.link.request(Method::PUT, &url).header(CONTENT_MD5, precondition.to_string());
        match self.send_blob(&url, request, body).await? {
            WriteReply::Stored { .. } => Ok(PutReply::Stored { version: 0 }),
            WriteReply::Mismatch(body) => {
                Ok(PutReply::Mismatch { current: body.current_md5(), is_deleted: body.context.is_deleted, version: 0 })
            }
        }
    }

    /// Sends a PUT. `request` has all other headers.
    pub(super) async fn send_blob(
        &self,
        url: &str,
        request: RequestBuilder,
        body: UploadBody,
    ) -> Result<WriteReply, RemoteError> {
        let (upload, sent) = (Upload::new(), body.md5.clone());
        // If the answer comes before the end of the upload, the rest is not sent.
        let _rest = upload.stop_on_drop();
        let answer = self.send_content(url, request, body, &upload).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => match answer.etag_md5() {
                Some(md5) if sent.get() == Some(md5) => {
                    let version = answer.version();
                    // The answer may carry an index, which is not needed here.
                    answer.finish().await;
                    Ok(WriteReply::Stored { version })
                }
                Some(md5) => Err(answer.protocol(&format!("it stored {md5}, which is not the content that was sent"))),
                None => Err(answer.protocol(&format!("a write was answered with {}", answer.describe_bad_etag()))),
            },
            StatusCode::PRECONDITION_FAILED => Ok(WriteReply::Mismatch(answer.error_body().await)),
            // The server may answer an aborted body, but the reason is a failure here.
            _ => match upload.failure() {
                Some(why) => Err(RemoteError::Source(why)),
                None => Err(answer.refusal().await),
            },
        }
    }

    pub(super) async fn flat_delete(&self, path: &RelPath, md5: Md5) -> Result<DeleteReply, RemoteError> {
        let url = self.blob_url(path).await?;
        let request = self.link.request(Method::DELETE, &url).header(IF_MATCH, format!("\"{md5}\""));
        let answer = self.send(&url, request, None, MAX_SMALL).await?;
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
}

/// The answer to a PUT, for both dialects.
pub(super) enum WriteReply {
    Stored {
        version: u64,
    },
    /// A 412.
    Mismatch(ErrorBody),
}
