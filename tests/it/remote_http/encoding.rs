//! Capability `encoding`: compressed requests, and the handling of good and bad compressed answers.

use std::sync::{Arc, OnceLock};

use memsync::protocol::Precondition;
use memsync::protocol::batch::{self, AnswerHead, BatchWriter, RequestHead};
use memsync::remote::http::{HttpOptions, HttpRemote};
use memsync::remote::{BatchReply, BatchRequest, IndexUpdate, PutReply, Remote};
use memsync::store::SqliteStore;

use crate::common::packed::{self, gzip_bomb, pack, text, unpack, zstd_bomb};
use crate::common::proxy::{self, Running};
use crate::remote_http::server::{DEADLINE, Reply, Request, Server, Then, reply};
use crate::remote_http::*;

const ALL: &[&str] = &["honest-412", "batch", "encoding"];
/// More bytes than are read before a request begins.
const LARGE: usize = 1 << 20;

/// A client that takes the server for another machine. A reserved address leads to it.
fn far_to(address: std::net::SocketAddr, token: &str, namespace: &str) -> HttpRemote {
    let origin = format!("http://0.0.0.0:{}", address.port());
    let (token, namespace) = (token.to_owned().into(), namespace.to_owned());
    HttpRemote::new(HttpOptions { allow_http: true, token, namespace, ..options(&origin) }).unwrap()
}

fn far(server: &Server) -> HttpRemote {
    far_to(server.address, TOKEN, "")
}

fn random(size: usize) -> Vec<u8> {
    packed::noise(size)
}

/// A source whose digest is known only at its end.
struct Unread {
    source: Box<dyn BodySource>,
    md5: Md5,
    digested: Arc<OnceLock<Md5>>,
}

impl BodySource for Unread {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let piece = self.source.next()?;
        if piece.is_none() {
            self.digested.get_or_init(|| self.md5);
        }
        Ok(piece)
    }
}

/// The unpacked content of a request.
fn content(request: &Request) -> Vec<u8> {
    match request.header("content-encoding") {
        Some(coding) => unpack(coding, &request.body),
        None => request.body.clone(),
    }
}

