//! kill -9 on a proxy under load: no acknowledged write is lost, and none is half written.

use crate::common::proxy;
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::killed::Killed;
use crate::common::proxy::{Client, md5};
use futures::future::join_all;
use memsync::store::SqliteStore;
use memsync::testing::seed;
use tokio::net::TcpListener;
use tokio::sync::Notify;

const STORE: &str = "CRASH_TEST_STORE";
const DIE_AT: &str = "CRASH_TEST_DIE_AT";
const WRITERS: usize = 16;

/// The proxy to be killed: this test binary, started again with a store to serve. Does nothing without one.
#[test]
#[expect(clippy::disallowed_methods, reason = "the child of these tests is told what to do by its parent")]
fn child() {
    let Ok(store) = std::env::var(STORE) else { return };
    if let Ok(point) = std::env::var(DIE_AT) {
        memsync::failpoint::arm(&point);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Arc::new(SqliteStore::open(Path::new(&store)).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("\nlistening {}", listener.local_addr().unwrap());
        // Stdin closes when the parent ends, and then this ends, too.
        let orphaned = tokio::task::spawn_blocking(|| {
            let _ = std::io::stdin().read(&mut [0]);
        });
        memsync::proxy::serve(listener, store, proxy::options(), async {
            let _ = orphaned.await;
        })
        .await
        .unwrap();
    });
}

/// A proxy in its own process, killed on drop.
struct Process {
    child: Killed,
    addr: SocketAddr,
}

impl Process {
    fn start(store: &Path, die_at: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "proxy_crash::child", "--nocapture"]).env(STORE, store);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(point) = die_at {
            command.env(DIE_AT, point);
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = lines.find_map(|line| line.unwrap().strip_prefix("listening ").map(|addr| addr.parse().unwrap()));
        Self { child: Killed(child), addr: addr.expect("the proxy came up") }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The possible contents of a path: the last acknowledged one, and those without an answer.
#[derive(Clone, Default)]
struct Expected {
    /// `None`: absent or deleted.
    acknowledged: Option<Vec<u8>>,
    in_doubt: Option<Option<Vec<u8>>>,
    /// True if the path ever had content.
    known: bool,
}

type Paths = HashMap<String, Expected>;

/// Writes, one request after the other, until the proxy goes away.
async fn hammer(addr: SocketAddr, writer: usize, seed: u64, mut paths: Paths, acked: Arc<Acked>) -> Paths {
    let mut random = fastrand::Rng::with_seed(seed ^ (writer as u64) << 32);
    // The proxy may be down before this client connects.
    let Some(mut client) = Client::try_connect(addr).await else { return paths };
    for n in 0.. {
        let path = format!("w{writer}/f{}", random.usize(..10));
        let expected = paths.entry(path.clone()).or_default();
        let held = expected.acknowledged.as_ref().map(|content| md5(content));
        let mut content = format!("{seed} {writer} {n} ").into_bytes();
        match random.u8(..6) {
            0 => content.resize(400_000, random.u8(..)),
            1 => content.clear(),
            _ => content.resize(content.len() + random.usize(..5000), b'.'),
        }
        let (method, headers, wanted) = match held {
            Some(held) if random.u8(..5) == 0 => ("DELETE", [("If-Match", held)], None),
            Some(held) => ("PUT", [("Content-MD5", held)], Some(content)),
            None => ("PUT", [("Content-MD5", "new".to_owned())], Some(content)),
        };
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let body = wanted.clone().unwrap_or_default();
        match client.try_send(method, &format!("/blob/{path}"), &headers, &body).await {
            Some(reply) => {
                assert!(matches!(reply.status, 200 | 201 | 204), "{method} {path}: {reply:?}");
                expected.acknowledged = wanted;
                expected.known = true;
                acked.one();
            }
            None => {
                expected.in_doubt = Some(wanted);
                break;
            }
        }
    }
    paths
}

/// Counts acknowledged writes, and signals when there are enough.
struct Acked {
    left: AtomicUsize,
    enough: Notify,
}

impl Acked {
    fn one(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.enough.notify_one();
        }
    }
}

