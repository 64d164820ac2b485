//! The bucket as we speak to it: look, fetch, list, and writes that happen on a condition or not at all.
//!
//! Reads are tried again. A conditional write is not: a retry could find its own first attempt and call it a lost
//! race. What became of a write without an answer is for the caller to find out, by looking.

use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
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

use super::super::{IndexTraffic, StoreError};
use super::http::{Connector, stays_here};
use super::layout::Described;
use super::listing::{LeftOut, Listed};
use super::spool::Content;
use super::{EtagQuotes, S3Options};

/// Attempts of a read beyond the first.
const READ_RETRIES: usize = 4;
/// After this long no further attempt is begun.
const READ_PATIENCE: Duration = Duration::from_secs(20);

/// A bucket with its credentials.
#[derive(Debug)]
pub struct Bucket {
    reads: AmazonS3,
    writes: AmazonS3,
    /// For bodies from a file: their digest would need another reading.
    unsigned: AmazonS3,
    quotes: EtagQuotes,
    /// Of the index objects.
    pub traffic: Counted,
}

/// Counts [`IndexTraffic`].
#[derive(Debug, Default)]
pub struct Counted {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Counted {
    pub fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub fn write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it so far.
    pub fn so_far(&self) -> IndexTraffic {
        IndexTraffic { reads: self.reads.load(Ordering::Relaxed), writes: self.writes.load(Ordering::Relaxed) }
    }
}

/// An object without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// As the store gave it, quotes included.
    pub etag: String,
    /// When the store says it was written: milliseconds since the epoch.
    pub modified: u64,
    /// Bytes.
    pub size: u64,
    pub described: Described,
}

/// What a fetch found.
pub enum Fetched {
    Absent,
    /// It still has the ETag that was known.
    Unchanged,
    Found(Object, BoxStream<'static, Result<Bytes, StoreError>>),
}

/// What became of a conditional write.
#[derive(Debug)]
pub enum Landing {
    /// It is there, under this ETag.
    Landed(String),
    /// Something else than expected was there, or another write is under way: look again.
    Lost,
    /// No answer, or none that tells: it may have landed, or land yet.
    Unsure(StoreError),
}

impl Bucket {
    /// Sets up the client; asks nothing of the store.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn new(options: &S3Options) -> Result<Self, StoreError> {
        let refused = |why: String| StoreError::S3Refused(why);
        let endpoint = match &options.endpoint {
            Some(text) => Some(checked_endpoint(text, options.allow_http).map_err(refused)?),
            None => None,
        };
        if options.bucket.is_empty() {
            return Err(refused("S3_BUCKET is empty".to_owned()));
        }
        let connector = Connector::new(endpoint.as_ref()).map_err(refused)?;
        let build = |retries: usize, signed: bool| {
            let retry = RetryConfig { max_retries: retries, retry_timeout: READ_PATIENCE, ..RetryConfig::default() };
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
            builder.build().map_err(|e| StoreError::S3Refused(plain(&e)))
        };
        Ok(Self {
            reads: build(READ_RETRIES, true)?,
            writes: build(0, true)?,
            unsigned: build(0, false)?,
            quotes: options.etag_quotes,
            traffic: Counted::default(),
        })
    }

    /// The object without its body, `None` where there is none.
    pub async fn head(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        match self.reads.get_opts(key, GetOptions { head: true, ..GetOptions::default() }).await {
            Ok(found) => Ok(Some(object(&found.meta, &found.attributes))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(&e)),
        }
    }

    /// Whether the bucket is there and may be read: asks for the first byte at `key`, where nothing need be.
    pub async fn answers(&self, key: &Key) -> Result<(), StoreError> {
        // Not a HEAD, whose refusals have no body that would say why.
        let first = GetOptions { range: Some((0..1).into()), ..GetOptions::default() };
        match self.reads.get_opts(key, first).await {
            // Read to its end, so that the connection can be used again.
            Ok(found) => found.bytes().await.map(drop).map_err(|e| failed(&e)),
            Err(e) => match (code(&e.to_string()), &e) {
                (Some("NoSuchBucket"), _) => Err(failed(&e)),
                (Some("InvalidRange"), _) | (_, Error::NotFound { .. }) => Ok(()),
                _ => Err(failed(&e)),
            },
        }
    }

