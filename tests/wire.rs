//! The flat dialect over real HTTP: every line of its table, and what a hostile or broken client may send.

#[path = "common/proxy.rs"]
mod proxy;

use std::sync::Arc;
use std::time::Duration;

use memsync::store::{Embedded, Memory};
use proxy::{Client, Running, TOKEN, head, md5, options};

async fn memory() -> (Running, Client) {
    let running = Running::start(Arc::new(Memory::new())).await;
    let client = running.client().await;
    (running, client)
}

#[tokio::test]
async fn health_needs_no_token_and_names_the_capabilities() {
    let (_running, mut c) = memory().await;
    c.write(&head("GET", "/health", &[])).await;
    let r = c.reply("GET").await;
    assert_eq!(r.status, 200);
    let health = r.json();
    assert_eq!((&health["status"], &health["storage"]), (&"ok".into(), &"connected".into()));
    for capability in ["honest-412", "strong-index", "index-etag", "delta", "events"] {
        assert!(health["capabilities"].as_array().unwrap().contains(&capability.into()), "{capability}");
    }
}

#[tokio::test]
async fn a_blob_is_created_read_updated_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(Arc::new(Embedded::open(&dir.path().join("s")).unwrap())).await;
    let mut c = running.client().await;
    let (one, two) = (md5(b"one"), md5(b"two"));

    assert_eq!(c.get("/blob/topics/ai.md").await.status, 404);
    let r = c.send("PUT", "/blob/topics/ai.md", &[("Content-MD5", "new"), ("Content-Type", "text/markdown")], b"one");
    let r = r.await;
    assert_eq!((r.status, r.header("etag")), (201, Some(format!("\"{one}\"").as_str())));

    let r = c.get("/blob/topics/ai.md").await;
    assert_eq!((r.status, r.body.as_slice()), (200, &b"one"[..]));
    assert_eq!(r.header("etag"), Some(format!("\"{one}\"").as_str()));
    assert_eq!(r.header("content-type"), Some("text/markdown"));
    assert_eq!(r.header("x-content-type-options"), Some("nosniff"));
    assert!(r.header("last-modified").unwrap().ends_with(" GMT"), "{r:?}");

    let r = c.send("HEAD", "/blob/topics/ai.md", &[], b"").await;
    assert_eq!((r.status, r.header("content-length"), r.body.len()), (200, Some("3"), 0));

    let r = c.put("/blob/topics/ai.md", "new", b"two").await;
    assert_eq!((r.status, r.code().as_str()), (412, "PRECONDITION_FAILED"));
    let context = r.json()["context"].clone();
    assert_eq!(context, serde_json::json!({"current_md5": one, "provided_md5": "new", "is_deleted": false}));

    let r = c.put("/blob/topics/ai.md", &one, b"two").await;
    assert_eq!((r.status, r.header("etag")), (200, Some(format!("\"{two}\"").as_str())));
    assert_eq!(c.put("/blob/topics/ai.md", &one, b"three").await.status, 412);
    assert_eq!(c.put("/blob/topics/ai.md", &two, b"two").await.status, 200, "the same content repairs");

    let r = c.send("DELETE", "/blob/topics/ai.md", &[("If-Match", &one)], b"").await;
    assert_eq!((r.status, r.json()["context"]["current_md5"].as_str()), (412, Some(two.as_str())));
    let r = c.send("DELETE", "/blob/topics/ai.md", &[("If-Match", &format!("\"{two}\""))], b"").await;
    assert_eq!((r.status, r.body.len()), (204, 0));
    for r in [c.get("/blob/topics/ai.md").await, c.delete("/blob/topics/ai.md").await] {
        assert_eq!((r.status, r.header("x-tombstone")), (404, Some(two.as_str())));
    }
    running.stop().await;
}
