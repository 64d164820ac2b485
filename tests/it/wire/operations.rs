//! Metrics, health and request ids, for the operator of a proxy.

use std::sync::Arc;

use memsync::store::sqlite::SqliteSettings;
use memsync::store::{SqliteStore, Store};
use memsync::testing::MemoryStore;
use tokio::net::TcpListener;

use super::{bearer, embedded, memory};
use crate::common::proxy::{Client, Running, TOKEN, head, options, sample};

#[tokio::test]
async fn metrics_count_requests_and_contain_no_names() {
    let (running, mut c) = memory().await;
    let mut events = running.client().await;
    events.write(&head("GET", "/events", &[bearer()])).await;
    events.until(": connected\n\n").await;
    c.put("/blob/private-name", "new", b"0123456789").await;
    c.put("/blob/private-name", "new", b"refused").await;
    c.get("/blob/private-name").await;
    c.get("/sync").await;
    c.get("/nowhere").await;
    c.write(&head("GET", "/sync", &[("Authorization", "Bearer wrong".to_owned())])).await;
    c.reply("GET").await;

    c.write(&head("GET", "/metrics", &[])).await;
    assert_eq!(c.reply("GET").await.status, 401, "metrics need a token");
    let r = c.get("/metrics").await;
    assert!(r.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = String::from_utf8(r.body).unwrap();
    for (name, value) in [
        ("memsync_requests_total{route=\"blob\",status=\"201\"}", 1.0),
        ("memsync_requests_total{route=\"blob\",status=\"412\"}", 1.0),
        ("memsync_requests_total{route=\"blob\",status=\"200\"}", 1.0),
        ("memsync_requests_total{route=\"sync\",status=\"200\"}", 1.0),
        ("memsync_requests_total{route=\"sync\",status=\"401\"}", 1.0),
        ("memsync_requests_total{route=\"none\",status=\"404\"}", 1.0),
        ("memsync_request_duration_seconds_count{route=\"blob\"}", 3.0),
        ("memsync_auth_failures_total", 1.0),
        ("memsync_event_streams", 1.0),
        ("memsync_connections", 2.0),
        ("memsync_index_files", 1.0),
        ("memsync_writes_total", 1.0),
        ("memsync_store_errors_total", 0.0),
    ] {
        assert_eq!(sample(&text, name), value, "{name}");
    }
    assert!(sample(&text, "memsync_received_bytes_total") > 300.0 && sample(&text, "memsync_index_bytes") > 50.0);
    assert!(sample(&text, "memsync_sent_bytes_total") > 300.0);
    assert!(text.ends_with("# EOF\n") && !text.contains("private") && !text.contains(TOKEN), "{text}");

    // Another proxy in the same process has counts of its own, and ended connections are not counted as open.
    let (_other, mut o) = memory().await;
    let text = String::from_utf8(o.get("/metrics").await.body).unwrap();
    assert!(!text.contains("route=\"blob\""), "{text}");
    drop(events);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while sample(&String::from_utf8(c.get("/metrics").await.body).unwrap(), "memsync_event_streams") != 0.0 {
        assert!(std::time::Instant::now() < deadline);
    }
}

#[tokio::test]
async fn metrics_port_serves_only_metrics() {
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let mut options = options();
    options.metrics_listener = Some(listener.clone());
    options.max_connections = 1;
    let running = Running::start_with(Arc::new(MemoryStore::new()), options).await;
    let mut main = running.client().await;
    assert_eq!(main.get("/metrics").await.status, 404);
    // All connections of the main port are in use.
    let mut c = Client::connect(listener.local_addr().unwrap()).await;
    c.write(&head("GET", "/metrics", &[])).await;
    let r = c.reply("GET").await;
    assert!(r.status == 200 && r.body.ends_with(b"# EOF\n"));
    for (method, target) in [("GET", "/sync"), ("PUT", "/blob/x"), ("GET", "/health"), ("POST", "/metrics")] {
        let mut c = Client::connect(listener.local_addr().unwrap()).await;
        assert_eq!(c.send(method, target, &[], b"").await.status, 404, "{method} {target}");
    }
    running.stop().await;
}

#[tokio::test]
async fn health_reports_failures_and_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.low_space = u64::MAX;
    let running = Running::start_with(embedded(&dir), options).await;
    let mut c = running.client().await;
    let r = c.get("/health").await;
    let health = r.json();
    assert_eq!((r.status, &health["status"], &health["storage"]), (200, &"ok".into(), &"connected".into()));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["warnings"][0].as_str().unwrap().contains("MiB are free"), "{health}");
    let date = r.header("date").unwrap();
    assert!(jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).is_ok(), "{date}");
    let (_enough, mut c) = memory().await;
    assert!(c.get("/health").await.json().get("warnings").is_none());

    // While the disk is full, writes fail and health says so.
    let full = tempfile::tempdir().unwrap();
    let settings = SqliteSettings { max_database_bytes: Some(1024 * 1024), ..SqliteSettings::default() };
    let running = Running::start(Arc::new(SqliteStore::open_with(&full.path().join("store"), settings).unwrap())).await;
    let mut c = running.client().await;
    let mut names = Vec::new();
    let refused = loop {
        let name = format!("/blob/{}", names.len());
        let r = c.put(&name, "new", &[7; 50_000]).await;
        if r.status != 201 {
            break r;
        }
        names.push(name);
        assert!(names.len() < 100, "the limit holds");
    };
    assert_eq!((refused.status, refused.code().as_str()), (507, "STORAGE_FULL"));
    let health = c.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &"degraded".into()));
    assert!(health.json()["detail"].as_str().unwrap().contains("full"), "{:?}", health.json());
    assert_eq!(c.put("/blob/small", "new", b"x").await.status, 201);
    assert_eq!(c.get("/health").await.json()["status"], "ok");

    // Without its database the store fails on new and open connections, and health shows no path.
    let broken = tempfile::tempdir().unwrap();
    let store = embedded(&broken);
    store.health().await.unwrap();
    let running = Running::start(store).await;
    let mut c = running.client().await;
    std::fs::remove_dir_all(broken.path().join("store")).unwrap();
    let r = c.get("/health").await;
    let health = r.json();
    assert_eq!((r.status, &health["status"], &health["storage"]), (503, &"error".into(), &"disconnected".into()));
    let detail = health["detail"].as_str().unwrap();
    assert!(!detail.is_empty() && !detail.contains(broken.path().to_str().unwrap()), "{detail}");
}

#[tokio::test]
async fn response_repeats_the_request_id() {
    let (_running, mut c) = memory().await;
    let mut ids = std::collections::BTreeSet::new();
    for target in ["/health", "/sync", "/blob/absent", "/nowhere", "/blob/.."] {
        let r = c.get(target).await;
        assert!(ids.insert(r.header("x-request-id").unwrap().to_owned()), "{target}");
        let r = c.send("GET", target, &[("X-Request-Id", "mine-1.a_B")], b"").await;
        assert_eq!(r.header("x-request-id"), Some("mine-1.a_B"), "{target}");
        let r = c.send("GET", target, &[("X-Request-Id", "not <safe>")], b"").await;
        assert_ne!(r.header("x-request-id"), Some("not <safe>"));
    }
}
