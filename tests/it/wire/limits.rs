//! Bodies that are too large, too slow or truncated, and how the proxy stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use memsync::path::RelPath;
use memsync::proxy::ProxyOptions;
use memsync::proxy::keys::{self, KeySpec};
use memsync::store::{Store, WriteCondition};
use memsync::testing::MemoryStore;
use secrecy::ExposeSecret;
use serde_json::json;

use super::{batch, bearer, embedded};
use crate::common::proxy::{Client, Reply, Running, head, options};

#[tokio::test]
async fn oversized_body_gets_413() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.max_body = 1_000_000;
    let running = Running::start_with(embedded(&dir), options).await;
    let body = vec![7; 1_000_001];

    let mut c = running.client().await;
    assert_eq!(c.put("/blob/fits", "new", &body[1..]).await.status, 201);
    // Refused by its length, before the body is sent, and when all of it is sent regardless.
    let mut c = running.client().await;
    let headers = [bearer(), ("Content-MD5", "new".into()), ("Content-Length", "9999999999".into())];
    c.write(&head("PUT", "/blob/x", &headers)).await;
    let r = c.reply("PUT").await;
    assert_eq!((r.status, r.code().as_str()), (413, "TOO_LARGE"));
    let mut c = running.client().await;
    let headers = [bearer(), ("Content-MD5", "new".into()), ("Content-Length", "40000000".into())];
    c.write(&head("PUT", "/blob/x", &headers)).await;
    c.write(&vec![7; 40_000_000]).await;
    assert_eq!(c.reply("PUT").await.status, 413);
    // Refused by its size if it has no length.
    let mut c = running.client().await;
    let headers = [bearer(), ("Content-MD5", "new".into()), ("Transfer-Encoding", "chunked".into())];
    c.write(&head("PUT", "/blob/x", &headers)).await;
    for piece in body.chunks(100_000) {
        c.write(format!("{:x}\r\n", piece.len()).as_bytes()).await;
        c.write(piece).await;
        c.write(b"\r\n").await;
    }
    c.write(b"0\r\n\r\n").await;
    let r = c.reply("PUT").await;
    assert_eq!((r.status, r.code().as_str()), (413, "TOO_LARGE"));

    let mut c = running.client().await;
    assert_eq!(c.get("/blob/x").await.status, 404);
    assert_eq!(c.get("/blob/fits").await.body, &body[1..]);
    assert_eq!(std::fs::read_dir(dir.path().join("store/bodies")).unwrap().count(), 1);
}

#[tokio::test]
async fn truncated_body_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    for sent in [0, 10, 400_000, 2_000_000] {
        for framing in [("Content-Length", "3000000".to_owned()), ("Transfer-Encoding", "chunked".to_owned())] {
            let mut c = running.client().await;
            let chunked = framing.0 == "Transfer-Encoding";
            c.write(&head("PUT", "/blob/x", &[bearer(), ("Content-MD5", "new".into()), framing])).await;
            if chunked && sent > 0 {
                c.write(format!("{sent:x}\r\n").as_bytes()).await;
            }
            c.write(&vec![1; sent]).await;
            tokio::io::AsyncWriteExt::shutdown(&mut c.stream).await.unwrap();
            assert!(c.try_reply("PUT").await.is_none_or(|r| r.status == 400), "{sent} chunked: {chunked}");
        }
    }
    let mut c = running.client().await;
    assert_eq!(c.get("/blob/x").await.status, 404);
    assert_eq!(c.get("/sync").await.json()["files"], json!({}));
    // A piece in flight is written by another thread.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir(dir.path().join("store/bodies")).unwrap().count() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "partial bodies are removed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Bytes beyond the announced length are not part of the body.
    c.write(&head("PUT", "/blob/x", &[bearer(), ("Content-MD5", "new".into()), ("Content-Length", "2".into())])).await;
    c.write(b"abcdef\r\n\r\n").await;
    assert_eq!(c.reply("PUT").await.status, 201);
    assert_eq!(running.client().await.get("/blob/x").await.body, b"ab");
}

