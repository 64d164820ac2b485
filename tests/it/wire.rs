//! The flat dialect over real HTTP: every line of its table, and hostile or broken clients. The namespaced dialect is in
//! `wire/namespaced.rs`.

mod batch;
mod encoding;
mod hostile;
mod index;
mod limits;
mod namespaced;
mod operations;
mod tls;
mod trouble;
mod versions;

use std::sync::Arc;

use crate::common::log::Log;
use crate::common::proxy::{Client, Reply, Running, TOKEN, head, md5, options};
use futures::future::join_all;
use memsync::store::SqliteStore;
use memsync::testing::MemoryStore;
use serde_json::json;

/// Names under which nothing can be stored, not encoded.
const HOSTILE: [&str; 17] = [
    "",
    "/",
    "/etc/passwd",
    "a//b",
    "a/",
    ".",
    "..",
    "../x",
    "a/../../x",
    "a\u{0}b",
    "a\nb",
    "a\\..\\b",
    ".memsync/id",
    "a/.MEMSYNC/x",
    ".sync-index.json",
    "a/.sync-index.json",
    ".sync-index.json/a",
];

async fn memory() -> (Running, Client) {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let client = running.client().await;
    (running, client)
}

fn embedded(dir: &tempfile::TempDir) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap())
}

fn bearer() -> (&'static str, String) {
    ("Authorization", format!("Bearer {TOKEN}"))
}

#[tokio::test]
async fn health_needs_no_token_and_lists_capabilities() {
    let (_running, mut c) = memory().await;
    c.write(&head("GET", "/health", &[])).await;
    let r = c.reply("GET").await;
    assert_eq!(r.status, 200);
    let health = r.json();
    assert_eq!((&health["status"], &health["storage"]), (&"ok".into(), &"connected".into()));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    for capability in [
        "honest-412",
        "strong-index",
        "index-etag",
        "delta",
        "events",
        "http-preconditions",
        "encoded-slash",
        "versions",
        "batch",
        "encoding",
    ] {
        assert!(health["capabilities"].as_array().unwrap().contains(&capability.into()), "{capability}");
    }
}

#[tokio::test]
async fn blob_is_created_read_updated_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    let (one, two) = (md5(b"one"), md5(b"two"));
    let url = "/blob/topics/ai.md";

    let r = c.get(url).await;
    assert_eq!((r.status, r.header("x-tombstone")), (404, None));
    let r = c.send("PUT", url, &[("Content-MD5", "new"), ("Content-Type", "text/markdown")], b"one").await;
    assert_eq!((r.status, r.header("etag")), (201, Some(format!("\"{one}\"").as_str())));

    let r = c.get(url).await;
    assert_eq!((r.status, r.body.as_slice()), (200, &b"one"[..]));
    assert_eq!(r.header("etag"), Some(format!("\"{one}\"").as_str()));
    assert_eq!(r.header("content-type"), Some("text/markdown"));
    assert_eq!(r.header("x-content-type-options"), Some("nosniff"));
    assert!(r.header("last-modified").unwrap().ends_with(" GMT"), "{r:?}");
    let r = c.send("HEAD", url, &[], b"").await;
    assert_eq!((r.status, r.header("content-length"), r.body.len()), (200, Some("3"), 0));

    let r = c.put(url, "new", b"two").await;
    assert_eq!((r.status, r.code().as_str()), (412, "PRECONDITION_FAILED"));
    let context = r.json()["context"].clone();
    assert_eq!(context, json!({"current_md5": one, "provided_md5": "new", "is_deleted": false}));

    let r = c.put(url, &one, b"two").await;
    assert_eq!((r.status, r.header("etag")), (200, Some(format!("\"{two}\"").as_str())));
    assert_eq!(c.put(url, &one, b"three").await.status, 412);
    assert_eq!(c.put(url, &two, b"two").await.status, 200, "the same content repairs");
    assert_eq!(c.get(url).await.header("content-type"), Some("text/markdown"), "as nothing else was said");

    let r = c.send("DELETE", url, &[("If-Match", &one)], b"").await;
    let context = r.json()["context"].clone();
    assert_eq!((r.status, r.code().as_str()), (412, "PRECONDITION_FAILED"));
    assert_eq!(context, json!({"current_md5": two, "provided_md5": one, "is_deleted": false}));
    let r = c.send("DELETE", url, &[("If-Match", &format!("\"{two}\""))], b"").await;
    assert_eq!((r.status, r.body.len()), (204, 0));
    for r in [c.get(url).await, c.delete(url).await, c.send("DELETE", url, &[("If-Match", &two)], b"").await] {
        assert_eq!((r.status, r.header("x-tombstone")), (404, Some(two.as_str())));
    }
    running.stop().await;
}