fn bodies_on_disk(store: &Path) -> HashSet<String> {
    let names = std::fs::read_dir(store.join("bodies")).unwrap();
    names.map(|found| found.unwrap().file_name().into_string().unwrap()).collect()
}

/// The files that entries and earlier versions name.
fn bodies_of_rows(store: &Path) -> HashSet<String> {
    let db = rusqlite::Connection::open(store.join("store.db")).unwrap();
    let mut files = db.prepare("SELECT file FROM entry UNION SELECT file FROM earlier").unwrap();
    let names = files.query_map([], |row| row.get::<_, Option<String>>(0)).unwrap();
    names.filter_map(|name| name.unwrap()).collect()
}

/// Compares the proxy with the acknowledged writes, and resolves those without an answer.
async fn verify(addr: SocketAddr, store: &Path, paths: &mut Paths) {
    let mut client = Client::connect(addr).await;
    let index = client.get("/sync").await.json();
    let mut large = 0;
    for (path, expected) in paths.iter_mut() {
        let reply = client.get(&format!("/blob/{path}")).await;
        let found = match reply.status {
            200 => Some(reply.body),
            404 => None,
            status => panic!("{path}: {status}"),
        };
        let doubted = expected.in_doubt.take();
        assert!(
            found == expected.acknowledged || doubted.as_ref() == Some(&found),
            "{path}: found {:?}, acknowledged {:?}",
            found.map(|c| md5(&c)),
            expected.acknowledged.as_ref().map(|c| md5(c)),
        );
        let entry = &index["files"][path.as_str()];
        match &found {
            Some(content) => {
                assert_eq!(entry["md5"], md5(content), "{path}: the index agrees");
                assert_eq!((&entry["size"], &entry["is_deleted"]), (&content.len().into(), &false.into()));
                large += usize::from(content.len() > 256 * 1024);
            }
            None if expected.known => assert_eq!(entry["is_deleted"], true, "{path}: deleted, so a tombstone"),
            None => {}
        }
        expected.acknowledged = found;
    }
    let named: HashSet<_> = index["files"].as_object().unwrap().keys().collect();
    assert!(named.iter().all(|name| paths.contains_key(name.as_str())), "nothing else was written");
    let bodies = bodies_on_disk(store);
    assert_eq!(bodies, bodies_of_rows(store), "no body without a row, no row without its body");
    assert!(bodies.len() >= large, "large contents are in files");
}

async fn round(store: &Path, seed: u64, writes: usize, die_at: Option<&str>, paths: &mut Paths) {
    let process = Process::start(store, die_at);
    let addr = process.addr;
    let acked = Arc::new(Acked { left: AtomicUsize::new(writes), enough: Notify::new() });
    let mut shares: Vec<Paths> = vec![Paths::new(); WRITERS];
    for (path, expected) in paths.drain() {
        let writer: usize = path[1..].split('/').next().unwrap().parse().unwrap();
        shares[writer].insert(path, expected);
    }
    let writers = shares.into_iter().enumerate();
    let writers: Vec<_> = writers.map(|(w, share)| tokio::spawn(hammer(addr, w, seed, share, acked.clone()))).collect();
    let process = if die_at.is_none() {
        acked.enough.notified().await;
        process.kill();
        None
    } else {
        Some(process)
    };
    for share in join_all(writers).await {
        paths.extend(share.unwrap());
    }
    drop(process);
    let process = Process::start(store, None);
    verify(process.addr, store, paths).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_to_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut paths = Paths::new();
    for _ in 0..6 {
        round(&dir.path().join("store"), random.u64(..), random.usize(1..1500), None, &mut paths).await;
    }
}

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_around_the_commit_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut paths = Paths::new();
    for point in ["store-before-commit", "store-after-commit", "store-before-commit", "store-after-commit"] {
        let at = format!("{point}:{}", random.u32(1..60));
        round(&dir.path().join("store"), random.u64(..), usize::MAX, Some(&at), &mut paths).await;
    }
}
