//! Versions, their metadata and expiry over the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memsync::store::sqlite::SqliteSettings;
use memsync::store::{SqliteStore, Store};
use serde_json::json;

use super::md5;
use crate::common::proxy::Running;

const HOUR: u64 = 3_600_000;

#[tokio::test]
async fn earlier_versions_are_listed_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(Arc::new(SqliteStore::open(dir.path()).unwrap())).await;
    let mut c = running.client().await;
    let (url, list) = ("/blob/topics/a%20b.md", "/versions/topics/a%20b.md");
    assert_eq!((c.get(list).await.status, c.get("/versions/").await.status), (404, 400));

    let first = [
        ("Content-MD5", "new"),
        ("Content-Type", "text/markdown"),
        ("X-Memsync-Device", "laptop"),
        ("X-Memsync-Meta-Topic", "ai"),
        ("X-Memsync-Expires", "2999-01-01T00:00:00Z"),
    ];
    assert_eq!(c.send("PUT", url, &first, b"one").await.status, 201);
    let second = [("Content-MD5", &*md5(b"one")), ("X-Memsync-Device", "phone"), ("X-Memsync-Expires", "never")];
    assert_eq!(c.send("PUT", url, &second, b"two").await.status, 200);
    assert_eq!(c.send("DELETE", url, &[("X-Memsync-Device", "tablet")], b"").await.status, 204);

    let r = c.get(list).await;
    assert_eq!(r.status, 200);
    let listed = r.json();
    assert_eq!(listed["path"], "topics/a b.md");
    let versions = listed["versions"].as_array().unwrap();
    let brief: Vec<_> = versions.iter().map(|v| json!([v["md5"], v["size"], v["is_deleted"], v["device"]])).collect();
    assert_eq!(
        brief,
        [
            json!([md5(b"two"), 0, true, "tablet"]),
            json!([md5(b"two"), 3, false, "phone"]),
            json!([md5(b"one"), 3, false, "laptop"]),
        ]
    );
    assert_eq!((&versions[1]["meta"], versions[1].get("expires")), (&json!({"topic": "ai"}), None));
    assert_eq!(
        (&versions[2]["expires"], &versions[2]["content_type"]),
        (&json!("2999-01-01T00:00:00.000Z"), &json!("text/markdown"))
    );

    let r = c.get(&format!("{url}?version={}", versions[2]["version"])).await;
    assert_eq!(
        (r.status, r.body.as_slice(), r.header("etag")),
        (200, &b"one"[..], Some(&*format!("\"{}\"", md5(b"one"))))
    );
    assert_eq!((r.header("x-memsync-device"), r.header("x-memsync-meta-topic")), (Some("laptop"), Some("ai")));
    let r = c.get(&format!("{url}?version={}", versions[1]["version"])).await;
    assert_eq!((r.status, r.body.as_slice(), r.header("content-type")), (200, &b"two"[..], Some("text/markdown")));
    assert_eq!(c.get(&format!("{url}?version={}", versions[0]["version"])).await.status, 404, "the tombstone");
    assert_eq!(c.get(&format!("{url}?version=5")).await.status, 404);
    assert_eq!(c.get(&format!("{url}?version=x")).await.status, 400);
    assert_eq!(c.send("POST", list, &[], b"").await.status, 405);
    running.stop().await;
}

#[tokio::test]
async fn invalid_metadata_is_refused_and_writes_nothing() {
    let (_running, mut c) = super::memory().await;
    let long = "x".repeat(2000);
    for header in [("X-Memsync-Expires", "tomorrow"), ("X-Memsync-Meta-A", &*long)] {
        let r = c.send("PUT", "/blob/x", &[("Content-MD5", "new"), header], b"a").await;
        assert_eq!((r.status, r.code().as_str()), (400, "INVALID_HEADER"), "{}", header.0);
    }
    assert_eq!(c.get("/blob/x").await.status, 404);
}