#[tokio::test]
async fn tombstone_is_overwritten_by_new_and_by_its_md5() {
    let (_running, mut c) = memory().await;
    let (a, b) = (md5(b"a"), md5(b"b"));
    let r = c.put("/blob/x", &a, b"b").await;
    assert_eq!(r.status, 412, "nothing is there");
    let context = r.json()["context"].clone();
    assert_eq!(context, json!({"current_md5": "none", "provided_md5": a, "is_deleted": false}));

    c.put("/blob/x", "new", b"a").await;
    assert_eq!(c.send("DELETE", "/blob/x", &[("If-Match", &a)], b"").await.status, 204, "bare");
    let r = c.put("/blob/x", &b, b"c").await;
    let context = r.json()["context"].clone();
    assert_eq!((r.status, context), (412, json!({"current_md5": a, "provided_md5": b, "is_deleted": true})));
    assert_eq!(c.put("/blob/x", &a, b"b").await.status, 201);
    assert_eq!(c.delete("/blob/x").await.status, 204, "without If-Match");
    assert_eq!(c.put("/blob/x", "new", b"b").await.status, 201);
    assert_eq!(c.delete("/blob/absent").await.status, 404);
}

#[tokio::test]
async fn write_without_a_valid_precondition_is_refused() {
    let (_running, mut c) = memory().await;
    let r = c.send("PUT", "/blob/x", &[], b"a").await;
    assert_eq!((r.status, r.code().as_str()), (428, "PRECONDITION_REQUIRED"));
    let upper = md5(b"a").to_uppercase();
    for bad in ["", "none", "NEW", "*", "1234", &upper, "XUFAKrxLKna5cZ2REBfFkg=="] {
        let r = c.put("/blob/x", bad, b"a").await;
        assert_eq!((r.status, r.code().as_str()), (400, "INVALID_PRECONDITION"), "{bad:?}");
    }
    c.put("/blob/x", "new", b"a").await;
    let weak = format!("W/\"{}\"", md5(b"a"));
    for bad in [weak.as_str(), "*", "\"", "", "\"\""] {
        let r = c.send("DELETE", "/blob/x", &[("If-Match", bad)], b"").await;
        assert_eq!((r.status, r.code().as_str()), (400, "INVALID_PRECONDITION"), "{bad:?}");
    }
    let r = c.send("PUT", "/blob/y", &[("Content-MD5", "new"), ("Content-Encoding", "br")], b"a").await;
    assert_eq!((r.status, r.code().as_str()), (415, "UNSUPPORTED_ENCODING"));
    let mut c = Client::connect(c.stream.peer_addr().unwrap()).await;
    assert_eq!(c.get("/blob/x").await.body, b"a");
    assert_eq!(c.get("/blob/y").await.status, 404);
}

