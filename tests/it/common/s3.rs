//! An S3 server in this process, with real requests and signatures. One mutex around all objects keeps conditional writes
//! from racing. Tests can make it fail as stores and networks do, or misbehave as some stores do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use memsync::digest::Md5;
use memsync::store::s3::S3Options;
use memsync::store::{S3Store, WallClock};
use s3s::auth::SimpleAuth;
use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, DeleteObjectInput, DeleteObjectOutput,
    DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition, GetObjectInput, GetObjectOutput,
    HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, Metadata, Object, PutObjectInput,
    PutObjectOutput, StreamingBlob, Timestamp,
};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3 as S3Api, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) const BUCKET: &str = "notes";
pub(crate) const ACCESS_KEY: &str = "AKIDTEST";
/// Bytes. The limit for the user metadata of an object.
pub(crate) const MOST_METADATA: usize = 2048;
pub(crate) const SECRET_KEY: &str = "a secret that must not be logged";

/// A stored object.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub body: Bytes,
    pub metadata: BTreeMap<String, String>,
    pub content_type: Option<String>,
    pub modified: SystemTime,
}

impl Stored {
    pub(crate) fn new(body: &[u8], metadata: &[(&str, &str)]) -> Self {
        Self {
            body: Bytes::copy_from_slice(body),
            metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            content_type: None,
            modified: SystemTime::now(),
        }
    }

    fn etag(&self) -> String {
        Md5::of(&self.body).to_string()
    }
}

/// The outcome of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The answer is 503, and nothing is done.
    Refused,
    /// The request is done, and the answer is 500.
    DoneBut500,
    /// The request is done, and the connection ends without an answer.
    ReplyLost,
    /// The connection ends before anything is done.
    RequestLost,
    /// The request is done after this time.
    Slow(Duration),
}

/// A way in which a store misbehaves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Quirks {
    pub ignores_if_none_match: bool,
    pub ignores_if_match: bool,
    /// Lets several racing writers win.
    pub races: bool,
    pub drops_metadata: bool,
    /// Accepts only an ETag without quotes in `If-Match`.
    pub wants_bare_etags: bool,
    /// Answers a lost race with an unknown error, as Ceph does.
    pub losers_fail: bool,
    /// Refuses writes outside this prefix.
    pub only_below: Option<&'static str>,
}

type Faults = Arc<dyn Fn(&str, &str) -> Fault + Send + Sync>;

/// The state of the server.
#[derive(Default)]
pub(crate) struct Inside {
    pub objects: Mutex<BTreeMap<String, Stored>>,
    quirks: Quirks,
    /// Decides the fault of a request by its method and key.
    faults: Mutex<Option<Faults>>,
    /// Successful writes by key.
    puts: Mutex<BTreeMap<String, usize>>,
    requests: Mutex<BTreeMap<String, usize>>,
}

