//! The namespaced dialect over real HTTP: every line of its table, and recorded requests of deployed clients.

use std::sync::atomic::{AtomicU64, Ordering};

use memsync::store::sqlite::SqliteSettings;

use super::*;

/// PUT with `If-Match-Version` and without `Prefer`.
async fn put(c: &mut Client, target: &str, version: u64, body: &[u8]) -> Reply {
    c.send("PUT", target, &[("If-Match-Version", &version.to_string())], body).await
}

fn version(r: &Reply) -> u64 {
    r.header("x-version").unwrap_or_else(|| panic!("{r:?}")).parse().unwrap()
}

#[tokio::test]
async fn namespaced_blob_is_created_read_updated_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    let (one, two) = (md5(b"one"), md5(b"two"));
    let url = "/team/notes/blob/topics/ai.md";

    let r = c.get("/sync/team/notes").await;
    assert_eq!((r.status, &r.json()["files"]), (200, &json!({})), "an unknown namespace is empty");
    assert!(r.json()["index_version"].is_u64());
    assert_eq!(c.get(url).await.status, 404);

    let r = c.send("PUT", url, &[("If-Match-Version", "0"), ("Content-Type", "text/markdown")], b"one").await;
    assert_eq!((r.status, r.header("etag")), (201, Some(format!("\"{one}\"").as_str())));
    let v1 = version(&r);
    let manifest = r.json();
    assert_eq!(r.header("content-type"), Some("application/json"));
    let ai = &manifest["files"]["topics/ai.md"];
    assert_eq!((&ai["md5"], &ai["size"], &ai["is_deleted"]), (&json!(one), &json!(3), &json!(false)));
    assert_eq!((&ai["version"], manifest["index_version"].as_u64() >= Some(v1)), (&json!(v1), true));
    assert_eq!(c.get("/sync/team/notes").await.json(), manifest, "it is the whole index");

    let r = c.get(url).await;
    assert_eq!((r.status, r.body.as_slice(), version(&r)), (200, &b"one"[..], v1));
    assert_eq!(r.header("etag"), Some(format!("\"{one}\"").as_str()));
    assert_eq!(r.header("content-type"), Some("text/markdown"));
    assert!(r.header("last-modified").unwrap().ends_with(" GMT"), "{r:?}");
    let r = c.send("HEAD", url, &[], b"").await;
    assert_eq!((r.status, version(&r), r.body.len()), (200, v1, 0));

    let r = put(&mut c, url, 0, b"two").await;
    assert_eq!((r.status, r.code().as_str()), (412, "PRECONDITION_FAILED"));
    let context = json!({"current_version": v1.to_string(), "provided_version": "0", "current_md5": one,
        "is_deleted": false});
    assert_eq!(r.json()["context"], context);
    let r = put(&mut c, url, v1, b"two").await;
    let v2 = version(&r);
    assert!(r.status == 200 && v2 > v1 && r.header("etag") == Some(&format!("\"{two}\"")), "{r:?}");
    assert_eq!(r.json()["files"]["topics/ai.md"]["version"], v2, "the manifest is that after the write");
    assert_eq!(put(&mut c, url, v1, b"three").await.status, 412);
    assert_eq!(put(&mut c, "/team/notes/blob/none", v1, b"x").await.json()["context"]["current_version"], "none");

    let r = c.send("DELETE", url, &[("If-Match-Version", &v1.to_string())], b"").await;
    assert_eq!((r.status, &r.json()["context"]["current_version"]), (412, &json!(v2.to_string())));
    let r = c.send("DELETE", url, &[("If-Match-Version", &v2.to_string())], b"").await;
    let v3 = version(&r);
    assert!(r.status == 200 && v3 > v2, "{r:?}");
    let dead = &r.json()["files"]["topics/ai.md"];
    assert_eq!((&dead["is_deleted"], &dead["size"], &dead["version"]), (&json!(true), &json!(0), &json!(v3)));
    for r in [c.get(url).await, c.delete(url).await] {
        assert_eq!((r.status, r.header("x-tombstone"), version(&r)), (404, Some(two.as_str()), v3));
    }
    let listed = c.get("/team/notes/versions/topics/ai.md").await.json();
    let listed: Vec<_> =
        listed["versions"].as_array().unwrap().iter().map(|v| v["version"].as_u64().unwrap()).collect();
    assert_eq!(listed, [v3, v2, v1]);
    assert_eq!(c.get(&format!("{url}?version={v1}")).await.body, b"one");
    // A tombstone is overwritten by its version and by 0.
    assert_eq!(put(&mut c, url, v2, b"old").await.status, 412);
    let r = put(&mut c, url, v3, b"again").await;
    assert!(r.status == 201 && version(&r) > v3, "{r:?}");
    assert_eq!(c.delete(url).await.status, 200, "without a condition");
    assert_eq!(put(&mut c, url, 0, b"once more").await.status, 201);
    assert_eq!(c.delete("/team/notes/blob/absent").await.status, 404);
    running.stop().await;
}