#[tokio::test]
async fn http_conditions_replace_content_md5() {
    let (_running, mut c) = memory().await;
    let (a, b) = (md5(b"a"), md5(b"b"));
    let (tag_a, tag_b) = (format!("\"{a}\""), format!("\"{b}\""));
    let new = [("If-None-Match", "*")];
    assert_eq!(c.send("PUT", "/blob/x", &new, b"a").await.status, 201);
    let r = c.send("PUT", "/blob/x", &new, b"b").await;
    assert_eq!((r.status, &r.json()["context"]["provided_md5"]), (412, &json!("new")));
    assert_eq!(c.send("PUT", "/blob/x", &[("If-Match", &tag_b)], b"b").await.status, 412);
    assert_eq!(c.send("PUT", "/blob/x", &[("If-Match", &tag_a)], b"b").await.status, 200);
    assert_eq!(c.send("PUT", "/blob/x", &[("If-Match", &b)], b"a").await.status, 200, "bare, as for DELETE");
    // If Content-MD5 is present, the other conditions are ignored.
    let both = [("Content-MD5", a.as_str()), ("If-None-Match", "*")];
    assert_eq!(c.send("PUT", "/blob/x", &both, b"b").await.status, 200);
    let tags = format!("{tag_a}, {tag_b}");
    for bad in [
        &[("If-Match", tag_b.as_str()), ("If-None-Match", "*")][..],
        &[("If-None-Match", tag_b.as_str())],
        &[("If-Match", "*")],
        &[("If-Match", tags.as_str())],
    ] {
        let r = c.send("PUT", "/blob/x", bad, b"c").await;
        assert_eq!((r.status, r.code().as_str()), (400, "INVALID_PRECONDITION"), "{bad:?}");
    }
    assert_eq!(c.get("/blob/x").await.body, b"b");
}