/// A server on a free port. It ends when dropped.
pub(crate) struct Server {
    pub addr: SocketAddr,
    pub inside: Arc<Inside>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Quirks::default()).await
    }

    pub(crate) async fn start_with(quirks: Quirks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let inside = Arc::new(Inside { quirks, ..Inside::default() });
        let mut builder = S3ServiceBuilder::new(Api(inside.clone()));
        // A rewritten header would break the signature, so it is not checked then.
        if !quirks.wants_bare_etags {
            builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        }
        let task = tokio::spawn(accept(listener, builder.build(), inside.clone()));
        Self { addr, inside, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The options of a store in this server's bucket.
    pub(crate) fn options(&self, prefix: &str, clock: WallClock) -> S3Options {
        options(&self.endpoint(), ACCESS_KEY, SECRET_KEY, BUCKET, prefix, clock)
    }

    pub(crate) async fn store(&self, prefix: &str, clock: WallClock) -> S3Store {
        S3Store::open(&self.options(prefix, clock)).await.unwrap()
    }

    pub(crate) fn fail(&self, faults: impl Fn(&str, &str) -> Fault + Send + Sync + 'static) {
        *self.inside.faults.lock().unwrap() = Some(Arc::new(faults));
    }

    pub(crate) fn heal(&self) {
        *self.inside.faults.lock().unwrap() = None;
    }

    /// The number of writes of `key` that were done.
    pub(crate) fn puts(&self, key: &str) -> usize {
        self.inside.puts.lock().unwrap().get(key).copied().unwrap_or(0)
    }

    /// The number of requests by method.
    pub(crate) fn requests(&self) -> BTreeMap<String, usize> {
        self.inside.requests.lock().unwrap().clone()
    }

    pub(crate) fn object(&self, key: &str) -> Option<Stored> {
        self.inside.objects.lock().unwrap().get(key).cloned()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.inside.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Writes an object as another program would.
    pub(crate) fn plant(&self, key: &str, stored: Stored) {
        self.inside.objects.lock().unwrap().insert(key.to_owned(), stored);
    }

    pub(crate) fn remove(&self, key: &str) {
        self.inside.objects.lock().unwrap().remove(key);
    }
}

/// The options of a store at any endpoint.
pub(crate) fn options(
    endpoint: &str,
    access: &str,
    secret: &str,
    bucket: &str,
    prefix: &str,
    clock: WallClock,
) -> S3Options {
    let spool = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("s3-spool");
    S3Options {
        endpoint: Some(endpoint.to_owned()),
        prefix: prefix.to_owned(),
        clock,
        ..S3Options::new(bucket, access, secret.to_owned().into(), spool)
    }
}

/// Checks that index and blobs agree. Both are read from the bucket.
pub(crate) fn difference(server: &Server, prefix: &str) -> Vec<String> {
    let index = server.object(&format!("{prefix}/.sync-index.json"));
    let files: BTreeMap<String, Value> = match index {
        None => BTreeMap::new(),
        Some(index) => {
            serde_json::from_value(serde_json::from_slice::<Value>(&index.body).unwrap()["files"].take()).unwrap()
        }
    };
    let mut differences = Vec::new();
    let mut blobs = 0;
    for key in server.keys() {
        let Some(name) = key.strip_prefix(&format!("{prefix}/")) else { continue };
        if name.ends_with(".sync-index.json") || name.starts_with(".memsync/") {
            continue;
        }
        blobs += 1;
        let stored = server.object(&key).unwrap();
        let is = |field: &str| stored.metadata.get(field).cloned();
        let entry = files.get(name).cloned().unwrap_or(Value::Null);
        let told = (
            entry["md5"].as_str().map(str::to_owned),
            entry["is_deleted"].as_bool().map(|b| b.to_string()),
            entry["version"].as_u64().map(|v| v.to_string()),
        );
        if told != (is("content-md5"), is("is-deleted"), is("version")) {
            differences.push(format!("{name}: the index has {entry}, the blob {:?}", stored.metadata));
        }
    }
    if files.len() > blobs {
        differences.push(format!("{} entries for {blobs} blobs", files.len()));
    }
    differences
}

async fn accept(listener: TcpListener, service: S3Service, inside: Arc<Inside>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Without the option the server is only slower.
        let _ = stream.set_nodelay(true);
        let (service, inside) = (service.clone(), inside.clone());
        tokio::spawn(async move {
            let serve = hyper::service::service_fn(move |request| serve(request, service.clone(), inside.clone()));
            // An error is a connection that a fault or the client ended.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), serve).await;
        });
    }
}

type Lost = Box<dyn std::error::Error + Send + Sync>;

async fn serve(
    mut request: http::Request<hyper::body::Incoming>,
    service: S3Service,
    inside: Arc<Inside>,
) -> Result<s3s::HttpResponse, Lost> {
    let method = request.method().as_str().to_owned();
    *inside.requests.lock().unwrap().entry(method.clone()).or_default() += 1;
    let key = request.uri().path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_owned();
    let faults = inside.faults.lock().unwrap().clone();
    let fault = faults.map_or(Fault::None, |faults| faults(&method, &key));
    let failure = |status: u16| {
        let mut response = s3s::HttpResponse::new(s3s::Body::from("<Error><Code>SlowDown</Code></Error>".to_owned()));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        response
    };
    if inside.quirks.wants_bare_etags
        && let Some(value) = request.headers().get("if-match").cloned()
    {
        let text = value.to_str().unwrap();
        if text.contains('"') {
            return Ok(failure(412));
        }
        request.headers_mut().insert("if-match", format!("\"{text}\"").parse().unwrap());
    }
    if inside.quirks.wants_bare_etags {
        request.headers_mut().remove("authorization");
    }
    match fault {
        Fault::Refused => return Ok(failure(503)),
        Fault::RequestLost => return Err("lost on its way".into()),
        Fault::Slow(time) => tokio::time::sleep(time).await,
        Fault::None | Fault::DoneBut500 | Fault::ReplyLost => {}
    }
    let done = hyper::service::Service::call(&service, request).await.map_err(|e| format!("{e:?}"))?;
    match fault {
        Fault::DoneBut500 => Ok(failure(500)),
        Fault::ReplyLost => Err("the reply is lost".into()),
        Fault::None | Fault::Slow(_) | Fault::Refused | Fault::RequestLost => Ok(done),
    }
}

struct Api(Arc<Inside>);

/// A time in whole seconds, as S3 formats it.
fn seconds(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    (SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())).into()
}

