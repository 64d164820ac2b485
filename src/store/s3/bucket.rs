//! The client of the bucket: head, get, list, copy, delete and conditional writes.
//!
//! Reads are retried. A conditional write is not, because a retry could lose the race to its own first attempt. After a
//! write without an answer the caller reads the object to find out what happened.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use http::Extensions;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Key;
use object_store::{
    Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
    UpdateVersion,
};
use reqwest::Url;
use secrecy::ExposeSecret;

use super::super::StoreError;
use super::super::body::BodyContent;
use super::bucket_error::{error_code, failed, is_bad_request, message_of};
use super::http::{S3Connector, is_local};
use super::listing::{ListedObject, UnnamableKeys};
use super::object_metadata::ObjectMetadata;
use super::options::{EtagQuotes, S3Options};

/// Further attempts of a failed read.
const READ_RETRIES: usize = 4;
/// No further attempt starts after this time.
const READ_RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// A bucket with its credentials.
#[derive(Debug)]
pub(super) struct Bucket {
    reads: AmazonS3,
    writes: AmazonS3,
    /// For bodies in a file: a signature would need another read of the file.
    unsigned: AmazonS3,
    quotes: EtagQuotes,
    /// Requests for index objects, see [`IndexTraffic`](super::super::IndexTraffic).
    pub(super) index_reads: AtomicU64,
    pub(super) index_writes: AtomicU64,
}

/// An object without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectInfo {
    /// As the store returned it, with quotes.
    pub(super) etag: String,
    /// The time of the write by the store's clock: milliseconds since the epoch.
    pub(super) modified: u64,
    /// Bytes.
    pub(super) size: u64,
    pub(super) metadata: ObjectMetadata,
}

/// Result of a get.
pub(super) enum FetchOutcome {
    Absent,
    /// The object still has the known ETag.
    Unchanged,
    Found(Box<ObjectInfo>, BoxStream<'static, Result<Bytes, StoreError>>),
}

/// Result of a conditional write.
#[derive(Debug)]
pub(super) enum ConditionalPut {
    /// The new ETag.
    Written(String),
    /// The condition does not hold, or another write is in flight.
    Lost,
    /// No clear answer: the write may have happened, or may still happen.
    Unknown(StoreError),
}

impl Bucket {
    /// Sets up the client. Sends no request, and fails only if the options are wrong.
    pub(super) fn new(options: &S3Options) -> Result<Self, StoreError> {
        let refused = |why: String| StoreError::S3Refused(why);
        let endpoint = match &options.endpoint {
            Some(text) => Some(checked_endpoint(text, options.allow_http).map_err(refused)?),
            None => None,
        };
        if options.bucket.is_empty() {
            return Err(refused("S3_BUCKET is empty".to_owned()));
        }
        let connector = S3Connector::new(endpoint.as_ref()).map_err(refused)?;
        let build = |retries: usize, signed: bool| {
            let retry =
                RetryConfig { max_retries: retries, retry_timeout: READ_RETRY_TIMEOUT, ..RetryConfig::default() };
            let mut builder = AmazonS3Builder::new()
                .with_bucket_name(&options.bucket)
                .with_region(&options.region)
                .with_access_key_id(&options.access_key_id)
                .with_secret_access_key(options.secret_access_key.expose_secret())
                .with_conditional_put(S3ConditionalPut::ETagMatch)
                .with_unsigned_payload(!signed)
                .with_retry(retry)
                .with_http_connector(connector.clone());
            if let Some(token) = &options.session_token {
                builder = builder.with_token(token.expose_secret());
            }
            if let Some(endpoint) = &endpoint {
                let text = endpoint.as_str().trim_end_matches('/');
                builder = builder.with_endpoint(text).with_allow_http(endpoint.scheme() == "http");
            }
            builder.build().map_err(|e| StoreError::S3Refused(message_of(&e)))
        };
        Ok(Self {
            reads: build(READ_RETRIES, true)?,
            writes: build(0, true)?,
            unsigned: build(0, false)?,
            quotes: options.etag_quotes,
            index_reads: AtomicU64::new(0),
            index_writes: AtomicU64::new(0),
        })
    }

    /// The object without its body; `None` if it is absent.
    pub(super) async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
        match self.reads.get_opts(key, GetOptions { head: true, ..GetOptions::default() }).await {
            Ok(found) => Ok(Some(object(&found.meta, &found.attributes))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(&e)),
        }
    }

