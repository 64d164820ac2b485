//! A proxy on a free port, and a client that sends raw HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use memsync::proxy::{ProxyOptions, serve};
use memsync::store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const TOKEN: &str = "open-sesame";
/// Bytes. A body up to this size is sent together with its head; the proxy's first read has room for both.
const ONE_READ: usize = 4096;

/// The longest wait for an answer. Generous, because the machine may be loaded.
const DEADLINE: Duration = Duration::from_secs(60);

/// A proxy that runs until it is stopped or dropped.
pub(crate) struct Running {
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Running {
    pub(crate) async fn start<S: Store>(store: Arc<S>) -> Self {
        Self::start_with(store, options()).await
    }

    pub(crate) async fn start_with<S: Store>(store: Arc<S>, options: ProxyOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(listener, store, options, async move {
            let _ = stopped.await;
        }));
        Self { addr, stop: Some(stop), task }
    }

    /// Stops the proxy, and waits for its end.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap().unwrap();
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.addr).await
    }
}

pub(crate) fn options() -> ProxyOptions {
    ProxyOptions::new(TOKEN.to_owned().into())
}

/// An answer. Header names are in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The `error_code` of an error answer.
    pub(crate) fn code(&self) -> String {
        self.json()["error_code"].as_str().unwrap().to_owned()
    }
}

/// One connection.
pub(crate) struct Client {
    pub stream: TcpStream,
    /// The token of the requests.
    pub token: String,
    read: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::try_connect(addr).await.expect("a proxy that listens")
    }

    pub(crate) async fn try_connect(addr: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(addr).await.ok()?;
        stream.set_nodelay(true).unwrap();
        Some(Self { stream, token: TOKEN.to_owned(), read: Vec::new() })
    }

    /// Sends a request with the token, and with the length of a body.
    pub(crate) async fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.try_send(method, target, headers, body).await.expect("an answer")
    }

    /// As [`Client::send`], to a proxy that may be gone. `None`: no answer.
    pub(crate) async fn try_send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Reply> {
        let mut all = vec![("Authorization", format!("Bearer {}", self.token))];
        if method == "PUT" || !body.is_empty() {
            all.push(("Content-Length", body.len().to_string()));
        }
        all.extend(headers.iter().map(|(n, v)| (*n, (*v).to_owned())));
        let mut bytes = head(method, target, &all);
        // A request that is refused before its body has arrived ends the connection. Sent in one piece, a small body has
        // always arrived.
        let apart = body.len() > ONE_READ;
        if !apart {
            bytes.extend_from_slice(body);
        }
        // A refusal may close the connection before all of the body is sent. Its answer is read all the same.
        if self.stream.write_all(&bytes).await.is_ok() && apart {
            let _ = self.stream.write_all(body).await;
        }
        self.try_reply(method).await
    }

    pub(crate) async fn get(&mut self, target: &str) -> Reply {
        self.send("GET", target, &[], b"").await
    }

    pub(crate) async fn put(&mut self, target: &str, precondition: &str, body: &[u8]) -> Reply {
        self.send("PUT", target, &[("Content-MD5", precondition)], body).await
    }

    pub(crate) async fn delete(&mut self, target: &str) -> Reply {
        self.send("DELETE", target, &[], b"").await
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Reads one answer. The answer to a HEAD has no body.
    pub(crate) async fn reply(&mut self, method: &str) -> Reply {
        self.try_reply(method).await.expect("an answer")
    }

    /// Reads one answer. `None`: the connection ended first.
    pub(crate) async fn try_reply(&mut self, method: &str) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8(self.read.drain(..end + 4).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
            .collect();
        let mut reply = Reply { status, headers, body: Vec::new() };
        if status == 100 {
            return Some(reply);
        }
        let length = reply.header("content-length").map_or(0, |v| v.parse().unwrap());
        if method != "HEAD" && reply.header("transfer-encoding").is_none() {
            while self.read.len() < length {
                if !self.more().await {
                    return None;
                }
            }
            reply.body = self.read.drain(..length).collect();
        }
        Some(reply)
    }

    /// Reads the body of a chunked answer. `None`: it breaks off.
    pub(crate) async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let length = usize::from_str_radix(&line, 16).unwrap();
            while self.read.len() < length + 2 {
                if !self.more().await {
                    return None;
                }
            }
            body.extend(self.read.drain(..length));
            assert_eq!(self.read.drain(..2).collect::<Vec<_>>(), b"\r\n");
            if length == 0 {
                return Some(body);
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.read.windows(2).position(|w| w == b"\r\n") {
                let line = self.read.drain(..at + 2).collect::<Vec<_>>();
                return Some(String::from_utf8(line).unwrap().trim().to_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// Reads more bytes. False: the connection has ended.
    async fn more(&mut self) -> bool {
        let mut piece = vec![0; 64 * 1024];
        let read = tokio::time::timeout(DEADLINE, self.stream.read(&mut piece)).await;
        match read.expect("an answer in time") {
            Ok(n) if n > 0 => {
                self.read.extend_from_slice(&piece[..n]);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Reads until the other side ends the connection.
    pub(crate) async fn wait_for_end(&mut self) {
        while self.more().await {}
    }

    /// Reads until `text` has arrived, and returns everything up to its end.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(text.len()).position(|w| w == text.as_bytes()) {
                return String::from_utf8_lossy(&self.read.drain(..at + text.len()).collect::<Vec<_>>()).into_owned();
            }
            assert!(self.more().await, "the stream ended before {text:?}: {:?}", String::from_utf8_lossy(&self.read));
        }
    }
}

/// The head of a request.
pub(crate) fn head(method: &str, target: &str, headers: &[(&str, String)]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: proxy\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    (head + "\r\n").into_bytes()
}

/// The MD5 of `bytes` in hex.
pub(crate) fn md5(bytes: &[u8]) -> String {
    memsync::digest::Md5::of(bytes).to_string()
}

/// The value of a metric, by its name with labels.
pub(crate) fn sample(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}