#[tokio::test]
async fn request_without_a_valid_token_gets_401() {
    let mut options = options();
    options.failed_attempts = std::num::NonZeroU32::MAX;
    let running = Running::start_with(Arc::new(MemoryStore::new()), options).await;
    let mut c = running.client().await;
    c.put("/blob/x", "new", b"secret").await;
    let mut answers = Vec::new();
    for shown in [
        None,
        Some("Bearer wrong".to_owned()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(format!("Basic {TOKEN}")),
        Some(TOKEN.to_owned()),
        Some(format!("Bearer {TOKEN}x")),
    ] {
        for (method, target) in [
            ("GET", "/blob/x"),
            ("GET", "/blob/absent"),
            ("PUT", "/blob/x"),
            ("DELETE", "/blob/x"),
            ("GET", "/sync"),
            ("GET", "/events"),
            ("GET", "/nowhere"),
            ("PUT", "/n/blob/x"),
            ("GET", "/sync/n"),
            ("GET", "/blob%2Fn/blob/x"),
            ("GET", "/blob/../x"),
        ] {
            let mut c = running.client().await;
            let mut headers = vec![("Content-MD5", "new".to_owned())];
            headers.extend(shown.clone().map(|shown| ("Authorization", shown)));
            c.write(&head(method, target, &headers)).await;
            let r = c.reply(method).await;
            assert_eq!(r.status, 401, "{method} {target} {shown:?}");
            answers.push(r.body);
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "every refusal reads the same");
    assert!(!String::from_utf8_lossy(&answers[0]).contains(TOKEN));

    c.write(&head("GET", "/blob/x", &[("authorization", format!("bearer {TOKEN}"))])).await;
    assert_eq!(c.reply("GET").await.body, b"secret", "the scheme's case does not matter");
}

#[tokio::test]
async fn hostile_names_are_refused_and_unusual_ones_stored() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    let (long, deep) = ("x".repeat(256), "y/".repeat(600) + "z");
    let encoded = HOSTILE.map(memsync::protocol::encode_path);
    let disguised =
        ["%2e%2e/x", "%2E%2E%2Fx", "a/%2e./b", "%2Fetc%2Fpasswd", "%FF", "%C0%AE%C0%AE/x", "a%", "a%2", "a%zz"];
    for name in encoded.iter().map(String::as_str).chain(disguised).chain([long.as_str(), &deep]) {
        for method in ["GET", "PUT", "DELETE"] {
            let r = c.send(method, &format!("/blob/{name}"), &[("Content-MD5", "new")], b"").await;
            assert_eq!((r.status, r.code().as_str()), (400, "INVALID_PATH"), "{method} {name}");
        }
    }
    let strange = [
        ("with%20space", "with space"),
        ("caf%C3%A9/%E6%97%A5%E6%9C%AC.md", "café/日本.md"),
        ("a%2Fb", "a/b"),
        ("%252e%252e/x", "%2e%2e/x"),
        ("a+b&c=d;e", "a+b&c=d;e"),
        ("a%3Fb%23c", "a?b#c"),
        ("...", "..."),
        ("blob/blob/sync", "blob/blob/sync"),
    ];
    for (raw, _) in strange {
        assert_eq!(c.put(&format!("/blob/{raw}"), "new", raw.as_bytes()).await.status, 201, "{raw}");
        assert_eq!(c.get(&format!("/blob/{raw}?x=1")).await.body, raw.as_bytes(), "{raw}");
    }
    let index = c.get("/sync").await.json();
    let mut names: Vec<_> = index["files"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = strange.map(|(_, name)| name);
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected, "nothing else was written");
}

#[tokio::test]
async fn unknown_method_gets_405_and_unknown_address_404() {
    let (_running, mut c) = memory().await;
    for (method, target, allow) in [
        ("POST", "/blob/x", "GET, HEAD, PUT, DELETE"),
        ("PATCH", "/blob/x", "GET, HEAD, PUT, DELETE"),
        ("PUT", "/sync", "GET, HEAD"),
        ("DELETE", "/health", "GET, HEAD"),
        ("POST", "/events", "GET, HEAD"),
        ("PUT", "/batch", "POST"),
    ] {
        let r = c.send(method, target, &[], b"").await;
        assert_eq!((r.status, r.header("allow")), (405, Some(allow)), "{method} {target}");
        assert_eq!(r.code(), "METHOD_NOT_ALLOWED");
    }
    for target in ["/", "/blob", "/Sync", "/sync/", "/health/x", "//sync", "/../sync"] {
        let r = c.get(target).await;
        assert_eq!((r.status, r.code().as_str()), (404, "NO_SUCH_ROUTE"), "{target}");
    }
}

async fn race(running: &Running, method: &'static str, precondition: &str, tag: &str) -> Vec<Reply> {
    let requests = (0..16).map(|i| {
        let (addr, precondition, body) = (running.addr, precondition.to_owned(), format!("{tag}{i}"));
        tokio::spawn(async move {
            let mut c = Client::connect(addr).await;
            match method {
                "PUT" => c.put("/blob/x", &precondition, body.as_bytes()).await,
                _ => c.send("DELETE", "/blob/x", &[("If-Match", &precondition)], b"").await,
            }
        })
    });
    join_all(requests).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_sixteen_racing_writers_wins() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    for round in 0..10 {
        let won = |replies: &[Reply], status: u16, lost: u16| -> Option<String> {
            let winners: Vec<_> = replies.iter().filter(|r| r.status == status).collect();
            assert_eq!(winners.len(), 1, "round {round}");
            assert_eq!(replies.iter().filter(|r| r.status == lost).count(), 15);
            winners[0].header("etag").map(|etag| etag.trim_matches('"').to_owned())
        };
        let created = won(&race(&running, "PUT", "new", &format!("c{round}.")).await, 201, 412).unwrap();
        let updated = won(&race(&running, "PUT", &created, &format!("u{round}.")).await, 200, 412).unwrap();
        let body = running.client().await.get("/blob/x").await.body;
        assert_eq!(md5(&body), updated, "the stored content is the acknowledged one");
        won(&race(&running, "DELETE", &updated, "").await, 204, 404);
    }
}

#[tokio::test]
async fn read_answers_conditions_and_one_range() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    let large: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    let small = b"0123456789".to_vec();
    for (target, content) in [("/blob/small", &small), ("/blob/large", &large), ("/n/blob/small", &small)] {
        let version = ("If-Match-Version", "0");
        let precondition = if target.starts_with("/n/") { version } else { ("Content-MD5", "new") };
        assert_eq!(c.send("PUT", target, &[precondition], content).await.status, 201);
        let (tag, size) = (format!("\"{}\"", md5(content)), content.len());
        let tag = tag.as_str();
        let r = c.send("GET", target, &[("If-None-Match", tag)], b"").await;
        assert_eq!((r.status, r.body.len(), r.header("etag")), (304, 0, Some(tag)), "{target}");
        let r = c.send("GET", target, &[("If-Match", "\"00000000000000000000000000000000\"")], b"").await;
        assert_eq!((r.status, r.code().as_str()), (412, "PRECONDITION_FAILED"), "{target}");
        assert_eq!(r.json()["context"]["current_md5"], md5(content), "{target}");
        let r = c.send("GET", target, &[("If-Match", tag)], b"").await;
        assert!(r.status == 200 && r.body == *content && r.header("accept-ranges") == Some("bytes"), "{target}");

        // A range is never packed.
        let from = size - 9;
        let range =
            [("Range", format!("bytes={from}-")), ("If-Match", tag.to_owned()), ("Accept-Encoding", "zstd".into())];
        let range: Vec<_> = range.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let r = c.send("GET", target, &range, b"").await;
        assert_eq!((r.status, r.header("content-encoding")), (206, None), "{target}");
        assert_eq!(r.header("content-range"), Some(&*format!("bytes {from}-{}/{size}", size - 1)), "{target}");
        assert_eq!((&r.body[..], r.header("etag")), (&content[from..], Some(tag)), "{target}");
        let r = c.send("GET", target, &[("Range", "bytes=2-5")], b"").await;
        assert_eq!((r.status, &r.body[..]), (206, &content[2..6]), "{target}");
        let r = c.send("GET", target, &[("Range", &format!("bytes={size}-"))], b"").await;
        assert_eq!((r.status, r.header("content-range")), (416, Some(&*format!("bytes */{size}"))), "{target}");
        let r = c.send("GET", target, &[("Range", "bytes=0-1,4-5")], b"").await;
        assert!(r.status == 200 && r.body == *content, "{target}: several ranges are none");
        let r = c.send("HEAD", target, &[("Range", "bytes=2-5")], b"").await;
        assert_eq!((r.status, r.header("content-length")), (200, Some(&*size.to_string())), "{target}");
    }
    // The range spans several pieces of the file.
    let r = c.send("GET", "/blob/large", &[("Range", "bytes=200000-600000")], b"").await;
    assert!(r.status == 206 && r.body == large[200_000..=600_000]);
}