    /// Checks that the bucket exists and can be read. Requests the first byte at `key`, which may be absent.
    pub(super) async fn check_access(&self, key: &Key) -> Result<(), StoreError> {
        // A failed HEAD has no body with the reason.
        let first = GetOptions { range: Some((0..1).into()), ..GetOptions::default() };
        match self.reads.get_opts(key, first).await {
            // Read it completely, so that the connection can be reused.
            Ok(found) => found.bytes().await.map(drop).map_err(|e| failed(&e)),
            Err(e) => match (error_code(&e.to_string()), &e) {
                (Some("NoSuchBucket"), _) => Err(failed(&e)),
                (Some("InvalidRange"), _) | (_, Error::NotFound { .. }) => Ok(()),
                _ => Err(failed(&e)),
            },
        }
    }

    /// The object, unless its ETag is `known`.
    pub(super) async fn get(&self, key: &Key, known: Option<&str>) -> Result<FetchOutcome, StoreError> {
        let if_none_match = known.map(|etag| self.quoted(etag));
        match self.reads.get_opts(key, GetOptions { if_none_match, ..GetOptions::default() }).await {
            Ok(found) => {
                let object = Box::new(object(&found.meta, &found.attributes));
                Ok(FetchOutcome::Found(object, found.into_stream().map_err(|e| failed(&e)).boxed()))
            }
            Err(Error::NotFound { .. }) => Ok(FetchOutcome::Absent),
            Err(Error::NotModified { .. } | Error::Precondition { .. }) if known.is_some() => {
                Ok(FetchOutcome::Unchanged)
            }
            Err(e) => Err(failed(&e)),
        }
    }

    /// Writes an object if the current one has the ETag `held`; `None` requires that there is none.
    ///
    /// # Errors
    /// If the store refused the request for another reason than the condition. Then nothing was written.
    pub(super) async fn put(
        &self,
        key: &Key,
        held: Option<&str>,
        metadata: &ObjectMetadata,
        content: &BodyContent,
    ) -> Result<ConditionalPut, StoreError> {
        let mode = match held {
            None => PutMode::Create,
            Some(etag) => PutMode::Update(UpdateVersion { e_tag: Some(self.quoted(etag)), version: None }),
        };
        let mut options = PutOptions { mode, attributes: metadata.to_attributes(), ..PutOptions::default() };
        let (client, payload) = match content {
            BodyContent::Inline(bytes) => (&self.writes, PutPayload::from(bytes.clone())),
            BodyContent::File(body) => {
                let mut extensions = Extensions::new();
                extensions.insert(body.clone());
                options.extensions = extensions;
                (&self.unsigned, PutPayload::new())
            }
        };
        match client.put_opts(key, payload, options).await {
            Ok(put) => match put.e_tag {
                Some(etag) => Ok(ConditionalPut::Written(etag)),
                None => Ok(ConditionalPut::Unknown(StoreError::S3("the store gave no ETag".to_owned()))),
            },
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }) => {
                Ok(ConditionalPut::Lost)
            }
            // The object was deleted.
            Err(e @ Error::NotFound { .. }) if held.is_some() && error_code(&e.to_string()) != Some("NoSuchBucket") => {
                Ok(ConditionalPut::Lost)
            }
            Err(
                e @ (Error::PermissionDenied { .. }
                | Error::Unauthenticated { .. }
                | Error::NotFound { .. }
                | Error::InvalidPath { .. }
                | Error::NotImplemented { .. }),
            ) => Err(failed(&e)),
            Err(e) if is_bad_request(&e.to_string()) => Err(failed(&e)),
            Err(e) => Ok(ConditionalPut::Unknown(failed(&e))),
        }
    }

    /// As [`Bucket::put`]. Without a clear answer it reads the object, to find out by the id in `metadata` who wrote it.
    /// `Unknown` then means that the object is as before, or cannot be read.
    pub(super) async fn put_once(
        &self,
        key: &Key,
        held: Option<&str>,
        metadata: &ObjectMetadata,
        content: &BodyContent,
    ) -> Result<ConditionalPut, StoreError> {
        let put = self.put(key, held, metadata, content).await?;
        let now = match &put {
            ConditionalPut::Written(_) => return Ok(put),
            ConditionalPut::Lost => self.head(key).await?,
            ConditionalPut::Unknown(_) => match self.head(key).await {
                Ok(now) => now,
                Err(_) => return Ok(put),
            },
        };
        Ok(match now {
            Some(now) if metadata.write.is_some() && now.metadata.write == metadata.write => {
                ConditionalPut::Written(now.etag)
            }
            now if now.as_ref().map(|now| now.etag.as_str()) != held => ConditionalPut::Lost,
            _ => put,
        })
    }

    /// Lets the store copy an object with its metadata, and replace an object at `to`. False: `from` is absent.
    pub(super) async fn copy(&self, from: &Key, to: &Key) -> Result<bool, StoreError> {
        match self.reads.copy(from, to).await {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(failed(&e)),
        }
    }

    /// The objects below `folder` that the client can name, in no order; `None` is the whole bucket.
    pub(super) fn list(&self, folder: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta, StoreError>> {
        let named = async |listed| match listed {
            ListedObject::Named(meta) => Ok(Some(meta)),
            ListedObject::Unnamable(_) => Ok(None),
        };
        self.list_all(folder).try_filter_map(named).boxed()
    }

    /// All objects below `folder`, in no order; `None` is the whole bucket.
    pub(super) fn list_all(&self, folder: Option<&Key>) -> BoxStream<'static, Result<ListedObject, StoreError>> {
        let (client, prefix) = (self.reads.clone(), folder.map(|folder| format!("{folder}/")));
        let pages = stream::try_unfold(Some(None), move |page_token| {
            let (client, prefix) = (client.clone(), prefix.clone());
            async move {
                let Some(page_token) = page_token else { return Ok::<_, StoreError>(None) };
                let options = PaginatedListOptions { page_token, ..PaginatedListOptions::default() };
                let page = client.list_paginated(prefix.as_deref(), options).await.map_err(|e| failed(&e))?;
                let UnnamableKeys(unnamable) = page.result.extensions.get().cloned().unwrap_or_default();
                let objects = page.result.objects.into_iter().map(ListedObject::Named);
                let listed: Vec<_> =
                    objects.chain(unnamable.into_iter().map(ListedObject::Unnamable)).map(Ok).collect();
                // Some stores return an empty token with the last page.
                Ok(Some((stream::iter(listed), page.page_token.filter(|token| !token.is_empty()).map(Some))))
            }
        });
        pages.try_flatten().boxed()
    }

    /// Deletes an object without a condition. Only for objects that no other writer replaces.
    pub(super) async fn remove(&self, key: &Key) -> Result<(), StoreError> {
        removed(self.reads.delete(key).await)
    }

    /// As [`Bucket::remove`], without retries: a retry could delete a newer object.
    pub(super) async fn remove_without_retry(&self, key: &Key) -> Result<(), StoreError> {
        removed(self.writes.delete(key).await)
    }

    /// An ETag in the form that the store wants in a condition.
    fn quoted(&self, etag: &str) -> String {
        match self.quotes {
            EtagQuotes::Keep => etag.to_owned(),
            EtagQuotes::Strip => etag.trim_matches('"').to_owned(),
        }
    }
}

