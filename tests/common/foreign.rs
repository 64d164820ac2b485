//! A proxy of another kind, in this process: namespaced dialect, no capabilities, and an index that is read, changed and
//! written without a lock, so that updates which come together get lost.
#![allow(dead_code)] // Each test binary uses its part.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use memsync::digest::Md5;
use serde_json::{Value, json};

/// The namespace that it serves.
pub const NAMESPACE: &str = "team";
/// The time that its storage needs to write the index.
const INDEX_WRITE: Duration = Duration::from_millis(4);
/// Between two bytes that drip.
const DRIP: Duration = Duration::from_millis(200);

/// An object as it is stored. `content`: `None` for a tombstone.
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
    /// Index updates, and those that a later one has undone.
    updates: usize,
    lost: usize,
    /// The path whose content goes out a byte at a time, and the bytes that went so.
    drip: String,
    dripped: usize,
    /// Such answers that have not ended.
    dripping: usize,
}

/// Ends with the test.
pub struct Foreign {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Foreign {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { version: 1_700_000_000_000, ..State::default() }));
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = shared.clone();
                // The client may go in the middle of a request.
                thread::spawn(move || while serve(&client, &state).is_some() {});
            }
        });
        Self { addr, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Another client writes a path.
    pub fn put(&self, path: &str, content: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let object = Object { md5: Md5::of(content), content: Some(content.to_vec()), version: state.version };
        state.index.insert(path.to_owned(), object.entry());
        state.objects.insert(path.to_owned(), object);
    }

    /// From now on the content of this path goes out a byte at a time; of none: "".
    pub fn drip(&self, path: &str) {
        self.state.lock().unwrap().drip = path.to_owned();
    }

    pub fn dripped(&self) -> usize {
        self.state.lock().unwrap().dripped
    }

    pub fn is_dripping(&self) -> bool {
        self.state.lock().unwrap().dripping > 0
    }

    /// What is live.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.objects.iter().filter_map(|(path, object)| Some((path.clone(), object.content.clone()?))).collect()
    }

    /// The paths of which the index says something else than the objects.
    pub fn wrong_entries(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let is_wrong = |(path, object): &(&String, &Object)| state.index.get(*path) != Some(&object.entry());
        state.objects.iter().filter(is_wrong).map(|(path, _)| path.clone()).collect()
    }

    /// Index updates so far, and how many of them were lost.
    pub fn updates(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.updates, state.lost)
    }
}

struct Asked {
    method: String,
    target: String,
    version: Option<u64>,
    body: Vec<u8>,
}

fn read(client: &TcpStream) -> Option<Asked> {
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
    Some(Asked { method, target, version, body })
}

fn answer(mut client: &TcpStream, status: &str, headers: &str, body: &[u8]) -> Option<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    client.write_all(&[head.as_bytes(), body].concat()).ok()
}

/// A byte at a time until it is told to stop; then the rest.
fn drip(mut client: &TcpStream, state: &Mutex<State>, headers: &str, content: &[u8]) -> Option<()> {
    state.lock().unwrap().dripping += 1;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n", content.len());
    let mut sent = client.write_all(head.as_bytes()).ok();
    let mut rest = content;
    while let (Some(()), Some((byte, more))) = (sent, rest.split_first()) {
        let drips = !state.lock().unwrap().drip.is_empty();
        if !drips {
            sent = client.write_all(rest).ok();
            break;
        }
        sent = client.write_all(&[*byte]).ok();
        rest = more;
        state.lock().unwrap().dripped += 1;
        thread::sleep(DRIP);
    }
    state.lock().unwrap().dripping -= 1;
    sent
}

/// One request; `None` at the end of the connection.
fn serve(client: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let asked = read(client)?;
    let Some(path) = asked.target.strip_prefix(&format!("/{NAMESPACE}/blob/")) else {
        let body = match asked.target.as_str() {
            "/health" => json!({"status": "ok", "storage": "connected", "version": "0.3"}),
            target if target == format!("/sync/{NAMESPACE}") => json!({"files": state.lock().unwrap().index}),
            _ => return answer(client, "404 Not Found", "", b"{}"),
        };
        return answer(client, "200 OK", "Content-Type: application/json\r\n", body.to_string().as_bytes());
    };
    let of = |object: &Object| format!("ETag: \"{}\"\r\nX-Version: {}\r\n", object.md5, object.version);
    if asked.method == "GET" {
        let object = state.lock().unwrap().objects.get(path).cloned();
        return match object {
            Some(Object { content: None, .. }) | None => answer(client, "404 Not Found", "", b"{}"),
            Some(ref object @ Object { content: Some(ref content), .. }) => {
                let drips = state.lock().unwrap().drip == path;
                if drips {
                    drip(client, state, &of(object), content)
                } else {
                    answer(client, "200 OK", &of(object), content)
                }
            }
        };
    }
    let written = {
        let mut state = state.lock().unwrap();
        let held = state.objects.get(path).cloned();
        let current = held.as_ref().map_or(0, |object| object.version);
        match (asked.method.as_str(), &held, asked.version) {
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
        let object = match (asked.method.as_str(), held) {
            ("DELETE", Some(held)) => Object { content: None, version, ..held },
            _ => Object { md5: Md5::of(&asked.body), content: Some(asked.body), version },
        };
        state.objects.insert(path.to_owned(), object.clone());
        object
    };
    update_index(state, path, &written);
    answer(client, "200 OK", &of(&written), b"")
}

/// Every sixth update writes back the index as it was before the others that came meanwhile.
fn update_index(state: &Mutex<State>, path: &str, written: &Object) {
    let before = {
        let mut state = state.lock().unwrap();
        state.updates += 1;
        state.updates.is_multiple_of(6).then(|| state.index.clone())
    };
    thread::sleep(INDEX_WRITE);
    let mut state = state.lock().unwrap();
    if let Some(before) = before {
        let undone = state.index.iter().filter(|(path, entry)| before.get(*path) != Some(entry)).count();
        state.lost += undone;
        state.index = before;
    }
    state.index.insert(path.to_owned(), written.entry());
}