/// Accepts every request, packed or not.
fn takes_all(request: &Request) -> Reply {
    match (request.method.as_str(), request.target.as_str()) {
        ("PUT", _) => reply(201, &[&etag(&content(request))], b""),
        ("POST", _) => {
            let mut writer = BatchWriter::default();
            for (head, content) in batch::read::<RequestHead>(content(request).into()).unwrap() {
                let md5 = Some(Md5::of(&content));
                writer.push(&AnswerHead { path: head.path, status: 201, md5, ..AnswerHead::default() }, b"").unwrap();
            }
            reply(200, &[&format!("content-type: {}", batch::CONTENT_TYPE)], &writer.finish())
        }
        ("GET", "/sync") => reply(200, &[], br#"{"files":{}}"#),
        ("GET", _) => reply(200, &[&etag(b"hello")], b"hello"),
        _ => reply(204, &[], b""),
    }
}

async fn put(remote: &HttpRemote, content: &[u8]) -> Result<PutReply, RemoteError> {
    remote.put(&path("a"), Precondition::New, 0, outgoing(content)).await
}

fn ask_put(content: &[u8]) -> (RelPath, BatchRequest) {
    (path("b"), BatchRequest::Put { precondition: Precondition::New, version: 0, body: outgoing(content) })
}

/// Sends one request of each kind, with compressible content.
async fn one_of_each(remote: &HttpRemote) {
    assert!(matches!(remote.index(None, None).await.unwrap(), IndexUpdate::Whole(_)));
    read(found(remote.get(&path("a")).await.unwrap())).await.unwrap();
    assert_eq!(put(remote, &text(5_000)).await, Ok(PutReply::Stored { version: 0 }));
    assert_eq!(put(remote, &text(LARGE)).await, Ok(PutReply::Stored { version: 0 }));
    let answers = remote.batch(vec![ask_put(&text(9_000))]).await.unwrap().unwrap();
    assert!(matches!(answers[..], [Some(BatchReply::Put(PutReply::Stored { .. }))]));
    remote.delete(&path("a"), Md5::of(b"hello"), 0).await.unwrap();
}

#[tokio::test]
async fn client_packs_nothing_on_loopback_or_without_capability() {
    let server = Server::start(ALL, takes_all).await;
    one_of_each(&remote(&server)).await;
    let plain = Server::start(&["honest-412", "batch"], takes_all).await;
    one_of_each(&far(&plain)).await;
    for request in server.seen().iter().chain(&plain.seen()) {
        for header in ["accept-encoding", "content-encoding", "transfer-encoding", "x-memsync-md5"] {
            assert_eq!(request.header(header), None, "{} {}", request.method, request.target);
        }
    }
}

#[tokio::test]
async fn client_packs_for_another_machine() {
    let server = Server::start(ALL, takes_all).await;
    one_of_each(&far(&server)).await;
    let seen = server.seen();
    let names = |name: &'static str| seen.iter().map(|r| r.header(name).unwrap_or("-")).collect::<Vec<_>>();
    assert_eq!(names("accept-encoding"), ["zstd", "zstd", "-", "-", "zstd", "-"]);
    assert_eq!(names("content-encoding"), ["-", "-", "zstd", "zstd", "zstd", "-"]);
    for (request, size) in [(&seen[2], 5_000), (&seen[3], LARGE)] {
        assert!(content(request) == text(size) && request.body.len() < size * 2 / 3, "{}", request.body.len());
        assert_eq!(request.header("x-memsync-md5"), Some(Md5::of(&text(size)).to_string().as_str()));
        assert_eq!(request.header("content-length").is_some(), size < LARGE);
    }
    // Incompressible content is sent as it is, with its length.
    for plain in [text(900), random(5_000), random(LARGE), Vec::new()] {
        assert_eq!(put(&far(&server), &plain).await, Ok(PutReply::Stored { version: 0 }));
        let request = server.seen().pop().unwrap();
        assert_eq!((request.header("content-encoding"), request.header("x-memsync-md5")), (None, None));
        assert_eq!(request.header("content-length"), Some(plain.len().to_string().as_str()));
        assert!(request.body == plain);
    }
    // A source without a known digest has no digest header, and is not packed.
    let content = text(LARGE);
    let digested = Arc::new(OnceLock::new());
    let told = digested.clone();
    let body = outgoing(&content);
    let source = Box::new(Unread { source: body.source, md5: Md5::of(&content), digested });
    let body = UploadBody { md5: PromisedDigest::AtTheEnd(Arc::new(move || told.get().copied())), source, ..body };
    assert_eq!(far(&server).put(&path("a"), Precondition::New, 0, body).await, Ok(PutReply::Stored { version: 0 }));
    let request = server.seen().pop().unwrap();
    assert!(request.header("content-encoding").is_none() && request.body == content);

    let answers = far(&server).batch(vec![ask_put(&random(9_000))]).await.unwrap().unwrap();
    assert!(answers[0].is_some());
    assert_eq!(server.seen().pop().unwrap().header("content-encoding"), None);
}

#[tokio::test]
async fn failing_source_sends_no_whole_body() {
    let server = Server::start(ALL, takes_all).await;
    let remote = far(&server);
    for (size, good) in [(5_000, 0), (LARGE, 0), (LARGE, 64 * 1024), (LARGE, LARGE)] {
        let body = failing(&text(size), good);
        let e = remote.put(&path("a"), Precondition::New, 0, body).await.unwrap_err();
        assert!(matches!(e, RemoteError::Source(_)), "{size} {good}: {e}");
    }
    assert_eq!(put(&remote, b"x").await, Ok(PutReply::Stored { version: 0 }));
    assert_eq!(server.wait_for(1).await.iter().filter(|r| r.whole).count(), 1);
}

/// An answer with this coding and these header lines.
fn packed_reply(coding: &str, headers: &[&str], body: &[u8]) -> Reply {
    let line = format!("content-encoding: {coding}");
    reply(200, &[headers, &[&line]].concat(), body)
}

#[tokio::test]
async fn packed_answers_are_unpacked() {
    let files = (0..500).map(|n| format!(r#""n/{n}.md":{{"md5":"{}","size":{n}}}"#, Md5::of(&[n as u8])));
    let index = format!(r#"{{"files":{{{}}}}}"#, files.collect::<Vec<_>>().join(","));
    for coding in ["zstd", "gzip", "X-GZIP"] {
        let (index, note, large) = (index.clone(), text(5_000), text(3 << 20));
        let server = Server::start(ALL, move |request| match request.target.as_str() {
            "/sync" => packed_reply(coding, &[], &pack(coding, index.as_bytes())),
            "/blob/note" => packed_reply(coding, &[&etag(&note)], &pack(coding, &note)),
            // Small when packed, and large when unpacked.
            "/blob/large" => packed_reply(coding, &[&etag(&large)], &pack(coding, &large)),
            "/blob/empty" => packed_reply(coding, &[&etag(b"")], &pack(coding, b"")),
            "/blob/plain" => packed_reply("identity", &[&etag(b"x")], b"x"),
            _ => {
                let mut writer = BatchWriter::default();
                let size = note.len() as u64;
                let head = AnswerHead {
                    path: "b".into(),
                    status: 200,
                    size,
                    md5: Some(Md5::of(&note)),
                    ..AnswerHead::default()
                };
                writer.push(&head, &note).unwrap();
                let kind = format!("content-type: {}", batch::CONTENT_TYPE);
                packed_reply(coding, &[&kind], &pack(coding, &writer.finish()))
            }
        })
        .await;
        for remote in [far(&server), remote(&server)] {
            let IndexUpdate::Whole(index) = remote.index(None, None).await.unwrap() else { panic!("no whole index") };
            assert_eq!(index.files.len(), 500, "{coding}");
            for (name, content) in
                [("note", text(5_000)), ("large", text(3 << 20)), ("empty", vec![]), ("plain", b"x".to_vec())]
            {
                let blob = found(remote.get(&path(name)).await.unwrap());
                assert_eq!(blob.size, (name == "plain").then_some(1), "what is packed does not say how long it is");
                assert!(read(blob).await.unwrap() == content, "{coding} {name}");
            }
            let mut answers = remote.batch(vec![(path("b"), BatchRequest::Get)]).await.unwrap().unwrap();
            let Some(BatchReply::Got(got)) = answers.remove(0) else { panic!("no answer") };
            assert_eq!(read(found(got)).await.unwrap(), text(5_000));
        }
    }
}

/// The errors of an index, a blob and a batch that are answered with `body` in this coding.
async fn errors(coding: &'static str, body: Vec<u8>) -> [RemoteError; 3] {
    let server = Server::start(ALL, move |_| {
        let kind = format!("content-type: {}", batch::CONTENT_TYPE);
        let headers = [etag(b"other"), kind];
        packed_reply(coding, &[&headers[0], &headers[1]], &body)
    })
    .await;
    let remote = far(&server);
    let get = async {
        match remote.get(&path("a")).await {
            Ok(got) => read(found(got)).await.map(|_| ()),
            Err(e) => Err(e),
        }
    };
    [
        remote.index(None, None).await.unwrap_err(),
        get.await.unwrap_err(),
        remote.batch(vec![(path("b"), BatchRequest::Get)]).await.err().expect("an error"),
    ]
}

#[tokio::test]
async fn bombs_are_refused() {
    // An index with a good beginning and an endless rest.
    let begin = |coding| pack(coding, br#"{"files":{"#);
    let gzip = gzip_bomb(80 << 20);
    for (coding, bomb) in [("zstd", [begin("zstd"), zstd_bomb(400 << 30, 23)].concat()), ("gzip", gzip)] {
        let [index, blob, batch] = errors(coding, bomb).await;
        // The first byte of the gzip bomb is enough.
        let too_large = matches!(&index, RemoteError::Protocol { why, .. } if why.contains("too large"));
        assert!(too_large || coding == "gzip" && matches!(index, RemoteError::Protocol { .. }), "{index}");
        assert!(matches!(blob, RemoteError::TooLarge { .. }), "{blob}");
        assert!(matches!(batch, RemoteError::TooLarge { .. }), "{batch}");
    }
    // A stream gives bytes up to the limit, and no more.
    let server = Server::start(ALL, |_| packed_reply("zstd", &[&etag(b"")], &zstd_bomb(1 << 30, 20))).await;
    let mut body = found(far(&server).get(&path("a")).await.unwrap()).body;
    let mut came = 0;
    let error = loop {
        match body.try_next().await {
            Ok(Some(piece)) => came += piece.len(),
            Ok(None) => panic!("it has no end"),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, RemoteError::TooLarge { .. }) && came <= 4 << 20, "{came} {error}");
    // Endless frames without content.
    let empty = zstd_bomb(1, 10)[..6].iter().copied().chain([1, 0, 0]).collect::<Vec<_>>().repeat(1 << 20);
    assert_eq!(unpack("zstd", &empty), b"");
    let [_, blob, _] = errors("zstd", empty).await;
    assert!(matches!(blob, RemoteError::TooLarge { .. }), "{blob}");
    // In a refusal the bomb does not hide the status.
    let server =
        Server::start(ALL, |_| reply(403, &["content-encoding: zstd"], &zstd_bomb(1 << 30, 20)).then(Then::Close))
            .await;
    assert!(matches!(far(&server).index(None, None).await, Err(RemoteError::Auth { status: 403, .. })));
}

#[tokio::test]
async fn corrupt_packed_answers_are_errors() {
    let good = pack("zstd", &text(5_000));
    let trailing = [&pack("gzip", &text(5_000))[..], b"x"].concat();
    for (coding, body) in [
        ("zstd", good[..good.len() - 1].to_vec()),
        ("zstd", text(5_000)),
        ("zstd", vec![]),
        ("zstd", zstd_bomb(1000, 24)),
        ("gzip", good.clone()),
        ("gzip", trailing),
        ("br", good.clone()),
        ("zstd, zstd", pack("zstd", &good)),
        ("zstd\r\ncontent-encoding: zstd", pack("zstd", &good)),
    ] {
        for e in errors(coding, body).await {
            assert!(matches!(e, RemoteError::Protocol { .. }), "{coding}: {e}");
        }
    }
    // If the connection breaks, the error is that of the connection.
    let server = Server::start(ALL, move |_| packed_reply("zstd", &[&etag(b"")], &good).cut(9).then(Then::Close)).await;
    let cut = read(found(far(&server).get(&path("a")).await.unwrap())).await.unwrap_err();
    assert!(matches!(cut, RemoteError::Unreachable { .. }), "{cut}");
}

/// Refuses packed bodies with this status and code.
async fn refusing(status: u16, code: &'static str) -> Server {
    Server::start(ALL, move |request| match request.header("content-encoding") {
        Some(_) if code.is_empty() => reply(status, &[], b"<html>"),
        Some(_) => reply(status, &[], format!(r#"{{"detail":"no","error_code":{code:?},"context":null}}"#).as_bytes()),
        None => takes_all(request),
    })
    .await
}

#[tokio::test]
async fn client_sends_plain_after_packing_is_refused() {
    for (status, code) in
        [(415, ""), (400, ""), (400, "INVALID_ENCODING"), (400, "DIGEST_MISMATCH"), (400, "INVALID_BATCH")]
    {
        let server = refusing(status, code).await;
        let remote = far(&server);
        assert_eq!(put(&remote, &text(5_000)).await, Ok(PutReply::Stored { version: 0 }), "{status} {code}");
        assert_eq!(put(&remote, &text(LARGE)).await, Ok(PutReply::Stored { version: 0 }), "at once plain");
        assert_eq!(server.seen().len(), 3);
        let remote = far(&server);
        assert!(remote.batch(vec![ask_put(&text(9_000))]).await.unwrap().unwrap()[0].is_some(), "{status} {code}");
        assert_eq!(server.seen().len(), 5);
        // A streamed source cannot be sent twice, so the next try is plain.
        let remote = far(&server);
        let e = put(&remote, &text(LARGE)).await.unwrap_err();
        assert!(matches!(e, RemoteError::Protocol { .. }), "{e}");
        assert_eq!(put(&remote, &text(LARGE)).await, Ok(PutReply::Stored { version: 0 }));
    }
    // A refusal for another reason stays, and the next body is packed again.
    let server = refusing(400, "INVALID_PATH").await;
    let remote = far(&server);
    for size in [5_000, LARGE, 5_000] {
        let e = put(&remote, &text(size)).await.unwrap_err();
        assert!(matches!(e, RemoteError::Refused { status: 400, .. }), "{e}");
    }
    assert!(server.seen().iter().all(|r| r.header("content-encoding").is_some()));
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn client_sends_plain_after_busy() {
    let busy = async |code: &'static str| {
        let body = format!(r#"{{"detail":"no","error_code":{code:?},"context":null}}"#);
        Server::start(ALL, move |request| match request.header("content-encoding") {
            Some(_) => reply(503, &["Retry-After: 5"], body.as_bytes()),
            None => takes_all(request),
        })
        .await
    };
    let server = busy("BUSY").await;
    let remote = far(&server);
    // Each body is sent packed, and then plain.
    for requests in [2, 4] {
        assert_eq!(put(&remote, &text(5_000)).await, Ok(PutReply::Stored { version: 0 }));
        assert_eq!(server.seen().len(), requests);
    }
    // Another batch might wait for a turn again, so its requests are sent alone.
    assert!(remote.batch(vec![ask_put(&text(9_000))]).await.unwrap().is_none());
    assert_eq!(server.seen().len(), 5);
    // A streamed source is sent plain after the wait.
    let e = put(&remote, &text(LARGE)).await.unwrap_err();
    assert!(matches!(e, RemoteError::Throttled { status: 503, .. }), "{e}");
    assert_eq!(put(&remote, &text(LARGE)).await, Ok(PutReply::Stored { version: 0 }));
    // Other reasons do not turn compression off.
    let server = busy("STORAGE_FAILED").await;
    let e = put(&far(&server), &text(5_000)).await.unwrap_err();
    assert!(matches!(e, RemoteError::Throttled { status: 503, .. }), "{e}");
    assert!(server.seen().iter().all(|r| r.header("content-encoding").is_some()));
}

#[tokio::test]
async fn real_proxy_returns_all_content_with_fewer_bytes_sent() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap());
    let running = Running::start(store).await;
    let remotes = [far_to(running.addr, proxy::TOKEN, ""), far_to(running.addr, proxy::TOKEN, "a/n")];
    let contents = [text(100), text(30_000), text(3 << 20), random(30_000), random(3 << 20), Vec::new()];
    for remote in &remotes {
        for (n, content) in contents.iter().enumerate() {
            let stored = remote.put(&path(&format!("{n}")), Precondition::New, 0, outgoing(content)).await;
            assert!(matches!(stored, Ok(PutReply::Stored { .. })), "{n} {stored:?}");
            let lost = remote.put(&path(&format!("{n}")), Precondition::New, 0, outgoing(&text(40_000))).await;
            assert!(
                matches!(lost, Ok(PutReply::Mismatch { current: Some(md5), .. }) if md5 == Md5::of(content)),
                "{lost:?}"
            );
        }
        let asks = (0..200).map(|n| {
            let body = outgoing(&text(3_000 + n));
            (path(&format!("batch/{n}")), BatchRequest::Put { precondition: Precondition::New, version: 0, body })
        });
        let answers = remote.batch(asks.collect()).await.unwrap().unwrap();
        assert!(answers.iter().all(|a| matches!(a, Some(BatchReply::Put(PutReply::Stored { .. })))));
        let IndexUpdate::Whole(index) = remote.index(None, None).await.unwrap() else { panic!("no whole index") };
        assert_eq!(index.files.len(), 206);
        for (n, content) in contents.iter().enumerate() {
            let came = read(found(remote.get(&path(&format!("{n}"))).await.unwrap())).await.unwrap();
            assert!(came == *content, "{n}");
        }
        let asks = (0..200).map(|n| (path(&format!("batch/{n}")), BatchRequest::Get));
        let answers = remote.batch(asks.collect()).await.unwrap().unwrap();
        for (n, answer) in answers.into_iter().enumerate() {
            let Some(BatchReply::Got(got)) = answer else { panic!("{n}") };
            assert_eq!(read(found(got)).await.unwrap(), text(3_000 + n));
        }
    }
    let metrics = String::from_utf8(running.client().await.get("/metrics").await.body).unwrap();
    let bytes = |name: &str| -> usize {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    // Two dialects, with lost requests. Batches are tiny, because their notes begin alike.
    let plain = 2 * (contents.iter().map(Vec::len).sum::<usize>() + 200 * 3_100);
    let text = 2 * (3 << 20);
    for name in ["memsync_received_bytes_total", "memsync_sent_bytes_total"] {
        assert!(bytes(name) < plain - text / 2, "{name} {} of {plain}", bytes(name));
    }
    tokio::time::timeout(DEADLINE, running.stop()).await.unwrap();
}