    /// The object, unless its ETag is `known`.
    pub async fn get(&self, key: &Key, known: Option<&str>) -> Result<Fetched, StoreError> {
        let if_none_match = known.map(|etag| self.quoted(etag));
        match self.reads.get_opts(key, GetOptions { if_none_match, ..GetOptions::default() }).await {
            Ok(found) => {
                let object = object(&found.meta, &found.attributes);
                Ok(Fetched::Found(object, found.into_stream().map_err(|e| failed(&e)).boxed()))
            }
            Err(Error::NotFound { .. }) => Ok(Fetched::Absent),
            Err(Error::NotModified { .. } | Error::Precondition { .. }) if known.is_some() => Ok(Fetched::Unchanged),
            Err(e) => Err(failed(&e)),
        }
    }

    /// Writes an object if what is there has the ETag `held`, or nothing is there where that is `None`.
    ///
    /// # Errors
    /// When the store refused for another reason than the condition: certainly nothing was written.
    pub async fn put(
        &self,
        key: &Key,
        held: Option<&str>,
        described: &Described,
        content: &Content,
    ) -> Result<Landing, StoreError> {
        let mode = match held {
            None => PutMode::Create,
            Some(etag) => PutMode::Update(UpdateVersion { e_tag: Some(self.quoted(etag)), version: None }),
        };
        let mut options = PutOptions { mode, attributes: described.written(), ..PutOptions::default() };
        let (client, payload) = match content {
            Content::Inline(bytes) => (&self.writes, PutPayload::from(bytes.clone())),
            Content::File(body) => {
                let mut extensions = Extensions::new();
                extensions.insert(body.clone());
                options.extensions = extensions;
                (&self.unsigned, PutPayload::new())
            }
        };
        match client.put_opts(key, payload, options).await {
            Ok(put) => match put.e_tag {
                Some(etag) => Ok(Landing::Landed(etag)),
                None => Ok(Landing::Unsure(StoreError::S3("the store gave no ETag".to_owned()))),
            },
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }) => {
                Ok(Landing::Lost)
            }
            // What was held is gone.
            Err(e @ Error::NotFound { .. }) if held.is_some() && code(&e.to_string()) != Some("NoSuchBucket") => {
                Ok(Landing::Lost)
            }
            Err(
                e @ (Error::PermissionDenied { .. }
                | Error::Unauthenticated { .. }
                | Error::NotFound { .. }
                | Error::InvalidPath { .. }
                | Error::NotImplemented { .. }),
            ) => Err(failed(&e)),
            Err(e) if is_bad(&e.to_string()) => Err(failed(&e)),
            Err(e) => Ok(Landing::Unsure(failed(&e))),
        }
    }

    /// Has the store copy an object with its metadata, over whatever is at `to`. False: there is nothing at `from`.
    pub async fn copy(&self, from: &Key, to: &Key) -> Result<bool, StoreError> {
        match self.reads.copy(from, to).await {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(failed(&e)),
        }
    }

    /// The objects below `folder` that can be asked for, in no order; `None` is the whole bucket.
    pub fn list(&self, folder: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta, StoreError>> {
        let named = async |listed| match listed {
            Listed::Object(meta) => Ok(Some(meta)),
            Listed::Odd(_) => Ok(None),
        };
        self.list_all(folder).try_filter_map(named).boxed()
    }

    /// Everything below `folder`, in no order; `None` is the whole bucket.
    pub fn list_all(&self, folder: Option<&Key>) -> BoxStream<'static, Result<Listed, StoreError>> {
        let (client, prefix) = (self.reads.clone(), folder.map(|folder| format!("{folder}/")));
        let pages = stream::try_unfold(Some(None), move |page_token| {
            let (client, prefix) = (client.clone(), prefix.clone());
            async move {
                let Some(page_token) = page_token else { return Ok(None) };
                let options = PaginatedListOptions { page_token, ..PaginatedListOptions::default() };
                let page = client.list_paginated(prefix.as_deref(), options).await.map_err(|e| failed(&e))?;
                let LeftOut(odd) = page.result.extensions.get().cloned().unwrap_or_default();
                let objects = page.result.objects.into_iter().map(Listed::Object);
                let listed: Vec<_> = objects.chain(odd.into_iter().map(Listed::Odd)).map(Ok).collect();
                // Some stores give an empty one with the last page.
                Ok(Some((stream::iter(listed), page.page_token.filter(|token| !token.is_empty()).map(Some))))
            }
        });
        pages.try_flatten().boxed()
    }

    /// Removes an object, whatever it is: for scratch objects of our own.
    pub async fn remove(&self, key: &Key) -> Result<(), StoreError> {
        removed(self.reads.delete(key).await)
    }

    /// [`Bucket::remove`] that is not tried again: another may be there by then.
    pub async fn remove_once(&self, key: &Key) -> Result<(), StoreError> {
        removed(self.writes.delete(key).await)
    }

    /// An ETag as this store wants it in a condition.
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

