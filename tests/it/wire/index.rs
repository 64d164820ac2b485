//! The index, whole and as a delta, and the events that announce changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memsync::store::{Store, WriteCondition};
use memsync::testing::MemoryStore;
use serde_json::json;

use super::{bearer, embedded, memory};
use crate::common::proxy::{Running, head, md5, options, sample};

#[tokio::test]
async fn index_lists_all_files_and_answers_304_if_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    let empty = c.get("/sync").await.json();
    assert_eq!(
        (&empty["files"], &empty["index_cursor"], &empty["tombstone_floor"]),
        (&json!({}), &0.into(), &0.into())
    );
    c.put("/blob/a", "new", b"aa").await;
    c.put("/blob/b", "new", b"b").await;
    c.delete("/blob/b").await;

    let r = c.get("/sync").await;
    assert_eq!((r.status, r.header("content-type")), (200, Some("application/json")));
    let index = r.json();
    let (a, b) = (&index["files"]["a"], &index["files"]["b"]);
    assert_eq!((&a["md5"], &a["size"], &a["is_deleted"]), (&json!(md5(b"aa")), &json!(2), &json!(false)));
    assert_eq!((&b["md5"], &b["size"], &b["is_deleted"]), (&json!(md5(b"b")), &json!(0), &json!(true)));
    assert_eq!((&index["index_cursor"], a.get("version")), (&json!(3), None));
    for time in [&a["last_modified"], &index["index_last_modified"]] {
        let time = time.as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    }
    let epoch = index["index_epoch"].as_str().unwrap();
    let history = index["index_history"].as_str().unwrap().strip_suffix(":3").unwrap();
    let etag = r.header("etag").unwrap();
    assert_eq!(etag, format!("\"{epoch}-{history}-3-0\""));

    let r = c.send("GET", "/sync", &[("If-None-Match", etag)], b"").await;
    assert_eq!((r.status, r.body.len(), r.header("etag")), (304, 0, Some(etag)));
    c.put("/blob/c", "new", b"c").await;
    let r = c.send("GET", "/sync", &[("If-None-Match", etag)], b"").await;
    assert_eq!((r.status, r.json()["files"].as_object().unwrap().len()), (200, 3));
    let r = c.send("HEAD", "/sync", &[], b"").await;
    assert_eq!((r.status, r.body.len()), (200, 0));

    // Deltas.
    let (epoch, history) = (epoch.to_owned(), history.to_owned());
    let r = c.get(&format!("/sync?since=2&epoch={epoch}")).await.json();
    assert_eq!((&r["delta"], &r["index_cursor"]), (&json!(true), &json!(4)));
    assert_eq!(r["files"].as_object().unwrap().keys().collect::<Vec<_>>(), ["b", "c"]);
    let r = c.get(&format!("/sync?since=4&epoch={epoch}")).await.json();
    assert_eq!((&r["delta"], &r["files"]), (&json!(true), &json!({})));
    let from = format!("from={epoch}-{history}-3-0");
    for query in
        [format!("since=5&epoch={epoch}"), "since=2&epoch=other".into(), "since=2".into(), "since=x".into(), from]
    {
        let r = c.get(&format!("/sync?{query}")).await.json();
        assert_eq!((r.get("delta"), r["files"].as_object().unwrap().len()), (None, 3), "{query}");
    }
    running.stop().await;

    // The epoch, the history and the cursor survive a restart; another store has another epoch.
    let running = Running::start(embedded(&dir)).await;
    let again = running.client().await.get("/sync").await.json();
    assert_eq!(
        (&again["index_epoch"], &again["index_history"], &again["index_cursor"]),
        (&json!(epoch), &json!(format!("{history}:4")), &json!(4))
    );
    let (_other, mut c) = memory().await;
    assert_ne!(c.get("/sync").await.json()["index_epoch"], json!(epoch));
}

#[tokio::test]
async fn index_reports_a_store_that_was_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    c.put("/blob/a", "new", b"a").await;
    let index = c.get("/sync").await.json();
    let (epoch, point) = (index["index_epoch"].as_str().unwrap(), index["index_history"].as_str().unwrap());
    let history = point.strip_suffix(":1").unwrap();
    for (point, is_set_back) in [
        (format!("{history}:1"), false),
        (format!("{history}%3A0"), false),
        (format!("{history}:2"), true),
        ("another:1".to_owned(), true),
        // Other clients send no point of a history.
        ("junk".to_owned(), false),
    ] {
        let r = c.get(&format!("/sync?since=0&epoch={epoch}&history={point}")).await;
        assert_eq!(r.header("x-memsync-set-back"), is_set_back.then_some("true"), "{point}");
        assert_eq!(r.json().get("delta").is_none(), is_set_back, "{point}: it is answered with the whole index");
        let r = c.get(&format!("/sync?history={point}")).await;
        assert_eq!(r.header("x-memsync-set-back"), is_set_back.then_some("true"), "{point}");
    }
}

