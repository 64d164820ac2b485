//! `memsync serve`, `reindex` and `store copy` with a bucket: the real program against an S3 server in this process.

use crate::common::frames;
use crate::common::proxy;
use crate::common::s3;
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::frames::{frames, parse};
use memsync::store::{GetOutcome, SqliteStore, Store, WriteCondition, system_clock};

mod delta;
mod quota;

use crate::common::s3::{Server, Stored};
use crate::common::serving::{Serving, memsync};
use serde_json::json;

async fn output_of(mut command: Command) -> (i32, String) {
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// True if the proxy reports that its history does not contain this point.
async fn is_set_back(client: &mut proxy::Client, point: &str) -> bool {
    client.get(&format!("/sync?history={point}")).await.header("x-memsync-set-back").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn index_shows_that_the_bucket_was_reset() {
    let server = Server::start().await;
    let home = tempfile::tempdir().unwrap();
    let running = Serving::start(home.path(), &server, &[]).await;
    let mut client = running.client().await;
    client.put("/blob/a", "new", b"old").await;
    let point = async |client: &mut proxy::Client| {
        client.get("/sync").await.json()["index_history"].as_str().unwrap().to_owned()
    };
    let before = point(&mut client).await;
    let copy: Vec<_> = server.keys().into_iter().map(|key| (server.object(&key).unwrap(), key)).collect();
    client.put("/blob/a", &proxy::md5(b"old"), b"newer").await;
    let after = point(&mut client).await;
    assert!(!is_set_back(&mut client, &before).await && !is_set_back(&mut client, &after).await);
    for (object, key) in copy {
        server.plant(&key, object);
    }
    assert!(is_set_back(&mut client, &after).await);
    assert!(!is_set_back(&mut client, &before).await, "the history contains this point");
    // The proxy's next write begins another history id.
    client.put("/blob/b", "new", b"theirs").await;
    client.put("/blob/c", "new", b"theirs").await;
    let now = point(&mut client).await;
    assert!(is_set_back(&mut client, &after).await, "{after} {now}");
    assert!(!is_set_back(&mut client, &before).await && !is_set_back(&mut client, &now).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_proxy_takes_over_a_bucket() {
    let server = Server::start().await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Serving::start(one.path(), &server, &[]).await;
    let mut client = first.client().await;
    let health = client.get("/health").await.json();
    let capabilities = health["capabilities"].as_array().unwrap().clone();
    assert!(capabilities.contains(&"index-etag".into()), "{health}");
    assert!(!capabilities.contains(&"strong-index".into()) && !capabilities.contains(&"delta".into()), "{health}");
    assert!(capabilities.contains(&"versions".into()), "{health}");
    assert_eq!(client.put("/blob/topics/a%20b.md", "new", b"hello").await.status, 201);
    assert_eq!(client.put("/blob/gone.md", "new", b"gone").await.status, 201);
    assert_eq!(client.delete("/blob/gone.md").await.status, 204);
    let index = client.get("/sync").await;
    let etag = index.header("etag").unwrap().to_owned();
    assert_eq!(index.json()["files"]["topics/a b.md"]["md5"], proxy::md5(b"hello"));
    assert_eq!(client.send("GET", "/sync", &[("If-None-Match", &etag)], b"").await.status, 304);

    // Another proxy on the same bucket sees the same files.
    let second = Serving::start(two.path(), &server, &[]).await;
    let mut other = second.client().await;
    assert_eq!(other.get("/blob/topics/a%20b.md").await.body, b"hello");
    assert_eq!(other.put("/blob/topics/a%20b.md", &proxy::md5(b"hello"), b"changed").await.status, 200);
    assert_eq!(client.put("/blob/topics/a%20b.md", &proxy::md5(b"hello"), b"late").await.status, 412);
    assert_ne!(client.get("/sync").await.header("etag").unwrap(), etag);
    let kept = client.get("/versions/topics/a%20b.md").await.json();
    let earlier = format!("/blob/topics/a%20b.md?version={}", kept["versions"][1]["version"]);
    assert_eq!(other.get(&earlier).await.body, b"hello", "the other proxy has the earlier version");
    drop(first);
    let large = vec![7; 5_000_000];
    assert_eq!(other.put("/blob/large.bin", "new", &large).await.status, 201);
    assert_eq!(other.get("/blob/large.bin").await.body, large);
    drop(second);

    let store = server.store("memory", system_clock()).await;
    assert_eq!(store.index("", 0).await.unwrap().entries.len(), 3);
    assert_eq!(std::fs::read_dir(two.path().join("proxy/spool")).unwrap().count(), 0, "the spool is empty");
}

/// In the bucket a namespace's file and a flat file with a longer name are the same object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_reaches_no_other_namespace_by_a_longer_name() {
    let server = Server::start().await;
    let home = tempfile::tempdir().unwrap();
    let mut create = memsync(home.path(), &server);
    create.args(["key", "create", "--name", "flat", "--namespace", ""]);
    let key = tokio::task::spawn_blocking(move || create.output().unwrap()).await.unwrap();
    let serving = Serving::start(home.path(), &server, &[]).await;
    let mut all = serving.client().await;
    let version = [("If-Match-Version", "0")];
    assert_eq!(all.send("PUT", "/team/blob/secret.md", &version, b"secret").await.status, 201);

    let mut flat = serving.client().await;
    flat.token = String::from_utf8(key.stdout).unwrap().trim().to_owned();
    assert_eq!(flat.get("/team/blob/secret.md").await.status, 403, "the key does not open this namespace");
    let tag = proxy::md5(b"secret");
    let frame = frames(&[(json!({"op": "get", "path": "team/secret.md"}), Vec::new())]);
    for (n, reply) in [
        flat.get("/blob/team/secret.md").await,
        flat.get("/blob/team/secret.md?version=1").await,
        flat.get("/versions/team/secret.md").await,
        flat.put("/blob/team/secret.md", &tag, b"mine").await,
        flat.put("/blob/team/new.md", "new", b"mine").await,
        flat.send("DELETE", "/blob/team/secret.md", &[("If-Match", &tag)], b"").await,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!((reply.status, reply.code().as_str()), (409, "OTHER_NAMESPACE"), "{n}: {reply:?}");
    }
    let batch = flat.send("POST", "/batch", &BATCH, &frame).await;
    let answer = String::from_utf8_lossy(&batch.body).into_owned();
    assert!(answer.contains("\"status\":409") && !answer.ends_with("secret"), "{answer}");
    assert_eq!(flat.get("/sync").await.json()["files"], json!({}));
    assert_eq!(flat.put("/blob/teams.md", "new", b"mine").await.status, 201);
    assert_eq!(all.get("/team/blob/secret.md").await.body, b"secret");
}

/// Deep names in one batch cost a limited number of requests. The rest must be requested one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deep_names_in_a_batch_cost_limited_requests() {
    let server = Server::start().await;
    let running = proxy::Running::start(Arc::new(server.store("memory", system_clock()).await)).await;
    let deep = |n: usize| format!("{n}/{}", vec!["d"; 400].join("/"));
    let gets: Vec<_> = (0..40).map(|n| (json!({"op": "get", "path": deep(n)}), Vec::new())).collect();
    let looks = || server.requests().get("HEAD").copied().unwrap_or(0);
    let before = looks();
    let mut client = running.client().await;
    let statuses = statuses(&client.send("POST", "/batch", &BATCH, &frames(&gets)).await.body);
    let asked = looks() - before;
    assert!(asked <= 4096, "{asked} requests");
    assert_eq!((statuses[0], statuses[39], statuses.len()), (404, 413, 40));
    assert_eq!(client.get(&format!("/blob/{}", deep(39))).await.status, 404);
}

/// Credentials for the prefix alone allow no versions, and the proxy reports that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_not_offered_if_they_cannot_be_kept() {
    let server = Server::start_with(s3::Quirks { only_below: Some("memory/"), ..s3::Quirks::default() }).await;
    let home = tempfile::tempdir().unwrap();
    let serving = Serving::start(home.path(), &server, &[]).await;
    let mut client = serving.client().await;
    let health = client.get("/health").await.json();
    assert!(!health["capabilities"].as_array().unwrap().contains(&"versions".into()), "{health}");
    let due = [("Content-MD5", "new"), ("X-Memsync-Expires", "2099-01-01T00:00:00Z")];
    let refused = client.send("PUT", "/blob/due.md", &due, b"due").await;
    assert_eq!((refused.status, refused.json()["error_code"].as_str()), (400, Some("INVALID_HEADER")));
    assert_eq!(client.get("/blob/due.md").await.status, 404);
    assert_eq!(client.put("/blob/due.md", "new", b"due").await.status, 201);
    let log = std::fs::read_to_string(home.path().join("serve.log")).unwrap();
    assert!(log.contains("memory.memsync/") && log.contains("no earlier versions are kept"), "{log}");
}

/// The limit on a key includes the prefix.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn name_too_long_for_a_key_is_refused() {
    let server = Server::start().await;
    let running = proxy::Running::start(Arc::new(server.store("memory", system_clock()).await)).await;
    let mut client = running.client().await;
    let long = vec!["x".repeat(254); 4].join("/");
    for reply in [
        client.get(&format!("/blob/{long}")).await,
        client.put(&format!("/blob/{long}"), "new", b"x").await,
        client.delete(&format!("/blob/{long}")).await,
        client.get(&format!("/sync/{long}")).await,
    ] {
        assert_eq!((reply.status, reply.code().as_str()), (414, "PATH_TOO_LONG"), "{reply:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reindex_reports_its_repairs() {
    let server = Server::start().await;
    let home = tempfile::tempdir().unwrap();
    let reindex = |more: &[&str]| {
        let mut command = memsync(home.path(), &server);
        command.arg("reindex").args(more);
        output_of(command)
    };
    let (code, text) = reindex(&[]).await;
    assert_eq!((code, text.as_str()), (0, "s3://notes/memory, flat: the index is right (0 files).\n"));

    server.plant("memory/a.md", Stored::new(b"a", &[]));
    server.plant("memory/b.md", Stored::new(b"b", &[]));
    let (code, text) = reindex(&[]).await;
    let want = "added      a.md\nadded      b.md\n\
                s3://notes/memory, flat: 2 added, 0 corrected, 0 dropped (2 files).\n";
    assert_eq!((code, text.as_str()), (0, want));
    server.remove("memory/b.md");
    let (code, json) = reindex(&["--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json[0]["dropped"][0], &json[0]["files"]), (0, &"b.md".into(), &1.into()));

    let store = server.store("memory", system_clock()).await;
    let name = memsync::path::RelPath::parse("a.md").unwrap();
    assert!(matches!(store.get("", &name).await.unwrap(), GetOutcome::Found(_)));
    store.put_bytes("team", &name, WriteCondition::Absent, bytes::Bytes::from_static(b"x")).await.unwrap();
    let (code, text) = reindex(&[]).await;
    assert_eq!(code, 0);
    assert!(text.contains("s3://notes/memory, namespace team: the index is right (1 files)."), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_settings_are_reported() {
    let server = Server::start().await;
    let home = tempfile::tempdir().unwrap();
    for (name, value, code, words) in [
        ("MEMSYNC_STORE", "x", 2, "S3_BUCKET"),
        ("AWS_SECRET_ACCESS_KEY", "", 2, "AWS_SECRET_ACCESS_KEY is not"),
        ("S3_ETAG_QUOTES", "both", 2, "`keep` or `strip`"),
        ("S3_ALLOW_HTTP", "1", 2, "`true` or `false`"),
        ("S3_ENDPOINT_URL", "http://10.1.2.3:9000", 1, "plain http"),
        ("S3_BUCKET", "nowhere", 1, "The specified bucket does not exist"),
        ("AWS_SECRET_ACCESS_KEY", "another", 1, "SignatureDoesNotMatch"),
    ] {
        let mut command = memsync(home.path(), &server);
        command.args(["serve", "--listen", "127.0.0.1:0"]).env(name, value);
        let (was, text) = output_of(command).await;
        assert_eq!(was, code, "{name}={value}: {text}");
        assert!(text.contains(words), "{words}: {text}");
        assert!(!text.contains(s3::SECRET_KEY), "{text}");
    }
    let mut command = memsync(home.path(), &server);
    command.arg("reindex").env_remove("S3_BUCKET");
    let (code, text) = output_of(command).await;
    assert_eq!(code, 2);
    assert!(text.contains("set S3_BUCKET"), "{text}");
}

/// Event listeners of one proxy see the writes of another, in every namespace with listeners.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_include_writes_of_another_proxy() {
    let server = Server::start().await;
    let options =
        || memsync::proxy::ProxyOptions { foreign_poll_interval: Duration::from_millis(20), ..proxy::options() };
    let start = async || {
        let store = server.store("memory", system_clock()).await;
        proxy::Running::start_with(Arc::new(store), options()).await
    };
    let (one, two) = (start().await, start().await);
    let mut writer = one.client().await;
    assert_eq!(writer.put("/blob/before.md", "new", b"1").await.status, 201);

    let listen = async |target: &str| {
        let mut events = two.client().await;
        events.write(&proxy::head("GET", target, &[("Authorization", format!("Bearer {}", proxy::TOKEN))])).await;
        events.until(": connected\n\n").await;
        events
    };
    let (mut flat, mut team) = (listen("/events").await, listen("/events/team").await);
    let mut reader = two.client().await;
    let etag = reader.get("/sync").await.header("etag").unwrap().to_owned();

    assert_eq!(writer.put("/blob/a.md", "new", b"a").await.status, 201);
    flat.until("\"path\":\"a.md\"}").await;
    let index = reader.send("GET", "/sync", &[("If-None-Match", &etag)], b"").await;
    assert_eq!((index.status, &index.json()["files"]["a.md"]["size"]), (200, &1.into()));
    assert_eq!(reader.get("/blob/a.md").await.body, b"a");

    let version = [("If-Match-Version", "0")];
    assert_eq!(writer.send("PUT", "/team/blob/t.md", &version, b"t").await.status, 201);
    team.until("\"path\":\"t.md\"}").await;
    assert_eq!(writer.delete("/blob/a.md").await.status, 204);
    let events = flat.until("\"path\":\"a.md\"}").await;
    assert!(!events.contains("t.md"), "an event of another namespace: {events}");

    // Its own writes are events, too.
    assert_eq!(reader.put("/blob/b.md", "new", b"b").await.status, 201);
    flat.until("\"path\":\"b.md\"}").await;
}

/// Anyone may request `/health` at any rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_checks_share_one_bucket_request_and_time_out() {
    let server = Server::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let running = proxy::Running::start(Arc::new(server.store("memory", system_clock()).await)).await;
    let count = asked.clone();
    server.fail(move |_, key| {
        count.fetch_add(usize::from(key.ends_with("/.sync-index.json")), Ordering::SeqCst);
        s3::Fault::Slow(Duration::from_secs(600))
    });
    let began = Instant::now();
    // A check lasts five seconds. On a slow machine the requests may wait for a second one.
    let looks = || 1 + usize::try_from(began.elapsed().as_secs() / 5).unwrap();
    let many = futures::future::join_all((0..50).map(|_| async { running.client().await.get("/health").await })).await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    for r in many {
        let health = r.json();
        assert_eq!((r.status, &health["storage"]), (503, &"disconnected".into()));
        let detail = health["detail"].as_str().unwrap();
        assert!(detail == "the storage has not answered for 3 s" || detail.contains("does not answer"), "{detail}");
    }
    assert!((1..=looks()).contains(&asked.load(Ordering::SeqCst)), "{asked:?}");
    // A client that disconnects causes no further check.
    for _ in 0..20 {
        running.client().await.write(&proxy::head("GET", "/health", &[])).await;
    }
    server.heal();
    let at_most = looks() + 1;
    let deadline = Instant::now() + Duration::from_secs(20);
    while running.client().await.get("/health").await.status != 200 {
        assert!(Instant::now() < deadline, "the proxy is healthy again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(asked.load(Ordering::SeqCst) <= at_most, "{asked:?}");
}

/// Frames of a batch of puts, each to a new path.
fn puts(contents: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let put = |(path, content): (String, Vec<u8>)| {
        (json!({"op": "put", "path": path, "precondition": "new", "version": 0, "size": content.len()}), content)
    };
    frames(&contents.map(put).collect::<Vec<_>>())
}

/// The statuses in the answer to a batch of puts.
fn statuses(body: &[u8]) -> Vec<u64> {
    parse(body).iter().map(|(head, _)| head["status"].as_u64().unwrap()).collect()
}

async fn client(running: &proxy::Running, token: &str) -> proxy::Client {
    let mut client = running.client().await;
    client.token = token.to_owned();
    client
}

const BATCH: [(&str, &str); 1] = [("Content-Type", frames::TYPE)];

async fn sample(client: &mut proxy::Client, name: &str) -> f64 {
    proxy::sample(&String::from_utf8(client.get("/metrics").await.body).unwrap(), name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_few_index_writes_for_many_files() {
    let server = Server::start().await;
    let running = proxy::Running::start(Arc::new(server.store("memory", system_clock()).await)).await;
    let uploads = (0..3).map(|at| {
        let addr = running.addr;
        tokio::spawn(async move {
            let mut client = proxy::Client::connect(addr).await;
            for part in 0..2 {
                let files = (0..500).map(|n| (format!("{at}/{part}/{n}.md"), n.to_string().into_bytes()));
                let r = client.send("POST", "/batch", &BATCH, &puts(files)).await;
                assert!(statuses(&r.body).iter().all(|status| *status == 201));
            }
        })
    });
    for upload in futures::future::join_all(uploads).await {
        upload.unwrap();
    }
    let mut client = running.client().await;
    let writes = sample(&mut client, "memsync_store_index_writes_total").await;
    assert_eq!(writes, server.puts("memory/.sync-index.json") as f64);
    // An idle machine makes 30 writes. A slow one ends groups early, but still writes far fewer indexes than files.
    assert!((1.0..=300.0).contains(&writes), "{writes} index writes for 3,000 files");
    assert_eq!(sample(&mut client, "memsync_writes_total").await, 3000.0);
    let reads = sample(&mut client, "memsync_store_index_reads_total").await;
    client.get("/sync").await;
    assert_eq!(sample(&mut client, "memsync_store_index_reads_total").await, reads + 2.0, "the state, and the index");
}

/// Copies a store from a directory to a bucket, and from there to another directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_is_copied_to_a_bucket_and_back_with_its_keys() {
    let server = Server::start().await;
    let home = tempfile::tempdir().unwrap();
    let dir = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let run = |args: &[&str], bucket: bool| {
        let mut command = memsync(home.path(), &server);
        command.args(args);
        if !bucket {
            command.env_remove("S3_BUCKET");
        }
        output_of(command)
    };
    let path = |name: &str| memsync::path::RelPath::parse(name).unwrap();
    let bytes = |text: &'static str| bytes::Bytes::from_static(text.as_bytes());
    let store = SqliteStore::open(&home.path().join("one")).unwrap();
    store.put_bytes("", &path("a.md"), WriteCondition::Absent, bytes("first")).await.unwrap();
    let md5 = memsync::digest::Md5::of(b"first");
    store.put_bytes("", &path("a.md"), WriteCondition::Md5(md5), bytes("second")).await.unwrap();
    store.put_bytes("", &path("gone.md"), WriteCondition::Absent, bytes("gone")).await.unwrap();
    store.delete("", &path("gone.md"), None, memsync::store::BlobMeta::default()).await.unwrap();
    store.put_bytes("team/x", &path("b.md"), WriteCondition::Absent, bytes("b")).await.unwrap();
    let brief = |index: memsync::store::IndexSnapshot| -> BTreeMap<_, _> {
        let values = |e: memsync::store::IndexEntry| (e.md5, e.size, e.is_deleted, e.version);
        index.entries.into_iter().map(|(path, entry)| (path, values(entry))).collect()
    };
    let (flat, team) = (brief(store.index("", 0).await.unwrap()), brief(store.index("team/x", 0).await.unwrap()));
    drop(store);
    let (code, text) = run(&["key", "create", "--name", "ana", "--store", &dir("one")], false).await;
    assert_eq!(code, 0, "{text}");

    let (code, text) = run(&["store", "copy", &dir("one"), "s3:"], true).await;
    assert!(code == 0 && text.contains("3 paths"), "{text}");
    let (code, text) = run(&["store", "copy", &dir("one"), "s3:"], true).await;
    assert!(code == 0 && text.contains("0 versions written"), "the second copy writes nothing: {text}");
    let bucket = server.store("memory", system_clock()).await;
    assert_eq!(brief(bucket.index("", 0).await.unwrap()), flat);
    assert_eq!(brief(bucket.index("team/x", 0).await.unwrap()), team);
    let (code, text) = run(&["key", "list"], true).await;
    assert!(code == 0 && text.contains("ana"), "{text}");

    // Another proxy added a file, and its index has other times.
    server.plant("memory/theirs.md", Stored::new(b"theirs", &[("content-md5", &proxy::md5(b"theirs"))]));
    let mut index: serde_json::Value =
        serde_json::from_slice(&server.object("memory/.sync-index.json").unwrap().body).unwrap();
    let second = jiff::Timestamp::now().as_second() + 7;
    index["files"]["theirs.md"] = json!({"md5": proxy::md5(b"theirs"), "size": 6, "is_deleted": false,
        "last_modified": jiff::Timestamp::from_second(second).unwrap().to_string()});
    server.plant("memory/.sync-index.json", Stored::new(index.to_string().as_bytes(), &[]));

    let (code, text) = run(&["store", "copy", "s3:", &dir("two")], true).await;
    assert!(code == 0 && text.contains("4 paths"), "{text}");
    let back = SqliteStore::open(&home.path().join("two")).unwrap();
    let mut now = brief(back.index("", 0).await.unwrap());
    assert_eq!(now.remove("theirs.md").unwrap().1, 6);
    assert_eq!((now, brief(back.index("team/x", 0).await.unwrap())), (flat, team));
    drop(back);
    let (code, text) = run(&["key", "list", "--store", &dir("two")], false).await;
    assert!(code == 0 && text.contains("ana"), "{text}");

    // A missing bucket leaves no target store.
    let mut command = memsync(home.path(), &server);
    command.args(["store", "copy", "s3:", &dir("three")]).env("S3_BUCKET", "nowhere");
    let (code, text) = output_of(command).await;
    assert!(code == 1 && !home.path().join("three").exists(), "{text}");
}
