//! Index deltas of a bucket: the proxy's answers, and the agent's index after them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use memsync::digest::Md5;
use memsync::path::RelPath;
use memsync::protocol::IndexEntry;
use memsync::remote::http::{HttpOptions, HttpRemote};
use memsync::remote::{FetchedIndex, IndexUpdate, Remote};
use memsync::store::{BlobMeta, GetOutcome, S3Store, Store, WriteCondition, system_clock};
use serde_json::json;
use tokio::net::TcpListener;

use super::sample;
use crate::common::proxy::{self, Reply, Running};
use crate::common::s3::{Fault, Server, Stored};

const INDEX: &str = "memory/.sync-index.json";

/// The tag of an index in a query.
fn tag(reply: &Reply) -> String {
    reply.header("etag").unwrap().trim_matches('"').to_owned()
}

fn names(reply: &Reply) -> Vec<String> {
    reply.json()["files"].as_object().unwrap().keys().cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delta_has_the_changes_since_an_etag() {
    let server = Server::start().await;
    let store = Arc::new(server.store("memory", system_clock()).await);
    let running = Running::start(store.clone()).await;
    let mut c = running.client().await;
    let health = c.get("/health").await.json();
    assert!(health["capabilities"].as_array().unwrap().contains(&"etag-delta".into()), "{health}");
    for name in ["a", "b", "c", "d", "e"] {
        assert_eq!(c.put(&format!("/blob/{name}"), "new", name.as_bytes()).await.status, 201);
    }
    let first = tag(&c.get("/sync").await);
    assert_eq!(c.put("/blob/b", &proxy::md5(b"b"), b"bb").await.status, 200);
    let second = tag(&c.get("/sync").await);
    assert_eq!(c.delete("/blob/c").await.status, 204);

    let reads = store.index_traffic().reads;
    let part = c.get(&format!("/sync?from={first}")).await;
    assert_eq!(store.index_traffic().reads, reads + 1, "the index is requested once");
    assert_eq!((part.status, names(&part)), (200, vec!["b".to_owned(), "c".to_owned()]));
    let json = part.json();
    assert_eq!((&json["delta"], &json["delta_base"]), (&json!(true), &json!(first)));
    assert_eq!((&json["files"]["b"]["size"], &json["files"]["c"]["is_deleted"]), (&json!(2), &json!(true)));
    assert_eq!((json.get("index_epoch"), json.get("index_cursor")), (None, None), "a weak index has no cursor");
    let whole = c.get("/sync").await;
    assert_eq!((names(&whole).len(), whole.json().get("delta")), (5, None));
    assert_eq!(tag(&part), tag(&whole), "the delta leads to the current tag");
    assert_eq!(json["index_last_modified"], whole.json()["index_last_modified"]);
    assert_eq!(names(&c.get(&format!("/sync?x=1&from={second}")).await), ["c"]);

    // An unchanged index costs one request to the bucket.
    let now = tag(&whole);
    let reads = store.index_traffic().reads;
    let etag = format!("\"{now}\"");
    let same = c.send("GET", &format!("/sync?from={now}"), &[("If-None-Match", &etag)], b"").await;
    assert_eq!((same.status, same.body.len(), same.header("etag")), (304, 0, Some(etag.as_str())));
    assert_eq!(store.index_traffic().reads, reads + 1);
    assert!(names(&c.get(&format!("/sync?from={now}")).await).is_empty());

    // An unknown tag gives the whole index.
    let all = ["from=none", "from=", "from=%2", "from=0123456789abcdef", "since=1&epoch=x", &format!("xfrom={first}")];
    for query in all {
        let r = c.get(&format!("/sync?{query}")).await;
        assert_eq!((r.status, names(&r).len(), r.json().get("delta")), (200, 5, None), "{query}");
    }
    // So does a delta that would be no smaller.
    for name in ["a", "d", "e"] {
        assert_eq!(c.delete(&format!("/blob/{name}")).await.status, 204);
    }
    assert_eq!(c.get(&format!("/sync?from={first}")).await.json().get("delta"), None);
    assert_eq!(c.get(&format!("/sync?from={second}")).await.json()["delta"], true);
    let deltas = sample(&mut c, "memsync_index_deltas_total").await;
    assert!((deltas - 4.0).abs() < 0.5, "{deltas}");

    // Another proxy has the same tag, but does not know the changes.
    let other = Running::start(Arc::new(server.store("memory", system_clock()).await)).await;
    let mut other = other.client().await;
    let there = other.get(&format!("/sync?from={second}")).await;
    assert_eq!((there.json().get("delta"), tag(&there)), (None, tag(&c.get("/sync").await)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_has_its_own_deltas() {
    let server = Server::start().await;
    let running = Running::start(Arc::new(server.store("memory", system_clock()).await)).await;
    let mut c = running.client().await;
    let version = [("If-Match-Version", "0")];
    for name in ["a", "b", "c"] {
        for ns in ["one", "two"] {
            let put = c.send("PUT", &format!("/{ns}/blob/{name}"), &version, ns.as_bytes()).await;
            assert_eq!(put.status, 201);
        }
    }
    let (one, two) = (tag(&c.get("/sync/one").await), tag(&c.get("/sync/two").await));
    let put = c.send("PUT", "/one/blob/d", &version, b"d").await;
    let part = c.get(&format!("/sync/one?from={one}")).await;
    assert_eq!((names(&part), &part.json()["delta_base"]), (vec!["d".to_owned()], &json!(one)));
    let version_in_delta = part.json()["files"]["d"]["version"].to_string();
    assert_eq!(Some(version_in_delta.as_str()), put.header("x-version"));
    assert!(part.json()["index_version"].is_u64());
    assert_eq!(c.get(&format!("/sync/one?from={two}")).await.json().get("delta"), None);
    assert!(names(&c.get(&format!("/sync/two?from={two}")).await).is_empty());
}

/// Two concurrent requests see the index before and after a change. The answer must not be older than its request's read.
#[expect(clippy::disallowed_methods, reason = "the server delays one answer")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn delta_is_no_older_than_the_requests_read() {
    let server = Server::start().await;
    let running = Running::start(Arc::new(server.store("memory", system_clock()).await)).await;
    let other = Running::start(Arc::new(server.store("memory", system_clock()).await)).await;
    let (mut c, mut slow, mut other) = (running.client().await, running.client().await, other.client().await);
    for name in ["a", "b", "c", "d"] {
        assert_eq!(c.put(&format!("/blob/{name}"), "new", b"1").await.status, 201);
    }
    let first = tag(&c.get("/sync").await);
    assert_eq!(other.put("/blob/e", "new", b"2").await.status, 201);

    // The server delays the answer to the first request for the index.
    let ((held, mut is_held), (let_go, waits)) = (tokio::sync::mpsc::channel(1), std::sync::mpsc::channel::<()>());
    let waits = std::sync::Mutex::new(Some(waits));
    server.fail(move |method, key| {
        let is_asked_for = method == "GET" && key == INDEX;
        let first = is_asked_for.then(|| waits.lock().unwrap().take()).flatten();
        if let Some(waits) = first {
            held.try_send(()).unwrap();
            tokio::task::block_in_place(|| waits.recv()).unwrap();
        }
        Fault::None
    });
    let asked = format!("/sync?from={first}");
    let asking = tokio::spawn(async move { slow.get(&asked).await });
    is_held.recv().await.unwrap();
    c.get("/sync").await;
    assert_eq!(other.put("/blob/f", "new", b"3").await.status, 201);
    let_go.send(()).unwrap();
    let answer = asking.await.unwrap();
    assert_eq!(tag(&answer), tag(&other.get("/sync").await));
    assert!(names(&answer).contains(&"f".to_owned()), "{:?}", names(&answer));
}

/// The address of a balancer that forwards each request to the proxy number `turn`.
async fn balance(proxies: Vec<SocketAddr>, turn: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = reqwest::Client::new();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (client, proxies, turn) = (client.clone(), proxies.clone(), turn.clone());
            let service = service_fn(move |request| {
                let to = proxies[turn.load(Ordering::SeqCst)];
                pass_on(client.clone(), to, request)
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn pass_on(
    client: reqwest::Client,
    to: SocketAddr,
    request: Request<Incoming>,
) -> reqwest::Result<Response<Full<Bytes>>> {
    let url = format!("http://{to}{}", request.uri());
    let answer = client.get(url).headers(request.headers().clone()).send().await?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut response = Response::new(Full::new(answer.bytes().await?));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// An agent's copy of the index.
struct Agent {
    remote: HttpRemote,
    held: BTreeMap<RelPath, IndexEntry>,
    /// Counts the answers: whole, delta, unchanged.
    answers: [usize; 3],
}

impl Agent {
    fn new(address: SocketAddr) -> Self {
        let options = HttpOptions {
            origin: format!("http://{address}"),
            token: proxy::TOKEN.to_owned().into(),
            namespace: String::new(),
            device: String::new(),
            ca_pem: None,
            pin: None,
            allow_http: false,
            timeout: Duration::from_secs(20),
            max_file_size: 1 << 20,
            concurrency: 1,
        };
        Self { remote: HttpRemote::new(options).unwrap(), held: BTreeMap::new(), answers: [0; 3] }
    }

    async fn fetch(&mut self) {
        let n = match self.remote.index(None, None).await.unwrap() {
            IndexUpdate::Whole(FetchedIndex { files, .. }) => {
                self.held = files;
                0
            }
            IndexUpdate::Delta(FetchedIndex { files, .. }) => {
                self.held.extend(files);
                1
            }
            IndexUpdate::Unchanged => 2,
        };
        self.answers[n] += 1;
    }

    /// Fetches the index and compares it with the bucket's, which may be corrected meanwhile.
    async fn check(&mut self, server: &Server) {
        let now = || server.object(INDEX).unwrap().body;
        let mut body = now();
        loop {
            self.fetch().await;
            if body == now() {
                break;
            }
            body = now();
        }
        let index: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let has: BTreeMap<&str, _> = self.held.iter().map(|(path, e)| (path.as_str(), (e.md5, e.is_deleted))).collect();
        let md5 = |entry: &serde_json::Value| entry["md5"].as_str().unwrap().parse::<Md5>().unwrap();
        let files = index["files"].as_object().unwrap().iter();
        let there: BTreeMap<&str, _> =
            files.map(|(path, e)| (path.as_str(), (md5(e), e["is_deleted"] == true))).collect();
        assert_eq!(has, there, "{:?}", self.answers);
    }
}

/// A random write through one proxy.
async fn write(store: &S3Store, rng: &mut fastrand::Rng) {
    let path = RelPath::parse(&format!("{}.md", rng.u8(..30))).unwrap();
    let content = bytes::Bytes::from(rng.u64(..).to_string());
    match store.get("", &path).await.unwrap() {
        GetOutcome::Found(blob) if rng.bool() => {
            store.put_bytes("", &path, WriteCondition::Md5(blob.entry.md5), content).await.unwrap();
        }
        GetOutcome::Found(_) => {
            store.delete("", &path, None, BlobMeta::default()).await.unwrap();
        }
        _ => {
            store.put_bytes("", &path, WriteCondition::Absent, content).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_index_is_right_behind_a_balancer() {
    let server = Server::start().await;
    let open = async || Arc::new(server.store("memory", system_clock()).await);
    let (mut stores, turn) = (vec![open().await, open().await], Arc::new(AtomicUsize::new(0)));
    let mut running = Vec::new();
    let mut addresses = Vec::new();
    for store in &stores {
        running.push(Running::start(store.clone()).await);
        addresses.push(running.last().unwrap().addr);
    }
    // The third proxy is just started, in the place of the second.
    stores.push(open().await);
    running.push(Running::start(stores[2].clone()).await);
    addresses.push(running[2].addr);
    let mut agent = Agent::new(balance(addresses, turn.clone()).await);
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..30 {
        write(&stores[0], &mut rng).await;
    }
    agent.check(&server).await;
    assert_eq!(agent.answers, [1, 0, 0]);
    for _ in 0..20 {
        write(&stores[0], &mut rng).await;
        agent.check(&server).await;
    }
    assert_eq!(agent.answers, [1, 20, 0], "an edit through one proxy is a delta");
    for n in 0..40 {
        write(&stores[rng.usize(..2)], &mut rng).await;
        turn.store(rng.usize(..2), Ordering::SeqCst);
        if n % 8 == 0 {
            // A proxy without compare-and-swap overwrites the index.
            let body = server.object(INDEX).unwrap().body;
            write(&stores[0], &mut rng).await;
            let text = String::from_utf8(body.to_vec()).unwrap();
            let theirs =
                text.replacen("\"index_last_modified\":\"2", &format!("\"by\":{n},\"index_last_modified\":\"2"), 1);
            assert_ne!(text, theirs);
            server.plant(INDEX, Stored::new(theirs.as_bytes(), &[]));
        }
        agent.check(&server).await;
    }
    let [whole, parts, _] = agent.answers;
    assert!(parts > 40 && whole > 1, "{:?}", agent.answers);
    // A restarted proxy knows no changes.
    turn.store(2, Ordering::SeqCst);
    write(&stores[0], &mut rng).await;
    agent.check(&server).await;
    assert_eq!(agent.answers[0], whole + 1);
    write(&stores[0], &mut rng).await;
    agent.check(&server).await;
    assert_eq!(agent.answers[0], whole + 1, "the next answer is a delta again");
}