#[tokio::test]
async fn large_blobs_stream_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    let body: Vec<u8> = (0..20 * 1024 * 1024u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    let r = c.put("/blob/video.bin", "new", &body).await;
    assert_eq!((r.status, r.header("etag")), (201, Some(format!("\"{}\"", md5(&body)).as_str())));
    let r = c.get("/blob/video.bin").await;
    assert_eq!((r.status, r.header("content-length")), (200, Some("20971520")));
    assert!(r.body == body);
    assert_eq!(c.send("HEAD", "/blob/video.bin", &[], b"").await.header("content-length"), Some("20971520"));
}

// One thread, so that its log subscriber sees the tasks of the proxy.
#[tokio::test(flavor = "current_thread")]
async fn access_log_has_each_request_and_no_secret() {
    let log = Log::default();
    let _guard = log.listen();
    let (running, mut c) = memory().await;
    c.put("/blob/a%0Ab", "new", b"content").await;
    c.put("/blob/caf%C3%A9", "new", b"content").await;
    c.get("/sync?since=0&epoch=private").await;
    c.send("GET", "/blob/x", &[("Cookie", "private")], b"").await;
    running.stop().await;
    let log = log.text();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("memsync::access")).collect();
    assert_eq!(lines.len(), 4, "{log}");
    for (line, wanted) in lines.iter().zip([
        ["method=PUT", "path=\"/blob/a%0Ab\"", "status=400"],
        ["method=PUT", "path=\"/blob/caf%C3%A9\"", "status=201"],
        ["method=GET", "path=\"/sync\"", "status=200"],
        ["method=GET", "path=\"/blob/x\"", "status=404"],
    ]) {
        assert!(wanted.iter().all(|w| line.contains(w)) && line.contains("ms="), "{line}");
        assert!(line.contains("client=127.0.0.1 caller=\"token\"") && !line.contains("user="), "{line}");
    }
    assert!(!log.contains(TOKEN) && !log.contains("private"), "{log}");
}