#[tokio::test]
async fn stalling_peer_is_cut_off() {
    let mut options = options();
    options.head_timeout = Duration::from_millis(300);
    options.body_timeout = Duration::from_millis(300);
    let unhurried = Running::start_with(Arc::new(MemoryStore::new()), options.clone()).await;
    options.idle_timeout = Duration::from_millis(600);
    let running = Running::start_with(Arc::new(MemoryStore::new()), options).await;

    let mut silent = running.client().await;
    silent.wait_for_end().await;
    let mut half = running.client().await;
    half.write(b"GET /health HTTP/1.1\r\nHos").await;
    half.wait_for_end().await;

    let mut slow = running.client().await;
    let headers = [bearer(), ("Content-MD5", "new".into()), ("Content-Length", "10".into())];
    slow.write(&head("PUT", "/blob/x", &headers)).await;
    slow.write(b"abc").await;
    let r = slow.reply("PUT").await;
    assert_eq!((r.status, r.code().as_str()), (408, "BODY_TIMEOUT"));

    // A byte now and then does not reset the limits for head and body.
    for (begin, drip) in [
        (b"GET /health HTTP/1.1\r\nX: ".to_vec(), "a"),
        (head("PUT", "/blob/x", &[bearer(), ("Content-MD5", "new".into()), ("Content-Length", "9999".into())]), "b"),
    ] {
        let mut dripping = running.client().await;
        dripping.write(&begin).await;
        let began = Instant::now();
        let mut every = tokio::time::interval(Duration::from_millis(20));
        // Ends once the proxy has closed its side.
        loop {
            every.tick().await;
            if tokio::io::AsyncWriteExt::write_all(&mut dripping.stream, drip.as_bytes()).await.is_err() {
                break;
            }
            if dripping.stream.try_read(&mut [0; 4096]).is_ok() {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{drip}");
        }
    }

    // An idle connection has more time between requests, then it is closed.
    let mut idle = unhurried.client().await;
    assert_eq!(idle.get("/sync").await.status, 200);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(idle.get("/sync").await.status, 200, "longer than a head may take");
    let mut idle = running.client().await;
    assert_eq!(idle.get("/sync").await.status, 200);
    idle.wait_for_end().await;
    assert_eq!(running.client().await.get("/blob/x").await.status, 404);
}

/// Headers of a PUT of 6 bytes that waits for 100 Continue.
fn expecting() -> [(&'static str, String); 4] {
    let length = ("Content-Length", "6".to_owned());
    [bearer(), ("Content-MD5", "new".to_owned()), length, ("Expect", "100-continue".to_owned())]
}

#[tokio::test]
async fn stop_lets_requests_in_flight_finish() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let addr = running.addr;
    let mut idle = running.client().await;
    assert_eq!(idle.get("/sync").await.status, 200);
    let mut busy = running.client().await;
    busy.write(&head("PUT", "/blob/x", &expecting())).await;
    assert_eq!(busy.reply("PUT").await.status, 100, "it is being received");
    busy.write(b"abc").await;
    let stopping = tokio::spawn(running.stop());
    idle.wait_for_end().await;
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "new connections are refused");
    busy.write(b"def").await;
    assert_eq!(busy.reply("PUT").await.status, 201);
    busy.wait_for_end().await;
    stopping.await.unwrap();
}

#[tokio::test]
async fn stop_ends_after_its_timeout() {
    let mut options = options();
    options.stop_timeout = Duration::from_millis(50);
    let running = Running::start_with(Arc::new(MemoryStore::new()), options).await;
    let mut stuck = running.client().await;
    stuck.write(&head("PUT", "/blob/x", &expecting())).await;
    assert_eq!(stuck.reply("PUT").await.status, 100, "it is being received");
    let began = Instant::now();
    running.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn peer_that_does_not_read_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.max_connections = 1;
    options.body_timeout = Duration::from_millis(500);
    let running = Running::start_with(embedded(&dir), options).await;
    let mut c = running.client().await;
    assert_eq!(c.put("/blob/big", "new", &vec![5; 30_000_000]).await.status, 201);
    c.write(&head("GET", "/blob/big", &[bearer()])).await;
    // The only connection is in use until the peer that does not read is cut off.
    let mut next = running.client().await;
    assert_eq!(next.get("/sync").await.status, 200);
    assert!(c.try_reply("GET").await.is_none(), "a truncated blob is no complete response");
}