/// Clients that use hyper refuse a response with more than 100 headers.
#[tokio::test]
async fn metadata_stays_within_its_limits_over_many_writes() {
    let (_running, mut c) = super::memory().await;
    let put =
        async |c: &mut crate::common::proxy::Client, precondition: &str, names: &[String], value: &str, body: &[u8]| {
            let mut headers = vec![("Content-MD5", precondition)];
            headers.extend(names.iter().map(|name| (name.as_str(), value)));
            let r = c.send("PUT", "/blob/x", &headers, body).await;
            (r.status, if r.status == 400 { r.code() } else { String::new() })
        };
    let names = |of: &str, n: usize| (0..n).map(|i| format!("X-Memsync-Meta-{of}{i:02}")).collect::<Vec<_>>();
    let refused = (400, "INVALID_HEADER".to_owned());
    assert_eq!(put(&mut c, "new", &names("a", 33), "v", b"0").await, refused, "too many");
    assert_eq!(put(&mut c, "new", &names("a", 32), &"v".repeat(30), b"0").await, refused, "too long");
    assert_eq!(
        put(&mut c, "new", &names("a", 32), "%%%%%%%%", b"0").await,
        refused,
        "too long as it is kept in a bucket"
    );
    assert_eq!(put(&mut c, "new", &names("a", 20), "v", b"0").await.0, 201);
    // New names take precedence over stored ones.
    assert_eq!(put(&mut c, &md5(b"0"), &names("b", 20), "v", b"1").await.0, 200);
    let stored_names = async |c: &mut crate::common::proxy::Client| {
        let r = c.get("/blob/x").await;
        let meta = r.headers.iter().filter_map(|(name, _)| name.strip_prefix("x-memsync-meta-"));
        meta.map(str::to_owned).collect::<Vec<_>>()
    };
    let all = stored_names(&mut c).await;
    assert_eq!(all.len(), 32, "{all:?}");
    assert!(names("b", 20).iter().all(|name| all.contains(&name["X-Memsync-Meta-".len()..].to_owned())), "{all:?}");
    // The limit in bytes applies as well.
    assert_eq!(put(&mut c, &md5(b"1"), &names("c", 1), &"v".repeat(1000), b"2").await.0, 200);
    assert_eq!(stored_names(&mut c).await, ["a00", "c00"]);
    assert_eq!(put(&mut c, &md5(b"2"), &[], "", b"3").await.0, 200);
    assert_eq!(stored_names(&mut c).await, ["a00", "c00"], "a write without metadata changes none");
}

#[tokio::test]
async fn expired_file_is_a_tombstone_with_readable_versions() {
    let now = Arc::new(AtomicU64::new(1_800_000_000_000));
    let dir = tempfile::tempdir().unwrap();
    let clock = now.clone();
    let clock = Arc::new(move || clock.load(Ordering::SeqCst));
    let store =
        Arc::new(SqliteStore::open_with(dir.path(), SqliteSettings { clock, ..SqliteSettings::default() }).unwrap());
    let running = Running::start(store.clone()).await;
    let mut c = running.client().await;
    // The clock stands at 2027-01-15T08:00:00Z.
    let headers = [("Content-MD5", "new"), ("X-Memsync-Expires", "2027-01-15T09:00:00Z")];
    assert_eq!(c.send("PUT", "/blob/x", &headers, b"for an hour").await.status, 201);
    assert_eq!(store.expire().await.unwrap(), 0);
    now.fetch_add(HOUR, Ordering::SeqCst);
    assert_eq!(store.expire().await.unwrap(), 1);
    let r = c.get("/blob/x").await;
    assert_eq!((r.status, r.header("x-tombstone")), (404, Some(&*md5(b"for an hour"))));
    assert_eq!(c.get("/sync").await.json()["files"]["x"]["is_deleted"], true);
    let versions = c.get("/versions/x").await.json();
    let kept = c.get(&format!("/blob/x?version={}", versions["versions"][1]["version"])).await;
    assert_eq!((kept.status, kept.body.as_slice()), (200, &b"for an hour"[..]));
    running.stop().await;
}