fn removed(done: Result<(), Error>) -> Result<(), StoreError> {
    match done {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(e) => Err(failed(&e)),
    }
}

fn object(meta: &ObjectMeta, attributes: &object_store::Attributes) -> ObjectInfo {
    ObjectInfo {
        etag: meta.e_tag.clone().unwrap_or_default(),
        modified: modified(meta),
        size: meta.size,
        metadata: ObjectMetadata::read(attributes),
    }
}

/// The time of an object's write by the store's clock: milliseconds since the epoch.
pub(super) fn modified(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0)
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_whole(
    mut body: BoxStream<'static, Result<Bytes, StoreError>>,
    limit: u64,
) -> Result<Bytes, StoreError> {
    let mut all = bytes::BytesMut::new();
    while let Some(piece) = body.next().await {
        all.extend_from_slice(&piece?);
        if all.len() as u64 > limit {
            return Err(StoreError::S3(format!("an object is larger than {limit} bytes")));
        }
    }
    Ok(all.freeze())
}

fn checked_endpoint(text: &str, allow_http: bool) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("S3_ENDPOINT_URL {text:?} is not a URL: {e}"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if allow_http || is_local(&url) => Ok(url),
        "http" => Err(format!(
            "S3_ENDPOINT_URL {text:?} is plain http to another machine, so your files would travel unencrypted; use \
             https, or set S3_ALLOW_HTTP=true in a private network"
        )),
        _ => Err(format!("S3_ENDPOINT_URL {text:?} is neither http nor https")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_https_or_local() {
        for ok in ["https://s3.example.org", "http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:1"] {
            assert!(checked_endpoint(ok, false).is_ok(), "{ok}");
        }
        let refused = checked_endpoint("http://minio:9000", false).unwrap_err();
        assert!(refused.contains("S3_ALLOW_HTTP=true"), "{refused}");
        assert!(checked_endpoint("http://minio:9000", true).is_ok());
        for bad in ["minio:9000", "ftp://x", "nowhere"] {
            assert!(checked_endpoint(bad, true).is_err(), "{bad}");
        }
    }
}
