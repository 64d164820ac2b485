//! The memory of the proxy: 1,000 idle event streams take less than 50 MiB, over TCP and over TLS. Endless heads take
//! little. Compression bombs, slow readers and slow uploads keep to the budget for bodies.
#![cfg(target_os = "linux")]

use crate::common::packed;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::common::address::served_at;
use crate::common::killed::{Killed, eventually};
use assert_cmd::cargo::CommandCargoExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const STREAMS: usize = 1000;
const MAX_KIB: u64 = 50 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const REQUEST: &[u8] = b"GET /events HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer t0ken\r\n\r\n";

struct Proxy {
    child: Killed,
    addr: SocketAddr,
}

impl Proxy {
    fn start(home: &Path, more: &[&str]) -> Self {
        let log = home.join("serve.log");
        let mut command = Command::cargo_bin("memsync").unwrap();
        command.env_clear().env("MEMSYNC_HOME", home).env("MEMSYNC_TOKEN", "t0ken");
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(more).stderr(File::create(&log).unwrap());
        let child = Killed(command.spawn().unwrap());
        let mut addr = None;
        eventually("the proxy listens", || {
            addr = served_at(&std::fs::read_to_string(&log).unwrap());
            addr.is_some()
        });
        Self { child, addr: addr.unwrap() }
    }

    fn resident_kib(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The peak so far.
    fn peak_kib(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn listen(mut stream: impl Read + Write) -> impl Read + Write {
    stream.write_all(REQUEST).unwrap();
    let mut came = Vec::new();
    let mut piece = [0; 1024];
    while !came.windows(13).any(|w| w == b": connected\n\n") {
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&came));
        came.extend_from_slice(&piece[..n]);
    }
    stream
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
    stream
}

fn measure<T: Read + Write>(name: &str, proxy: &Proxy, open: impl Fn() -> T) {
    // The first streams allocate memory that all share.
    let warm: Vec<_> = (0..20).map(|_| listen(open())).collect();
    let before = proxy.resident_kib();
    let streams: Vec<_> = (0..STREAMS).map(|_| listen(open())).collect();
    let cost = proxy.resident_kib().saturating_sub(before);
    println!("{name}: {STREAMS} event streams cost {cost} KiB, {} bytes each", cost * 1024 / STREAMS as u64);
    assert!(cost < MAX_KIB, "{cost} KiB");
    drop((warm, streams));
}

#[test]
fn thousand_idle_event_streams_use_little_memory() {
    allow_files();
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(home.path(), &[]);
    measure("tcp", &proxy, || connect(proxy.addr));
}

#[test]
fn thousand_idle_tls_event_streams_use_little_memory() {
    allow_files();
    let home = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let file = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("cert.pem"), cert.pem()).unwrap();
    std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
    let proxy = Proxy::start(home.path(), &["--tls-cert", &file("cert.pem"), "--tls-key", &file("key.pem")]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cert.pem().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    measure("tls", &proxy, || {
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), connect(proxy.addr))
    });
}

#[test]
fn endless_heads_use_little_memory() {
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(home.path(), &[]);
    let before = proxy.resident_kib();
    let pours: Vec<_> = (0..20)
        .map(|n| {
            let addr = proxy.addr;
            std::thread::spawn(move || {
                let mut stream = connect(addr);
                // Ten megabytes of a path or a header.
                let begin: &[u8] = if n % 2 == 0 { b"GET /blob/" } else { b"GET / HTTP/1.1\r\nX: " };
                stream.write_all(begin).unwrap();
                // The proxy may close the connection long before the end.
                (0..1000).all(|_| stream.write_all(&[b'x'; 10_000]).is_ok())
            })
        })
        .collect();
    for pour in pours {
        let _whole: bool = pour.join().unwrap();
    }
    let cost = proxy.peak_kib().saturating_sub(before);
    assert!(cost < 20 * 1024, "{cost} KiB");
}

