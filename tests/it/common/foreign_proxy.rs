//! A foreign proxy in this process: namespaced dialect, no capabilities, and an index that is read, changed and written
//! without a lock, so that concurrent updates get lost.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use memsync::digest::Md5;
use serde_json::{Value, json};

/// The only namespace of the proxy.
pub(crate) const NAMESPACE: &str = "team";
/// A slow update of the index is undone by this many later ones...
const LOST_UPDATES: usize = 3;
/// ...and waits this long for them.
const MAX_SLOW_UPDATE: Duration = Duration::from_millis(300);
/// The time between two bytes of a slow body.
const DRIP_INTERVAL: Duration = Duration::from_millis(200);

/// A stored object. `content`: `None` for a tombstone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    md5: Md5,
    content: Option<Vec<u8>>,
    version: u64,
}

impl Object {
    fn entry(&self) -> Value {
        json!({
            "md5": self.md5.to_string(),
            "last_modified": "2026-01-01T00:00:00.000Z",
            "size": self.content.as_ref().map_or(0, Vec::len),
            "is_deleted": self.content.is_none(),
            "version": self.version,
        })
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    index: BTreeMap<String, Value>,
    version: u64,
    /// Index updates so far.
    updates: usize,
    /// Index entries that a slow update has undone.
    lost: usize,
    /// The path whose content is sent a byte at a time, or "".
    drip: String,
    /// Bytes that were sent one at a time.
    dripped: usize,
    /// Slow answers that have not ended.
    dripping: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified after each change of `drip` and `updates`.
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// A running foreign proxy. It ends with the test.
pub(crate) struct Foreign {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Foreign {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        shared.lock().version = 1_700_000_000_000;
        let served = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = served.clone();
                // The client may disconnect in the middle of a request.
                thread::spawn(move || while serve(&client, &shared).is_some() {});
            }
        });
        Self { addr, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Another client writes a path.
    pub(crate) fn put(&self, path: &str, content: &[u8]) {
        let mut state = self.shared.lock();
        state.version += 1;
        let object = Object { md5: Md5::of(content), content: Some(content.to_vec()), version: state.version };
        state.index.insert(path.to_owned(), object.entry());
        state.objects.insert(path.to_owned(), object);
    }

    /// Sends the content of this path a byte at a time from now on. "" ends that.
    pub(crate) fn drip(&self, path: &str) {
        self.shared.lock().drip = path.to_owned();
        self.shared.changed.notify_all();
    }

    pub(crate) fn dripped(&self) -> usize {
        self.shared.lock().dripped
    }

    pub(crate) fn is_dripping(&self) -> bool {
        self.shared.lock().dripping > 0
    }

    /// The live objects.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.shared.lock();
        state.objects.iter().filter_map(|(path, object)| Some((path.clone(), object.content.clone()?))).collect()
    }

    /// The paths whose index entry differs from the object.
    pub(crate) fn wrong_entries(&self) -> Vec<String> {
        let state = self.shared.lock();
        let is_wrong = |(path, object): &(&String, &Object)| state.index.get(*path) != Some(&object.entry());
        state.objects.iter().filter(is_wrong).map(|(path, _)| path.clone()).collect()
    }

    /// The number of index updates, and of those that were lost.
    pub(crate) fn updates(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.updates, state.lost)
    }
}

struct RequestHead {
    method: String,
    target: String,
    version: Option<u64>,
    body: Vec<u8>,
}

fn read(client: &TcpStream) -> Option<RequestHead> {
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let (mut length, mut version) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "if-match-version" => version = value.parse().ok(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(RequestHead { method, target, version, body })
}

fn answer(mut client: &TcpStream, status: &str, headers: &str, body: &[u8]) -> Option<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    client.write_all(&[head.as_bytes(), body].concat()).ok()
}

