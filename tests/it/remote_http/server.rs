//! A scripted server on raw TCP: it shows the request exactly as it came and answers with any bytes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// No test waits longer than this for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The delay before the body of a request with `x-slow` in its target is read.
pub(crate) const SLOW: Duration = Duration::from_millis(900);

/// A request as it was on the wire.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// True if the body had the promised length.
    pub whole: bool,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Keeps the connection open for the next request.
    Keep,
    /// Closes the connection.
    Close,
    /// Sends nothing more until the client closes.
    Hold,
    /// Sends single bytes with pauses until the client closes.
    Drip,
}

/// The answer to send.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub bytes: Vec<u8>,
    pub then: Then,
}

/// A reply with these header lines and the right `Content-Length`.
pub(crate) fn reply(status: u16, headers: &[&str], body: &[u8]) -> Reply {
    let mut text = format!("HTTP/1.1 {status} Reason\r\n");
    for line in headers {
        text += &format!("{line}\r\n");
    }
    if !matches!(status, 204 | 304) {
        text += &format!("content-length: {}\r\n", body.len());
    }
    let mut bytes = (text + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    Reply { bytes, then: Then::Keep }
}

impl Reply {
    pub(crate) fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    /// Without its last `n` bytes.
    pub(crate) fn cut(mut self, n: usize) -> Self {
        self.bytes.truncate(self.bytes.len() - n);
        self
    }
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

/// Stops when dropped.
pub(crate) struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    /// `capabilities`: the answer to `/health`. `script`: the answers to all other requests. Requests with `x-early` in
    /// their target are answered before their body is read.
    pub(crate) async fn start(
        capabilities: &[&str],
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let health = format!(
            r#"{{"status":"ok","storage":"connected","capabilities":[{}]}}"#,
            capabilities.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(",")
        );
        let all = move |request: &Request| match request.target.as_str() {
            "/health" => reply(200, &["content-type: application/json"], health.as_bytes()),
            _ => script(request),
        };
        Self::start_raw(Arc::new(all)).await
    }

    /// A server whose script answers `/health` too.
    pub(crate) async fn start_raw(script: Arc<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                open.spawn(serve(socket, Arc::clone(&script), Arc::clone(&log)));
            }
        });
        Self { address, seen, connections, task }
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request but `/health`.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().iter().filter(|r| r.target != "/health").cloned().collect()
    }

    /// Connections taken so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn health_count(&self) -> usize {
        self.seen.lock().unwrap().iter().filter(|r| r.target == "/health").count()
    }

    /// Waits until `n` requests have ended, whole or not.
    pub(crate) async fn wait_for(&self, n: usize) -> Vec<Request> {
        let all = async {
            while self.seen().len() < n {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, all).await.expect("the request never came");
        self.seen()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: TcpStream, script: Arc<Script>, log: Arc<Mutex<Vec<Request>>>) {
    let mut socket = BufReader::new(socket);
    loop {
        let Some(mut request) = read_head(&mut socket).await else { return };
        let early = request.target.contains("x-early");
        let mut answer = None;
        if early {
            let reply = script(&request);
            if socket.write_all(&reply.bytes).await.is_err() {
                return;
            }
            answer = Some(reply);
        }
        let length: usize = request.header("content-length").map_or(0, |n| n.parse().unwrap());
        let chunked = request.header("transfer-encoding").is_some();
        if request.target.contains("x-slow") {
            tokio::time::sleep(SLOW).await;
        }
        request.whole = if chunked {
            read_chunks(&mut socket, &mut request.body).await.is_some()
        } else {
            let read = (&mut socket).take(length as u64).read_to_end(&mut request.body).await;
            read.is_ok() && request.body.len() == length
        };
        log.lock().unwrap().push(request.clone());
        if !request.whole {
            return;
        }
        let reply = match answer {
            Some(reply) => reply,
            None => {
                let reply = script(&request);
                if socket.write_all(&reply.bytes).await.is_err() {
                    return;
                }
                reply
            }
        };
        match reply.then {
            Then::Keep => {}
            Then::Close => return,
            Then::Hold => {
                // The client has closed in both cases.
                drop(socket.read(&mut [0]).await);
                return;
            }
            Then::Drip => {
                while socket.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                return;
            }
        }
    }
}

/// A body in chunks. `None`: it is truncated.
async fn read_chunks(socket: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> Option<()> {
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(socket.read_u8().await.ok()?);
        }
        let length = usize::from_str_radix(String::from_utf8(line).unwrap().trim(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        socket.read_exact(&mut chunk).await.ok()?;
        body.extend_from_slice(&chunk[..length]);
        if length == 0 {
            return Some(());
        }
    }
}

async fn read_head(socket: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Request { method, target, headers, ..Request::default() })
}