fn strong(etag: String) -> ETag {
    ETag::Strong(etag)
}

fn metadata(stored: &Stored) -> Metadata {
    stored.metadata.clone().into_iter().collect()
}

impl Inside {
    fn allow(&self, key: &str) -> S3Result<()> {
        let allowed = self.quirks.only_below.is_none_or(|folder| key.starts_with(folder));
        if allowed { Ok(()) } else { Err(s3_error!(AccessDenied, "Access Denied")) }
    }

    fn find(&self, key: &str) -> S3Result<Stored> {
        self.objects.lock().unwrap().get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }
}

fn unknown() -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::Custom("UnknownError".into()));
    error.set_status_code(http::StatusCode::INTERNAL_SERVER_ERROR);
    error
}

fn check_bucket(bucket: &str) -> S3Result<()> {
    if bucket == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket, "The specified bucket does not exist")) }
}

#[async_trait::async_trait]
impl S3Api for Api {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        self.0.allow(&input.key)?;
        let mut body = Vec::new();
        if let Some(mut pieces) = input.body {
            while let Some(piece) = pieces.next().await {
                body.extend_from_slice(&piece.map_err(|e| s3_error!(IncompleteBody, "{e}"))?);
            }
        }
        if input.content_length.is_some_and(|length| length != body.len() as i64) {
            return Err(s3_error!(IncompleteBody));
        }
        let quirks = self.0.quirks;
        let check = |held: Option<&Stored>| {
            let created = match &input.if_none_match {
                Some(ETagCondition::Any) => held.is_none() || quirks.ignores_if_none_match,
                Some(ETagCondition::ETag(_)) => return Err(s3_error!(NotImplemented)),
                None => true,
            };
            let met = match (&input.if_match, held) {
                (None, _) => true,
                (Some(_), None) => return Err(s3_error!(NoSuchKey)),
                (Some(ETagCondition::Any), Some(_)) => true,
                (Some(ETagCondition::ETag(etag)), Some(held)) => {
                    *etag == strong(held.etag()) || quirks.ignores_if_match
                }
            };
            if created && met { Ok(()) } else { Err(s3_error!(PreconditionFailed)) }
        };
        if quirks.races || quirks.losers_fail {
            // Such stores check first and write later.
            check(self.0.objects.lock().unwrap().get(&input.key))?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut objects = self.0.objects.lock().unwrap();
        if !quirks.races {
            check(objects.get(&input.key)).map_err(|e| if quirks.losers_fail { unknown() } else { e })?;
        }
        let metadata: BTreeMap<_, _> =
            input.metadata.unwrap_or_default().into_iter().filter(|_| !quirks.drops_metadata).collect();
        // As strict as the strictest store: names count together with their header prefix.
        let size = |(name, value): (&String, &String)| "x-amz-meta-".len() + name.len() + value.len();
        if metadata.iter().map(size).sum::<usize>() > MOST_METADATA {
            return Err(s3_error!(MetadataTooLarge, "Your metadata headers exceed the maximum allowed metadata size"));
        }
        let stored =
            Stored { body: body.into(), metadata, content_type: input.content_type, modified: SystemTime::now() };
        let output = PutObjectOutput { e_tag: Some(strong(stored.etag())), ..PutObjectOutput::default() };
        objects.insert(input.key.clone(), stored);
        *self.0.puts.lock().unwrap().entry(input.key).or_default() += 1;
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        let stored = self.0.find(&input.key)?;
        if let Some(ETagCondition::ETag(etag)) = &input.if_none_match
            && *etag == strong(stored.etag())
        {
            return Err(s3_error!(NotModified));
        }
        let length = stored.body.len() as u64;
        let range = match input.range {
            Some(range) => Some(range.check(length).map_err(|_| s3_error!(InvalidRange))?),
            None => None,
        };
        let part = range.clone().unwrap_or(0..length);
        let body = stored.body.slice(part.start as usize..part.end as usize);
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(body.len() as i64),
            content_range: range.map(|r| format!("bytes {}-{}/{length}", r.start, r.end - 1)),
            body: Some(StreamingBlob::from(s3s::Body::from(body))),
            content_type: stored.content_type.clone(),
            e_tag: Some(strong(stored.etag())),
            last_modified: Some(seconds(stored.modified)),
            metadata: Some(metadata(&stored)),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        let stored = self.0.find(&input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(stored.body.len() as i64),
            content_type: stored.content_type.clone(),
            e_tag: Some(strong(stored.etag())),
            last_modified: Some(seconds(stored.modified)),
            metadata: Some(metadata(&stored)),
            ..HeadObjectOutput::default()
        }))
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else { return Err(s3_error!(NotImplemented)) };
        check_bucket(bucket)?;
        self.0.allow(&input.key)?;
        let mut objects = self.0.objects.lock().unwrap();
        let from = objects.get(&**key).cloned().ok_or_else(|| s3_error!(NoSuchKey))?;
        let copied = Stored { modified: SystemTime::now(), ..from };
        let result = CopyObjectResult { e_tag: Some(strong(copied.etag())), ..CopyObjectResult::default() };
        objects.insert(input.key, copied);
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        check_bucket(&request.input.bucket)?;
        self.0.objects.lock().unwrap().remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        check_bucket(&request.input.bucket)?;
        let mut objects = self.0.objects.lock().unwrap();
        let deleted = request.input.delete.objects.into_iter().map(|object| {
            objects.remove(&object.key);
            DeletedObject { key: Some(object.key), ..DeletedObject::default() }
        });
        let deleted = Some(deleted.collect());
        Ok(S3Response::new(DeleteObjectsOutput { deleted, ..DeleteObjectsOutput::default() }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        check_bucket(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.continuation_token.or(input.start_after).unwrap_or_default();
        // Small pages, so that a few objects need several pages.
        let most = input.max_keys.map_or(50, |n| n.min(50)) as usize;
        let objects = self.0.objects.lock().unwrap();
        let mut matching = objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after);
        let page: Vec<_> = matching.by_ref().take(most).collect();
        let truncated = matching.next().is_some();
        let contents = page.iter().map(|(key, stored)| Object {
            key: Some((*key).clone()),
            e_tag: Some(strong(stored.etag())),
            size: Some(stored.body.len() as i64),
            last_modified: Some(seconds(stored.modified)),
            ..Object::default()
        });
        Ok(S3Response::new(ListObjectsV2Output {
            contents: Some(contents.collect()),
            is_truncated: Some(truncated),
            next_continuation_token: page.last().filter(|_| truncated).map(|(key, _)| (*key).clone()),
            key_count: Some(page.len() as i32),
            name: Some(input.bucket),
            prefix: Some(prefix),
            ..ListObjectsV2Output::default()
        }))
    }
}