#[tokio::test]
async fn each_change_is_an_event() {
    let (running, mut c) = memory().await;
    c.put("/blob/before", "new", b"x").await;
    let mut events = running.client().await;
    events.write(&head("GET", "/events", &[bearer()])).await;
    let r = events.reply("GET").await;
    assert_eq!((r.status, r.header("content-type")), (200, Some("text/event-stream")));
    events.until(": connected\n\n").await;
    c.put("/blob/a%20b", "new", b"a").await;
    assert!(events.until("\n\n").await.ends_with("id: 2\ndata: {\"cursor\":2,\"path\":\"a b\"}\n\n"));
    c.put("/blob/a%20b", "new", b"refused").await;
    c.delete("/blob/a%20b").await;
    assert!(events.until("id: 3\ndata: {\"cursor\":3,\"path\":\"a b\"}\n\n").await.matches("id:").count() == 1);

    // A resumed stream begins after the last event. After an unknown one it begins with an event without a path.
    for (last, first) in [
        ("1", "id: 3\ndata: {\"cursor\":3,\"path\":\"a b\"}"),
        ("0", "id: 1\ndata: {\"cursor\":1,\"path\":\"before\"}"),
        ("77", "id: 3\ndata: {\"cursor\":3}"),
        ("junk", "id: 3\ndata: {\"cursor\":3}"),
    ] {
        let mut events = running.client().await;
        events.write(&head("GET", "/events", &[bearer(), ("Last-Event-ID", last.to_owned())])).await;
        assert_eq!(events.reply("GET").await.status, 200);
        events.until(": connected\n\n").await;
        let came = events.until("\n\n").await;
        assert!(came.contains(first), "{last}: {came}");
    }
}

#[tokio::test]
async fn event_stream_forbids_buffering_and_answers_head() {
    let (running, mut c) = memory().await;
    let r = c.send("HEAD", "/events", &[], b"").await;
    assert_eq!((r.status, r.header("content-type")), (200, Some("text/event-stream")));
    let mut events = running.client().await;
    events.write(&head("GET", "/events", &[bearer()])).await;
    let r = events.reply("GET").await;
    assert_eq!((r.header("x-accel-buffering"), r.header("cache-control")), (Some("no"), Some("no-store")));
}

#[tokio::test]
async fn idle_event_stream_sends_heartbeats_and_ends_on_stop() {
    let mut options = options();
    options.heartbeat = Duration::from_millis(20);
    options.stop_timeout = Duration::from_secs(60);
    let running = Running::start_with(Arc::new(MemoryStore::new()), options).await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut events = running.client().await;
        events.write(&head("GET", "/events", &[bearer()])).await;
        assert_eq!(events.reply("GET").await.status, 200);
        events.until(": \n\n").await;
        streams.push(events);
    }
    let began = Instant::now();
    running.stop().await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    for events in &mut streams {
        events.wait_for_end().await;
    }
}

/// Each delta is rendered for one request. The whole index is rendered once for all requests.
#[tokio::test]
async fn client_far_behind_gets_the_whole_index() {
    let store = Arc::new(MemoryStore::new());
    let running = Running::start(store.clone()).await;
    for n in 0..4200 {
        let path = memsync::path::RelPath::parse(&format!("f{n}")).unwrap();
        store.put_bytes("", &path, WriteCondition::Absent, bytes::Bytes::new()).await.unwrap();
    }
    let mut c = running.client().await;
    let epoch = c.get("/sync").await.json()["index_epoch"].as_str().unwrap().to_owned();
    for (since, delta) in [(0, None), (1, None), (104, Some(&json!(true)))] {
        let r = c.get(&format!("/sync?since={since}&epoch={epoch}")).await.json();
        let files = r["files"].as_object().unwrap().len();
        assert_eq!((r.get("delta"), files), (delta, if delta.is_some() { 4096 } else { 4200 }), "{since}");
    }
    let metrics = String::from_utf8(c.get("/metrics").await.body).unwrap();
    assert_eq!(sample(&metrics, "memsync_index_renderings_total"), 1.0);
}
