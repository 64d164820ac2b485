//! Responses, events and maintenance while the storage fails or hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memsync::testing::MemoryStore;
use serde_json::json;

use super::batch;
use super::bearer;
use crate::common::faulty::{Fate, Faulty};
use crate::common::proxy::{Client, Running, head, md5, options, sample};

const DAY: u64 = 24 * 3600 * 1000;

async fn count(c: &mut Client, name: &str) -> f64 {
    sample(&String::from_utf8(c.get("/metrics").await.body).unwrap(), name)
}

#[tokio::test]
async fn dead_disk_delays_only_health() {
    let store = Faulty::<true>::new(MemoryStore::new());
    store.decide(|name, _| if name == "free_bytes" { Fate::Hangs } else { Fate::Done });
    let running = Running::start(store.clone()).await;
    let (mut asks, mut works) = (running.client().await, running.client().await);
    let began = Instant::now();
    asks.write(&head("GET", "/health", &[])).await;
    store.until("free_bytes", "", 1).await;
    assert_eq!(works.get("/sync").await.status, 200);
    let r = asks.reply("GET").await;
    assert_eq!((r.status, &r.json()["storage"]), (503, &json!("disconnected")));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // Many requests for health share one hanging thread.
    while count(&mut works, "memsync_failed_checkups_total").await < 2.0 {
        assert_eq!(asks.get("/health").await.status, 503);
        assert!(began.elapsed() < Duration::from_secs(30), "it is not looked at again");
    }
    assert_eq!(store.begun("health", ""), 1);
    store.heal();
}

#[tokio::test]
async fn write_is_acknowledged_if_the_index_is_unreadable() {
    let store = Faulty::<true>::new(MemoryStore::new());
    let running = Running::start(store.clone()).await;
    let mut c = running.client().await;
    store.decide(|name, ns| if (name, ns) == ("state", "team") { Fate::Failed } else { Fate::Done });
    let r = c.send("PUT", "/team/blob/a", &[("If-Match-Version", "0")], b"one").await;
    assert_eq!((r.status, r.body.len(), r.header("etag")), (201, 0, Some(&*format!("\"{}\"", md5(b"one")))));
    let version = r.header("x-version").unwrap().to_owned();
    assert_eq!(count(&mut c, "memsync_store_errors_total").await, 1.0);
    let r = c.send("DELETE", "/team/blob/a", &[("If-Match-Version", &version)], b"").await;
    assert_eq!((r.status, r.body.len(), r.header("etag")), (200, 0, None));
    assert!(r.header("x-version").unwrap() > version.as_str());
    assert_eq!(c.get("/sync/team").await.status, 503, "a request for the index fails");
}

#[tokio::test]
async fn store_errors_count_batches_and_not_health_checks() {
    let store = Faulty::<true>::new(MemoryStore::new());
    let running = Running::start(store.clone()).await;
    let mut c = running.client().await;
    store.decide(|name, _| if matches!(name, "put" | "get" | "health") { Fate::Failed } else { Fate::Done });
    let body = crate::common::frames::frames(&[batch::put("a", "new", b"1"), batch::get("b"), batch::get("c")]);
    let r = c.send("POST", "/batch", &[("Content-Type", crate::common::frames::TYPE)], &body).await;
    let answers = crate::common::frames::parse(&r.body);
    assert!(answers.iter().all(|(head, _)| head["status"] == 503), "{answers:?}");
    assert_eq!(count(&mut c, "memsync_store_errors_total").await, 3.0);
    assert_eq!(c.get("/health").await.status, 503);
    assert_eq!(count(&mut c, "memsync_store_errors_total").await, 3.0);
    assert_eq!(count(&mut c, "memsync_failed_checkups_total").await, 1.0);
}

#[tokio::test]
async fn slow_sweep_does_not_delay_expiry() {
    let store = Faulty::<true>::new(MemoryStore::new());
    store.decide(|name, _| if name == "sweep" { Fate::Hangs } else { Fate::Done });
    let mut options = options();
    options.stop_timeout = Duration::from_millis(50);
    let running = Running::start_with(store.clone(), options).await;
    store.until("sweep", "", 1).await;
    store.until("expire", "", 1).await;
    running.stop().await;
}

#[tokio::test]
async fn hanging_namespace_does_not_delay_events_of_others() {
    let store = Faulty::<false>::new(MemoryStore::new());
    let mut options = options();
    options.foreign_poll_interval = Duration::from_millis(200);
    let running = Running::start_with(store.clone(), options).await;
    let mut streams = Vec::new();
    for target in ["/events/dead", "/events/alive"] {
        let mut events = running.client().await;
        events.write(&head("GET", target, &[bearer()])).await;
        assert_eq!(events.reply("GET").await.status, 200);
        streams.push(events);
    }
    store.decide(|name, ns| if (name, ns) == ("state", "dead") { Fate::Hangs } else { Fate::Done });
    let (dead, alive) = (store.begun("state", "dead"), store.begun("state", "alive"));
    store.until("state", "dead", dead + 1).await;
    store.until("state", "alive", alive + 5).await;
    // The first poll may have begun before the hang.
    assert!(store.begun("state", "dead") <= dead + 2, "one look at a time");
}

#[tokio::test]
async fn sweep_during_a_delta_gives_the_whole_index() {
    let now = Arc::new(AtomicU64::new(DAY));
    let clock = now.clone();
    let store = Faulty::<true>::new(MemoryStore::with_clock(Arc::new(move || clock.load(Ordering::SeqCst))));
    let running = Running::start(store.clone()).await;
    let mut c = running.client().await;
    c.put("/blob/a", "new", b"a").await;
    c.put("/blob/b", "new", b"b").await;
    let index = c.get("/sync").await.json();
    c.delete("/blob/a").await;
    c.put("/blob/c", "new", b"c").await;
    now.store(100 * DAY, Ordering::SeqCst);
    store.decide(|name, _| if name == "index" { Fate::AfterSweep } else { Fate::Done });
    let query = format!("/sync?since={}&epoch={}", index["index_cursor"], index["index_epoch"].as_str().unwrap());
    let delta = c.get(&query).await.json();
    assert_eq!((delta.get("delta"), &delta["tombstone_floor"]), (None, &json!(3)));
    assert_eq!(delta["files"].as_object().unwrap().keys().collect::<Vec<_>>(), ["b", "c"]);
}
