//! `memsync serve` and `memsync reindex` with a bucket, as the real program, against an S3 in this process.

use std::process::Command;

use memsync::store::{Expect, Got, Store, system_clock};

#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/s3.rs"]
mod s3;
#[path = "common/serving.rs"]
mod serving;

use s3::{Server, Stored};
use serving::{Serving, memsync};

async fn said(mut command: Command) -> (i32, String) {
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_serves_a_bucket_and_another_takes_it_over() {
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

    // Beside it another proxy on the same bucket: what one takes the other has.
    let second = Serving::start(two.path(), &server, &[]).await;
    let mut other = second.client().await;
    assert_eq!(other.get("/blob/topics/a%20b.md").await.body, b"hello");
    assert_eq!(other.put("/blob/topics/a%20b.md", &proxy::md5(b"hello"), b"changed").await.status, 200);
    assert_eq!(client.put("/blob/topics/a%20b.md", &proxy::md5(b"hello"), b"late").await.status, 412);
    assert_ne!(client.get("/sync").await.header("etag").unwrap(), etag);
    let kept = client.get("/versions/topics/a%20b.md").await.json();
    let earlier = format!("/blob/topics/a%20b.md?version={}", kept["versions"][1]["version"]);
    assert_eq!(other.get(&earlier).await.body, b"hello", "what one replaced the other gives back");
    drop(first);
    let large = vec![7; 5_000_000];
    assert_eq!(other.put("/blob/large.bin", "new", &large).await.status, 201);
    assert_eq!(other.get("/blob/large.bin").await.body, large);
    drop(second);

    let store = server.store("memory", system_clock()).await;
    assert_eq!(store.index("", 0).await.unwrap().entries.len(), 3);
    assert_eq!(std::fs::read_dir(two.path().join("proxy/spool")).unwrap().count(), 0, "nothing is left behind");
}

/// The bucket has no border between namespaces; a key for one does not reach the other through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_one_namespace_reaches_no_other_by_a_longer_name() {
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
    assert_eq!(flat.get("/team/blob/secret.md").await.status, 403, "not by its name");
    let tag = proxy::md5(b"secret");
    let head = br#"{"op":"get","path":"team/secret.md"}"#;
    let frame = [&u32::try_from(head.len()).unwrap().to_be_bytes()[..], head].concat();
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
    let batch = flat.send("POST", "/batch", &[("Content-Type", "application/vnd.memsync.batch")], &frame).await;
    let told = String::from_utf8_lossy(&batch.body).into_owned();
    assert!(told.contains("\"status\":409") && !told.ends_with("secret"), "{told}");
    assert_eq!(flat.get("/sync").await.json()["files"], serde_json::json!({}));
    assert_eq!(flat.put("/blob/teams.md", "new", b"mine").await.status, 201);
    assert_eq!(all.get("/team/blob/secret.md").await.body, b"secret");
}

/// With credentials for the prefix alone there are no versions, and the proxy says so instead of forgetting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_is_not_promised() {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reindex_says_what_it_mended() {
    let server = Server::start().await;
    let home = tempfile::tempdir().unwrap();
    let reindex = |more: &[&str]| {
        let mut command = memsync(home.path(), &server);
        command.arg("reindex").args(more);
        said(command)
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
    assert!(matches!(store.get("", &name).await.unwrap(), Got::Found(_)));
    store.put_bytes("team", &name, Expect::Absent, bytes::Bytes::from_static(b"x")).await.unwrap();
    let (code, text) = reindex(&[]).await;
    assert_eq!(code, 0);
    assert!(text.contains("s3://notes/memory, namespace team: the index is right (1 files)."), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_cannot_work_are_told() {
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
        let (was, text) = said(command).await;
        assert_eq!(was, code, "{name}={value}: {text}");
        assert!(text.contains(words), "{words}: {text}");
        assert!(!text.contains(s3::SECRET_KEY), "{text}");
    }
    let mut command = memsync(home.path(), &server);
    command.arg("reindex").env_remove("S3_BUCKET");
    let (code, text) = said(command).await;
    assert_eq!(code, 2);
    assert!(text.contains("set S3_BUCKET"), "{text}");
}