/// Sends the content a byte at a time until [`Foreign::drip`] ends that, then the rest.
fn drip(mut client: &TcpStream, shared: &Shared, headers: &str, content: &[u8]) -> Option<()> {
    shared.lock().dripping += 1;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n", content.len());
    let mut sent = client.write_all(head.as_bytes()).ok();
    let mut rest = content;
    while let (Some(()), Some((byte, more))) = (sent, rest.split_first()) {
        let is_slow = !shared.lock().drip.is_empty();
        if !is_slow {
            sent = client.write_all(rest).ok();
            break;
        }
        sent = client.write_all(&[*byte]).ok();
        rest = more;
        let mut state = shared.lock();
        state.dripped += 1;
        drop(shared.changed.wait_timeout_while(state, DRIP_INTERVAL, |state| !state.drip.is_empty()).unwrap());
    }
    shared.lock().dripping -= 1;
    sent
}

/// Serves one request. `None`: the connection has ended.
fn serve(client: &TcpStream, shared: &Shared) -> Option<()> {
    let request = read(client)?;
    let Some(path) = request.target.strip_prefix(&format!("/{NAMESPACE}/blob/")) else {
        let body = match request.target.as_str() {
            "/health" => json!({"status": "ok", "storage": "connected", "version": "0.3"}),
            target if target == format!("/sync/{NAMESPACE}") => json!({"files": shared.lock().index}),
            _ => return answer(client, "404 Not Found", "", b"{}"),
        };
        return answer(client, "200 OK", "Content-Type: application/json\r\n", body.to_string().as_bytes());
    };
    let version_headers = |object: &Object| format!("ETag: \"{}\"\r\nX-Version: {}\r\n", object.md5, object.version);
    if request.method == "GET" {
        let object = shared.lock().objects.get(path).cloned();
        return match object {
            Some(Object { content: None, .. }) | None => answer(client, "404 Not Found", "", b"{}"),
            Some(ref object @ Object { content: Some(ref content), .. }) => {
                let is_slow = shared.lock().drip == path;
                if is_slow {
                    drip(client, shared, &version_headers(object), content)
                } else {
                    answer(client, "200 OK", &version_headers(object), content)
                }
            }
        };
    }
    let written = {
        let mut state = shared.lock();
        let held = state.objects.get(path).cloned();
        let current = held.as_ref().map_or(0, |object| object.version);
        match (request.method.as_str(), &held, request.version) {
            ("PUT", _, None) => return answer(client, "422 Unprocessable Entity", "", b"{}"),
            ("DELETE", None, _) => return answer(client, "404 Not Found", "", b"{}"),
            (_, _, Some(expected)) if expected != current => {
                let context = json!({"current_version": current.to_string(), "provided_version": expected.to_string()});
                let body = json!({"detail": "version", "error_code": "PRECONDITION_FAILED", "context": context});
                return answer(client, "412 Precondition Failed", "", body.to_string().as_bytes());
            }
            _ => {}
        }
        state.version += 1;
        let version = state.version;
        let object = match (request.method.as_str(), held) {
            ("DELETE", Some(held)) => Object { content: None, version, ..held },
            _ => Object { md5: Md5::of(&request.body), content: Some(request.body), version },
        };
        state.objects.insert(path.to_owned(), object.clone());
        object
    };
    update_index(shared, path, &written);
    answer(client, "200 OK", &version_headers(&written), b"")
}

/// Every sixth update is slow: it writes back the index as it was before the updates that came meanwhile.
fn update_index(shared: &Shared, path: &str, written: &Object) {
    let mut state = shared.lock();
    state.updates += 1;
    shared.changed.notify_all();
    if state.updates.is_multiple_of(6) {
        let (before, enough) = (state.index.clone(), state.updates + LOST_UPDATES);
        let is_early = |state: &mut State| state.updates < enough;
        (state, _) = shared.changed.wait_timeout_while(state, MAX_SLOW_UPDATE, is_early).unwrap();
        let undone = state.index.iter().filter(|(path, entry)| before.get(*path) != Some(entry)).count();
        state.lost += undone;
        state.index = before;
    }
    state.index.insert(path.to_owned(), written.entry());
}