#[test]
fn compression_bombs_keep_to_the_memory_budget() {
    const BODY: u64 = 12 << 20;
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(home.path(), &["--max-body-size", "12MiB"]);
    let before = proxy.resident_kib();
    // Each needs a window of 8 MiB: the 64 of them 512 MiB.
    let zstd = Arc::new(packed::zstd_bomb(BODY + 1, 23));
    let gzip = Arc::new(packed::gzip_bomb(usize::try_from(BODY).unwrap() + 1));
    let pours: Vec<_> = (0..96)
        .map(|n| {
            let (addr, coding) = (proxy.addr, if n % 3 == 0 { "gzip" } else { "zstd" });
            let bomb = if n % 3 == 0 { gzip.clone() } else { zstd.clone() };
            std::thread::spawn(move || {
                let mut stream = connect(addr);
                let head = format!(
                    "PUT /blob/{n} HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer t0ken\r\nContent-MD5: new\r\n\
                     Content-Encoding: {coding}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    bomb.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(&bomb).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 413 "), "{coding}: {answer}");
            })
        })
        .collect();
    for pour in pours {
        pour.join().unwrap();
    }
    let cost = proxy.peak_kib().saturating_sub(before);
    println!("96 bombs at once: {} MiB", cost / 1024);
    assert!(cost < 256 * 1024, "{cost} KiB");
}

/// A read-only key of the proxy's store.
fn read_only_key(home: &Path) -> String {
    let mut command = Command::cargo_bin("memsync").unwrap();
    command.env_clear().env("MEMSYNC_HOME", home).args(["key", "create", "--read-only", "--json"]);
    let out = command.output().unwrap();
    let made: serde_json::Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    made["token"].as_str().unwrap().to_owned()
}

/// Sends a request and gives the status line of the response.
fn request(addr: SocketAddr, token: &str, head: &str, body: &[u8]) -> String {
    let mut stream = connect(addr);
    let length = body.len();
    let head = format!(
        "{head} HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer {token}\r\nContent-MD5: new\r\n\
         Content-Type: application/vnd.memsync.batch\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

/// Each reader requests another state of an index of some megabytes, and reads only the head.
#[test]
fn slow_index_readers_hold_at_most_their_part_of_memory() {
    allow_files();
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(home.path(), &[]);
    let key = read_only_key(home.path());
    let long = "n".repeat(250);
    for batch in 0..6 {
        let mut body = Vec::new();
        for n in 0..1000 {
            let path = format!("{long}/{long}/{long}/{batch}-{n}");
            let head = serde_json::json!({"op": "put", "path": path, "precondition": "new", "size": 0}).to_string();
            body.extend(u32::try_from(head.len()).unwrap().to_be_bytes());
            body.extend(head.as_bytes());
        }
        let answer = request(proxy.addr, "t0ken", "POST /batch", &body);
        assert!(answer.contains("200"), "{answer}");
    }
    let before = proxy.resident_kib();
    let mut slow = Vec::new();
    for n in 0..79 {
        let answer = request(proxy.addr, "t0ken", &format!("PUT /blob/{n}"), b"x");
        assert!(answer.contains("201"), "others go on: {answer}");
        let mut stream = connect(proxy.addr);
        let head = format!("GET /sync HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer {key}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // The first requests are answered, and the others wait for memory.
        if n < 5 {
            stream.read_exact(&mut [0; 100]).unwrap();
        }
        slow.push(stream);
    }
    let answer = request(proxy.addr, "t0ken", "GET /sync", b"");
    assert!(answer.contains("200"), "{answer}");
    let cost = proxy.peak_kib().saturating_sub(before);
    println!("79 slow readers of an index: {} MiB", cost / 1024);
    assert!(cost < 200 * 1024, "{cost} KiB");
    drop(slow);
}

#[test]
fn slow_uploads_hold_at_most_their_part_of_memory() {
    const UPLOADS: usize = 600;
    allow_files();
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(home.path(), &[]);
    let before = proxy.resident_kib();
    let body = vec![7; 1_000_000];
    let mut slow = Vec::new();
    for n in 0..UPLOADS {
        let mut stream = connect(proxy.addr);
        let head = format!(
            "PUT /blob/{n} HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer t0ken\r\nContent-MD5: new\r\n\
             Content-Length: 1000001\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        slow.push((stream, 0));
    }
    // Ends when no upload makes progress: it lacks one byte, or it waits for memory.
    eventually("the uploads have come as far as they may", || {
        let mut went_on = false;
        for (stream, sent) in &mut slow {
            while let Ok(n @ 1..) = stream.write(&body[*sent..]) {
                *sent += n;
                went_on = true;
            }
        }
        !went_on
    });
    let cost = proxy.peak_kib().saturating_sub(before);
    println!("{UPLOADS} slow uploads: {} MiB", cost / 1024);
    assert!(cost < 220 * 1024, "{cost} KiB");
}
