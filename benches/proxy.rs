//! The cost of agents that ask for news, with 1,000 and with 100,000 files: CPU time of the proxy's own
//! threads, for each request. The bucket of the store on S3 is in this process, on threads that are not counted.
//!
//! A cost that grows with the number of files shows in the figures for 1,000 and for 100,000.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use memsync::digest::Md5;
use memsync::path::RelPath;
use memsync::proxy;
use memsync::store::{BatchWrite, BlobMeta, SqliteStore, Store, WriteCondition, system_clock};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

#[path = "../tests/it/common/s3.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod s3;

const TOKEN: &str = "open-sesame";
/// The names of the bucket's threads begin with this. Their time does not count.
const BUCKET: &str = "bucket";

fn runtime(name: &str) -> Runtime {
    let mut builder = Builder::new_multi_thread();
    // Threads that end take their figures with them.
    builder.worker_threads(2).thread_name(name).thread_keep_alive(Duration::from_secs(3600)).enable_all();
    builder.build().unwrap()
}

/// CPU time of all threads but the bucket's and the one that calls.
fn spent() -> Duration {
    let own = std::fs::read_link("/proc/thread-self").unwrap();
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let name = read("comm");
        if Some(task.file_name().as_os_str()) != own.file_name() && !name.starts_with(BUCKET) {
            nanoseconds += read("schedstat").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(nanoseconds)
}

/// One connection to the proxy.
struct Client(TcpStream);

impl Client {
    /// The answer's head and body.
    fn ask(&mut self, method: &str, target: &str, headers: &str, body: &[u8]) -> (String, Vec<u8>) {
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        self.0.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut all = Vec::new();
        let end = loop {
            if let Some(at) = all.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            self.more(&mut all);
        };
        let mut body = all.split_off(end);
        let head = String::from_utf8(all).unwrap().to_ascii_lowercase();
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        while body.len() < length {
            self.more(&mut body);
        }
        (head, body)
    }

    fn more(&mut self, all: &mut Vec<u8>) {
        let mut piece = [0; 65536];
        let n = self.0.read(&mut piece).unwrap();
        assert!(n > 0, "the proxy hung up");
        all.extend_from_slice(&piece[..n]);
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// A proxy that serves until the runtime ends.
fn serve<S: Store>(runtime: &Runtime, store: Arc<S>) -> Client {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let options = proxy::ProxyOptions::new(TOKEN.to_owned().into());
    runtime.spawn(proxy::serve(listener, store, options, std::future::pending()));
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    Client(stream)
}

fn name(i: usize) -> String {
    format!("topic-{:02}/area-{:02}/note-{i:06}.md", i % 8, i / 8 % 8)
}

fn fill(runtime: &Runtime, store: &SqliteStore, files: usize) {
    let all: Vec<usize> = (0..files).collect();
    for some in all.chunks(1000) {
        let write = |i: &usize| {
            let content = Bytes::from(i.to_string());
            (RelPath::parse(&name(*i)).unwrap(), BatchWrite::Put { expect: WriteCondition::Absent, content })
        };
        let written = runtime.block_on(store.write_many("", some.iter().map(write).collect(), &BlobMeta::default()));
        assert!(written.iter().all(Result::is_ok));
    }
}

/// An index of this many files, as another proxy would write it.
fn index(files: usize) -> Vec<u8> {
    let md5 = Md5::of(b"x");
    let entry = |i| {
        format!(
            r#""{}":{{"md5":"{md5}","last_modified":"2026-01-15T10:30:00.123Z","size":1,"is_deleted":false}}"#,
            name(i)
        )
    };
    let entries: Vec<String> = (0..files).map(entry).collect();
    format!(r#"{{"files":{{{}}},"index_last_modified":"2026-01-15T10:30:00.123Z"}}"#, entries.join(",")).into_bytes()
}

/// `GET /sync` with nothing new.
fn unchanged(c: &mut Criterion, what: &str, client: &mut Client) {
    let (head, _) = client.ask("GET", "/sync", "", b"");
    let condition = format!("If-None-Match: {}\r\n", header(&head, "etag").unwrap());
    c.bench_function(&format!("304 of GET /sync, {what}"), |b| {
        b.iter_custom(|times| {
            let before = spent();
            for _ in 0..times {
                let (head, _) = client.ask("GET", "/sync", &condition, b"");
                assert!(head.starts_with("http/1.1 304"), "{head}");
            }
            spent().saturating_sub(before)
        });
    });
}

/// `GET /sync?since=` after one change.
fn delta(c: &mut Criterion, what: &str, client: &mut Client) {
    let at = |client: &mut Client| {
        let (_, body) = client.ask("GET", "/sync?since=0", "", b"");
        let index: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (index["index_epoch"].as_str().unwrap().to_owned(), index["index_cursor"].as_u64().unwrap())
    };
    let (epoch, mut cursor) = at(client);
    c.bench_function(&format!("delta after one change, {what}"), |b| {
        b.iter_custom(|times| {
            let mut all = Duration::ZERO;
            for _ in 0..times {
                let (head, _) = client.ask("PUT", &format!("/blob/new-{cursor}"), "Content-MD5: new\r\n", b"x");
                assert!(head.starts_with("http/1.1 201"), "{head}");
                let before = spent();
                let (_, body) = client.ask("GET", &format!("/sync?since={cursor}&epoch={epoch}"), "", b"");
                all += spent().saturating_sub(before);
                let delta: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert!(delta["delta"] == true && delta["files"].as_object().unwrap().len() == 1, "{delta}");
                cursor += 1;
            }
            all
        });
    });
}

/// `GET /sync?from=` after one change, as each agent asks it. The change costs more: the proxy writes the whole index object
/// for it.
fn etag_delta(c: &mut Criterion, what: &str, client: &mut Client) {
    let (head, _) = client.ask("GET", "/sync", "", b"");
    let from = format!("/sync?from={}", header(&head, "etag").unwrap().trim_matches('"'));
    let mut n = 0;
    let mut put = |client: &mut Client| {
        n += 1;
        let (head, _) = client.ask("PUT", &format!("/blob/new-{n}"), "Content-MD5: new\r\n", b"x");
        assert!(head.starts_with("http/1.1 201"), "{head}");
    };
    put(client);
    c.bench_function(&format!("delta after one change, {what}"), |b| {
        b.iter_custom(|times| {
            let before = spent();
            for _ in 0..times {
                let (_, body) = client.ask("GET", &from, "", b"");
                let delta: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert!(delta["delta"] == true && delta["files"].as_object().unwrap().len() == 1, "{delta}");
            }
            spent().saturating_sub(before)
        });
    });
    let mut group = c.benchmark_group("writes");
    // The fewest there can be: each takes a while that is not counted.
    group.sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_millis(1));
    group.bench_function(format!("one change, {what}"), |b| {
        b.iter_custom(|times| {
            let before = spent();
            (0..times).for_each(|_| put(client));
            spent().saturating_sub(before)
        });
    });
    group.finish();
}

fn embedded(c: &mut Criterion) {
    for files in [1_000, 100_000] {
        let (runtime, dir) = (runtime("proxy"), tempfile::tempdir().unwrap());
        let store = Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap());
        fill(&runtime, &store, files);
        let mut client = serve(&runtime, store);
        let what = format!("embedded store of {files} files");
        unchanged(c, &what, &mut client);
        delta(c, &what, &mut client);
    }
}

fn bucket(c: &mut Criterion) {
    for files in [1_000, 100_000] {
        let (bucket, runtime) = (runtime(BUCKET), runtime("proxy"));
        let server = bucket.block_on(s3::Server::start());
        server.plant("memory/.sync-index.json", s3::Stored::new(&index(files), &[]));
        let store = runtime.block_on(server.store("memory", system_clock()));
        let mut client = serve(&runtime, Arc::new(store));
        let what = format!("store on S3 of {files} files");
        unchanged(c, &what, &mut client);
        etag_delta(c, &what, &mut client);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = embedded, bucket
}
criterion_main!(benches);