#[tokio::test]
async fn namespaced_write_without_a_valid_version_is_refused() {
    let (_running, mut c) = memory().await;
    let url = "/n/blob/x";
    for headers in [&[][..], &[("Content-MD5", "new")], &[("If-None-Match", "*")]] {
        let r = c.send("PUT", url, headers, b"a").await;
        assert_eq!((r.status, r.code().as_str()), (422, "VERSION_REQUIRED"), "{headers:?}");
    }
    for bad in ["", "-1", "+1", "new", "1.0", "\"1\"", "99999999999999999999"] {
        for method in ["PUT", "DELETE"] {
            let r = c.send(method, url, &[("If-Match-Version", bad)], b"").await;
            assert_eq!((r.status, r.code().as_str()), (400, "INVALID_VERSION"), "{method} {bad:?}");
        }
    }
    assert_eq!(c.get(url).await.status, 404);
}

#[tokio::test]
async fn namespaced_body_with_another_md5_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    let large = vec![7; 3 << 20];
    for (body, size) in [(&b"body"[..], "small"), (&large, "large")] {
        let url = format!("/n/blob/{size}");
        let with = |digest: &str| vec![("If-Match-Version", "0".to_owned()), ("Content-MD5", digest.to_owned())];
        async fn send(c: &mut Client, url: &str, headers: &[(&'static str, String)], body: &[u8]) -> Reply {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            c.send("PUT", url, &headers, body).await
        }
        let r = send(&mut c, &url, &with(&md5(b"another")), body).await;
        assert_eq!((r.status, r.code().as_str()), (400, "DIGEST_MISMATCH"));
        for bad in ["new", "", "XUFAKrxLKna5cZ2REBfFkg==", &md5(body).to_uppercase()] {
            let mut c = running.client().await;
            let r = send(&mut c, &url, &with(bad), body).await;
            assert_eq!((r.status, r.code().as_str()), (400, "INVALID_DIGEST"), "{bad:?}");
        }
        assert_eq!(c.get(&url).await.status, 404, "nothing was written");
        assert_eq!(c.get("/sync/n").await.json()["files"].get(size), None);
        assert_eq!(send(&mut c, &url, &with(&md5(body)), body).await.status, 201);
        assert!(c.get(&url).await.body == body);
    }
    running.stop().await;
    let bodies = std::fs::read_dir(dir.path().join("store/bodies")).unwrap().count();
    assert_eq!(bodies, 1, "of the large one that was written");
}

#[tokio::test]
async fn client_may_decline_the_index_after_a_write() {
    let (_running, mut c) = memory().await;
    let minimal = [("If-Match-Version", "0"), ("Prefer", "return=minimal")];
    let r = c.send("PUT", "/n/blob/x", &minimal, b"a").await;
    assert_eq!((r.status, r.body.len(), r.header("preference-applied")), (201, 0, Some("return=minimal")));
    assert_eq!(r.header("etag"), Some(format!("\"{}\"", md5(b"a")).as_str()));
    let v = version(&r);
    let r = c.send("DELETE", "/n/blob/x", &[("Prefer", "respond-async, return=minimal")], b"").await;
    assert_eq!((r.status, r.body.len(), r.header("preference-applied")), (200, 0, Some("return=minimal")));
    assert!(version(&r) > v);
    let r = c.send("PUT", "/n/blob/y", &[("If-Match-Version", "0"), ("Prefer", "return=representation")], b"a").await;
    assert_eq!((r.status, r.header("preference-applied")), (201, None));
    assert_eq!(r.json()["files"].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn namespaces_are_isolated() {
    let (running, mut c) = memory().await;
    assert_eq!(c.put("/blob/x", "new", b"flat").await.status, 201);
    for ns in ["a", "a/b", "b"] {
        assert_eq!(put(&mut c, &format!("/{ns}/blob/x"), 0, ns.as_bytes()).await.status, 201, "{ns}");
    }
    for ns in ["a", "a/b", "b"] {
        assert_eq!(c.get(&format!("/{ns}/blob/x")).await.body, ns.as_bytes());
        let index = c.get(&format!("/sync/{ns}")).await.json();
        assert_eq!(index["files"]["x"]["md5"], md5(ns.as_bytes()), "{ns}");
        assert_eq!(index["files"].as_object().unwrap().len(), 1);
    }
    let flat = c.get("/sync").await.json();
    assert_eq!(flat["files"]["x"]["md5"], md5(b"flat"));
    assert_eq!((flat.get("index_version"), flat["files"]["x"].get("version")), (None, None), "the flat index is plain");

    // The ETag, deltas and events of a namespace do not depend on changes in another.
    let r = c.get("/sync/a").await;
    let (etag, index) = (r.header("etag").unwrap().to_owned(), r.json());
    let mut events = running.client().await;
    events.write(&head("GET", "/events/a", &[bearer()])).await;
    assert_eq!(events.reply("GET").await.status, 200);
    events.until(": connected\n\n").await;
    put(&mut c, "/b/blob/y", 0, b"y").await;
    c.put("/blob/y", "new", b"y").await;
    assert_eq!(c.send("GET", "/sync/a", &[("If-None-Match", &etag)], b"").await.status, 304);
    put(&mut c, "/a/blob/new%20one", 0, b"y").await;
    let seen = events.until("new one\"}\n\n").await;
    assert_eq!(seen.matches("id:").count(), 1, "{seen}");
    let (epoch, cursor) = (index["index_epoch"].as_str().unwrap(), &index["index_cursor"]);
    let delta = c.get(&format!("/sync/a?since={cursor}&epoch={epoch}")).await.json();
    assert_eq!((&delta["delta"], delta["files"].as_object().unwrap().len()), (&json!(true), 1));
    assert!(delta["files"]["new one"]["version"].is_u64() && delta["index_version"].is_u64());
}

#[tokio::test]
async fn last_plain_blob_segment_ends_the_namespace() {
    let (_running, mut c) = memory().await;
    for (ns, path, writes, reads) in [
        ("team/notes", "a/b.md", "/team%2Fnotes/blob/a%2Fb.md", "/team/notes/blob/a/b.md"),
        ("team/notes", "c/d.md", "/team/notes/blob/c/d.md", "/team%2fnotes/blob/c%2fd.md"),
        ("t", "a/blob/b", "/t/blob/a%2Fblob%2Fb", "/t/blob/a/blob%2Fb"),
        ("t", "blob/x", "/t/blob/blob%2Fx", "/%74/blob/blob%2Fx"),
        ("t/blob/a", "b", "/t/blob/a/blob/b", "/t%2Fblob%2Fa/blob/b"),
        ("t", "x/blob", "/t/blob/x/blob", "/t/blob/x%2Fblob"),
        ("u v/ü", "%2F", "/u%20v/%C3%BC/blob/%252F", "/u%20v%2F%C3%BC/blob/%252F"),
    ] {
        assert_eq!(put(&mut c, writes, 0, writes.as_bytes()).await.status, 201, "{writes}");
        assert_eq!(c.get(reads).await.body, writes.as_bytes(), "{reads}");
        let raw: String = ns.bytes().map(|b| format!("%{b:02x}")).collect();
        let index = c.get(&format!("/sync/{raw}")).await.json();
        assert_eq!(index["files"][path]["md5"], md5(writes.as_bytes()), "{ns} {path}");
    }
}

#[tokio::test]
async fn hostile_namespaces_are_refused() {
    let (_running, mut c) = memory().await;
    let long = "x".repeat(256);
    for ns in [
        "..",
        "a/..",
        "%2e%2e",
        "a/%2e%2e/b",
        "a//b",
        "a%2F%2Fb",
        "%2Fa",
        "a%2F",
        "a%00",
        "a%0A",
        "a%5Cb",
        ".memsync",
        "a/.MEMSYNC/b",
        "blob%2Fa",
        "sync%2Fa",
        "events%2Fa",
        "batch%2Fa",
        "versions%2Fa",
        ".sync-index.json",
        "a%2F.sync-index.json/b",
        &long,
    ] {
        for (method, target) in [
            ("PUT", format!("/{ns}/blob/x")),
            ("GET", format!("/{ns}/blob/x")),
            ("DELETE", format!("/{ns}/blob/x")),
            ("GET", format!("/sync/{ns}")),
            ("GET", format!("/events/{ns}")),
        ] {
            let r = c.send(method, &target, &[("If-Match-Version", "0")], b"").await;
            assert_eq!((r.status, r.code().as_str()), (400, "INVALID_NAMESPACE"), "{method} {target}");
        }
    }
    for (target, code) in [("/a%zz/blob/x", "INVALID_PATH"), ("/%FF/blob/x", "INVALID_PATH")] {
        let r = c.get(target).await;
        assert_eq!((r.status, r.code().as_str()), (400, code), "{target}");
    }
    for path in ["", "../x", "%2e%2e/x", "a%00", ".sync-index.json", ".sync-index.json/a", ".memsync/id"] {
        let r = c.send("PUT", &format!("/n/blob/{path}"), &[("If-Match-Version", "0")], b"").await;
        assert_eq!((r.status, r.code().as_str()), (400, "INVALID_PATH"), "{path}");
    }
    // The addresses of the proxy itself cannot be written to.
    for (target, status) in [("/sync/blob/x", 400), ("/events/blob/x", 400), ("/sync/n", 405), ("/events/n", 405)] {
        assert_eq!(c.send("PUT", target, &[("If-Match-Version", "0")], b"").await.status, status, "{target}");
    }
    let r = c.send("POST", "/n/blob/x", &[], b"").await;
    assert_eq!((r.status, r.header("allow")), (405, Some("GET, HEAD, PUT, DELETE")));
    let mut c = Client::connect(c.stream.peer_addr().unwrap()).await;
    c.write(&head("GET", "/n/blob/x", &[("Authorization", "Bearer wrong".to_owned())])).await;
    assert_eq!(c.reply("GET").await.status, 401);
}

#[tokio::test]
async fn versions_grow_when_the_clock_steps_back() {
    let now = Arc::new(AtomicU64::new(1_700_000_000_000));
    let (clock, dir) = (now.clone(), tempfile::tempdir().unwrap());
    let clock = Arc::new(move || clock.load(Ordering::Relaxed));
    let settings = SqliteSettings { clock, ..SqliteSettings::default() };
    let store = SqliteStore::open_with(&dir.path().join("store"), settings).unwrap();
    let running = Running::start(Arc::new(store)).await;
    let mut c = running.client().await;
    let mut held = 0;
    let mut index = 0;
    for (step, back) in
        [1_700_000_000_000, 1_700_000_000_000, 1_600_000_000_000, 5, 1_650_000_000_000].iter().enumerate()
    {
        now.store(*back, Ordering::Relaxed);
        let r = put(&mut c, "/n/blob/x", held, format!("{step}").as_bytes()).await;
        assert!(r.status < 300 && version(&r) > held, "{step}: {r:?}");
        held = version(&r);
        let seen = c.get("/sync/n").await.json();
        assert_eq!(seen["files"]["x"]["version"], held);
        assert!(seen["index_version"].as_u64().unwrap() >= index, "{seen}");
        index = seen["index_version"].as_u64().unwrap();
    }
    let r = c.delete("/n/blob/x").await;
    assert!(version(&r) > held, "a tombstone's version grows too");
    let dead = version(&r);
    let r = put(&mut c, "/n/blob/x", 0, b"again").await;
    assert!(version(&r) > dead, "{r:?}");
    running.stop().await;
}

#[tokio::test]
async fn one_of_many_writers_of_a_version_wins() {
    let (running, mut c) = memory().await;
    let mut held = version(&put(&mut c, "/n/blob/x", 0, b"first").await);
    for round in 0..5 {
        let race = (0..16).map(|n| {
            let running = &running;
            async move { put(&mut running.client().await, "/n/blob/x", held, format!("{round} {n}").as_bytes()).await }
        });
        let replies = join_all(race).await;
        let won: Vec<_> = replies.iter().filter(|r| r.status == 200).collect();
        assert_eq!((won.len(), replies.iter().filter(|r| r.status == 412).count()), (1, 15));
        held = version(won[0]);
        // The index in a response has the write or a later one.
        assert!(won[0].json()["files"]["x"]["version"].as_u64() >= Some(held));
    }
}

/// A first sync of two files, a change, a conflict and a deletion, in the bytes that the HTTP library of a deployed client
/// writes: lower-case header names, `Accept` and others, and a path encoded as a whole.
#[tokio::test]
async fn deployed_client_works_unchanged() {
    let (running, _) = memory().await;
    let mut c = running.client().await;
    let common = format!(
        "host: {}\r\naccept: */*\r\naccept-encoding: gzip, deflate\r\nconnection: keep-alive\r\n\
         user-agent: python-httpx/0.27.0\r\nauthorization: Bearer {TOKEN}\r\n",
        running.addr
    );
    async fn ask(c: &mut Client, line: &str, head: &str, body: &str) -> Reply {
        c.write(format!("{line} HTTP/1.1\r\n{head}\r\n{body}").as_bytes()).await;
        c.reply(line.split(' ').next().unwrap()).await
    }

    let r = ask(&mut c, "GET /health", &common, "").await.json();
    assert_eq!((&r["status"], &r["storage"], r["version"].is_string()), (&json!("ok"), &json!("connected"), true));
    let r = ask(&mut c, "GET /sync/u_42%2Fagents", &common, "").await;
    assert_eq!((r.status, &r.json()["files"]), (200, &json!({})));

    let body = "# Plan\n";
    let upload = |version: &str, body: &str| {
        format!(
            "{common}content-type: text/markdown\r\nif-match-version: {version}\r\ncontent-md5: {}\r\n\
             content-length: {}\r\n",
            md5(body.as_bytes()),
            body.len()
        )
    };
    let url = "/u_42%2Fagents/blob/projects%2Fplan.md";
    let r = ask(&mut c, &format!("PUT {url}"), &upload("0", body), body).await;
    assert_eq!((r.status, r.header("etag").unwrap()), (201, format!("\"{}\"", md5(body.as_bytes())).as_str()));
    let manifest = r.json();
    let entry = &manifest["files"]["projects/plan.md"];
    assert_eq!(entry["version"].to_string(), r.header("x-version").unwrap());
    for (field, kind) in [("md5", "string"), ("last_modified", "string"), ("size", "number"), ("is_deleted", "bool")] {
        let value = &entry[field];
        let is = (value.is_string(), value.is_number(), value.is_boolean());
        assert_eq!(is, (kind == "string", kind == "number", kind == "bool"), "{field}");
    }
    assert!(manifest["index_version"].is_u64() && manifest["index_last_modified"].is_string());

    // A second write without the version of the first gets the current state.
    let r = ask(&mut c, &format!("PUT {url}"), &upload("0", "other"), "other").await;
    let error = r.json();
    assert_eq!((r.status, &error["error_code"]), (412, &json!("PRECONDITION_FAILED")));
    assert_eq!(error["context"]["current_version"], entry["version"].to_string());
    assert_eq!(error["context"]["provided_version"], "0");
    let held = error["context"]["current_version"].as_str().unwrap();
    let r = ask(&mut c, &format!("PUT {url}"), &upload(held, "# Plan 2\n"), "# Plan 2\n").await;
    assert_eq!(r.status, 200);
    let held = r.header("x-version").unwrap().to_owned();

    let r = ask(&mut c, &format!("GET {url}"), &common, "").await;
    assert_eq!((r.status, r.body.as_slice(), r.header("x-version")), (200, &b"# Plan 2\n"[..], Some(held.as_str())));
    assert_eq!(r.header("content-type"), Some("text/markdown"));

    let head = format!("{common}if-match-version: {held}\r\n");
    let r = ask(&mut c, &format!("DELETE {url}"), &head, "").await;
    assert_eq!((r.status, &r.json()["files"]["projects/plan.md"]["is_deleted"]), (200, &json!(true)));
    assert_eq!(ask(&mut c, &format!("GET {url}"), &common, "").await.status, 404);
    let dead = r.header("x-version").unwrap();
    let r = ask(&mut c, &format!("PUT {url}"), &upload(dead, body), body).await;
    assert_eq!(r.status, 201, "a tombstone gives way to its version");
    running.stop().await;
}