/// A proxy with 60 blobs of 256 KiB, named `f0` and so on, and the token of a key.
async fn many_contents() -> (Running, String) {
    let store = Arc::new(MemoryStore::new());
    let made = keys::edit(store.as_ref(), |keys| keys.create_key(&KeySpec::default(), Timestamp::now())).await.unwrap();
    for n in 0..60 {
        // Six random bits a byte: it can be packed and stays large.
        let content: Vec<u8> = (0..256 * 1024).map(|_| b'0' + fastrand::u8(..64)).collect();
        let path = RelPath::parse(&format!("f{n}")).unwrap();
        store.put_bytes("", &path, WriteCondition::Absent, content.into()).await.unwrap();
    }
    let options = ProxyOptions { body_timeout: Duration::from_secs(60), ..ProxyOptions::default() };
    (Running::start_with(store, options).await, made.token.expose_secret().to_owned())
}

/// Requests `names` in one batch and reads nothing of the response.
async fn ask(running: &Running, token: &str, coding: &str, names: &[String]) -> Client {
    let mut c = running.client().await;
    let body = crate::common::frames::frames(&names.iter().map(|name| batch::get(name)).collect::<Vec<_>>());
    let headers = [
        ("Authorization", format!("Bearer {token}")),
        ("Content-Type", crate::common::frames::TYPE.to_owned()),
        ("Content-Length", body.len().to_string()),
        ("Accept-Encoding", coding.to_owned()),
    ];
    c.write(&head("POST", "/batch", &headers)).await;
    c.write(&body).await;
    c
}

/// The whole response to a batch is in memory until it is read. Later responses get less room and name the blobs that do
/// not fit.
#[tokio::test]
async fn unread_responses_hold_memory_until_they_are_read() {
    let (running, token) = many_contents().await;
    let names: Vec<_> = (0..60).map(|n| format!("f{n}")).collect();
    let length = |r: &Reply| r.header("content-length").unwrap().parse::<usize>().unwrap();
    for (coding, least) in [("identity", 8 << 20), ("zstd", 6 << 20)] {
        let mut slow = Vec::new();
        loop {
            let mut c = ask(&running, &token, coding, &names).await;
            let r = c.reply("HEAD").await;
            assert_eq!(r.status, 200);
            slow.push(c);
            if length(&r) < least {
                break;
            }
            assert!(slow.len() < 20, "{coding}: unread responses do not use up the memory");
        }
        assert!(slow.len() > 1, "{coding}: the first response gets all it needs");
        drop(slow);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut c = ask(&running, &token, coding, &names).await;
            if length(&c.reply("HEAD").await) >= least {
                break;
            }
            assert!(Instant::now() < deadline, "{coding}: the memory is free again");
        }
    }
}

#[tokio::test]
async fn connection_beyond_the_limit_waits() {
    let mut options = options();
    options.max_connections = 2;
    let running = Running::start_with(Arc::new(MemoryStore::new()), options).await;
    let (mut a, mut b, mut waits) = (running.client().await, running.client().await, running.client().await);
    assert_eq!((a.get("/sync").await.status, b.get("/sync").await.status), (200, 200));
    waits.write(&head("GET", "/health", &[])).await;
    let early = tokio::time::timeout(Duration::from_millis(100), waits.try_reply("GET")).await;
    assert!(early.is_err(), "it was served beyond the limit");
    drop(a);
    assert_eq!(waits.reply("GET").await.status, 200);
}

#[tokio::test]
async fn empty_token_is_refused() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = memsync::proxy::ProxyOptions::new(String::new().into());
    let refused = memsync::proxy::serve(listener, Arc::new(MemoryStore::new()), options, async {}).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}