fn object(meta: &ObjectMeta, attributes: &object_store::Attributes) -> Object {
    Object {
        etag: meta.e_tag.clone().unwrap_or_default(),
        modified: modified(meta),
        size: meta.size,
        described: Described::read(attributes),
    }
}

/// When the store says an object was written: milliseconds since the epoch.
pub fn modified(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0)
}

/// A body whole, at most `limit` bytes.
pub async fn whole(mut body: BoxStream<'static, Result<Bytes, StoreError>>, limit: u64) -> Result<Bytes, StoreError> {
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
    let url = Url::parse(text).map_err(|e| format!("S3_ENDPOINT_URL {text:?} is no URL: {e}"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if allow_http || stays_here(&url) => Ok(url),
        "http" => Err(format!(
            "S3_ENDPOINT_URL {text:?} is plain http beyond this machine: your files would travel in the clear; use \
             https, or set S3_ALLOW_HTTP=true if the network between is yours alone"
        )),
        _ => Err(format!("S3_ENDPOINT_URL {text:?} is neither http nor https")),
    }
}

fn failed(e: &Error) -> StoreError {
    if is_never(e) { StoreError::S3Denied(plain(e)) } else { StoreError::S3(plain(e)) }
}

/// Whether the store will not do it the next time either: it may not, or it cannot.
fn is_never(e: &Error) -> bool {
    let kinds =
        matches!(e, Error::PermissionDenied { .. } | Error::Unauthenticated { .. } | Error::NotImplemented { .. });
    kinds
        || code(&e.to_string())
            .is_some_and(|code| ["AccessDenied", "NotImplemented", "MethodNotAllowed"].contains(&code))
}

/// Whether S3 says that the request as such is wrong, and not that it came badly: it will not take it the next time.
fn is_bad(text: &str) -> bool {
    // The client gives the status in its words only.
    let came_badly = ["BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"];
    text.contains("status code: 400") && code(text).is_some_and(|code| !came_badly.contains(&code))
}

/// S3's word for what is wrong, where an answer has one.
fn code(text: &str) -> Option<&str> {
    tag(text, "Code")
}

fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(inner, _)| inner.trim())
}

/// What an error of the client says, without the XML: S3's own words where it has some.
fn plain(e: &Error) -> String {
    let text = e.to_string();
    let mut plain = match (code(&text), tag(&text, "Message")) {
        (Some(code), Some(message)) if !message.is_empty() => format!("{message} ({code})"),
        (Some(code), _) => code.to_owned(),
        _ => text.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    let mut source = e.source();
    let mut deepest = None;
    while let Some(inner) = source {
        deepest = Some(inner.to_string());
        source = inner.source();
    }
    if let Some(deepest) = deepest.filter(|d| code(&text).is_none() && !plain.contains(d.as_str())) {
        plain = format!("{plain}: {deepest}");
    }
    plain.chars().take(600).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_or_on_this_machine() {
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

    #[test]
    fn errors_are_told_in_the_stores_words() {
        let source = "status 404: <Error><Code>NoSuchBucket</Code><Message>No such bucket</Message></Error>".into();
        let e = Error::Generic { store: "S3", source };
        assert_eq!(plain(&e), "No such bucket (NoSuchBucket)");
        let source: Box<dyn std::error::Error + Send + Sync> = Box::new(std::io::Error::other("refused"));
        assert_eq!(plain(&Error::Generic { store: "S3", source }), "Generic S3 error: refused");
    }
}
