//! `memsync serve` and `memsync key` on a bucket, killed between any two of their writes. The bucket outlives them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::frames::{TYPE, frames, parse};
use crate::common::proxy::{Client, md5};
use crate::common::s3::{Server, difference};
use crate::common::serving::{Serving, memsync};

fn on_a_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work);
}

/// The next content of a path, or its deletion.
type Step = (&'static str, Option<&'static str>);

/// The steps in order. A single step is a request, several are a batch.
fn steps() -> Vec<Vec<Step>> {
    let mut batch: Vec<Step> = ["n/0", "n/1", "n/2", "n/3", "n/4", "n/5"].map(|name| (name, Some("new"))).to_vec();
    batch.extend([("b.md", Some("b3")), ("due.md", None)]);
    vec![
        vec![("a.md", Some("a1"))],
        vec![("b.md", Some("b1"))],
        vec![("a.md", Some("a2"))],
        vec![("b.md", None)],
        vec![("b.md", Some("b2"))],
        vec![("due.md", Some("due"))],
        vec![("a.md", Some("a3"))],
        vec![("a.md", None)],
        batch,
        vec![("n/3", Some("newer"))],
    ]
}

/// The known state of the paths.
#[derive(Default)]
struct Known {
    /// The acknowledged content of each path.
    held: BTreeMap<&'static str, Option<&'static str>>,
    /// Every content that was ever acknowledged.
    ever: Vec<(&'static str, &'static str)>,
    /// Sent, and not answered.
    doubt: Vec<Step>,
}

impl Known {
    fn acknowledged(&mut self, (path, content): Step) {
        self.held.insert(path, content);
        self.ever.extend(content.map(|content| (path, content)));
    }

    fn precondition(&self, path: &str) -> String {
        self.held.get(path).copied().flatten().map_or_else(|| "new".to_owned(), |content| md5(content.as_bytes()))
    }
}

/// Sends one group of steps. `None`: no answer came.
async fn take(client: &mut Client, known: &Known, group: &[Step]) -> Option<()> {
    if let [(path, content)] = group {
        let held = known.precondition(path);
        let target = format!("/blob/{path}");
        let due = ("X-Memsync-Expires", "2099-01-01T00:00:00Z");
        let reply = match content {
            None => client.try_send("DELETE", &target, &[("If-Match", &held)], b"").await?,
            Some(content) if *path == "due.md" => {
                client.try_send("PUT", &target, &[("Content-MD5", &held), due], content.as_bytes()).await?
            }
            Some(content) => client.try_send("PUT", &target, &[("Content-MD5", &held)], content.as_bytes()).await?,
        };
        assert!(matches!(reply.status, 200 | 201 | 204), "{path}: {reply:?}");
        return Some(());
    }
    let mut batch = Vec::new();
    for (path, content) in group {
        let held = known.precondition(path);
        let head = match content {
            Some(content) => json!({"op": "put", "path": path, "precondition": held, "size": content.len()}),
            None => json!({"op": "delete", "path": path, "md5": held}),
        };
        batch.push((head, content.unwrap_or_default().as_bytes().to_vec()));
    }
    let reply = client.try_send("POST", "/batch", &[("Content-Type", TYPE)], &frames(&batch)).await?;
    for (head, _) in parse(&reply.body) {
        assert!(matches!(head["status"].as_u64(), Some(200 | 201 | 204)), "{head}");
    }
    Some(())
}

/// Sends the steps from `at` on. Returns the first one without an answer.
async fn go_on(client: &mut Client, known: &mut Known, at: usize) -> Option<usize> {
    for (n, group) in steps().into_iter().enumerate().skip(at) {
        // A step that arrived before its answer was lost is not sent again.
        let open: Vec<Step> =
            group.into_iter().filter(|(path, content)| known.held.get(path).copied().flatten() != *content).collect();
        if open.is_empty() {
            continue;
        }
        if take(client, known, &open).await.is_none() {
            known.doubt = open;
            return Some(n);
        }
        open.into_iter().for_each(|step| known.acknowledged(step));
    }
    None
}

/// Compares the bucket with the acknowledged content, and finds out which unanswered steps arrived.
async fn verify(server: &Server, client: &mut Client, known: &mut Known) {
    // A start repairs the index while it serves.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !difference(server, "memory").is_empty() {
        assert!(Instant::now() < deadline, "{:?}", difference(server, "memory"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let index = client.get("/sync").await.json();
    let doubt = std::mem::take(&mut known.doubt);
    let landed: Vec<Step> = {
        let mut landed = Vec::new();
        for step @ (path, content) in doubt {
            let reply = client.get(&format!("/blob/{path}")).await;
            let found = (reply.status == 200).then_some(reply.body);
            if found.as_deref() == content.map(str::as_bytes) {
                landed.push(step);
            }
        }
        landed
    };
    landed.into_iter().for_each(|step| known.acknowledged(step));
    for (path, content) in &known.held {
        let reply = client.get(&format!("/blob/{path}")).await;
        let found = (reply.status == 200).then(|| String::from_utf8(reply.body.clone()).unwrap());
        assert_eq!(found.as_deref(), *content, "{path}: {reply:?}");
        let entry = &index["files"][path];
        assert_eq!(entry["is_deleted"], content.is_none(), "{path}: {index}");
    }
    for (path, content) in &known.ever {
        let versions = client.get(&format!("/versions/{path}")).await.json();
        let of = |v: &Value| v["md5"] == md5(content.as_bytes()) && v["is_deleted"] == false;
        let version = versions["versions"].as_array().unwrap().iter().find(|v| of(v));
        let version = version.unwrap_or_else(|| panic!("{path}: {content} is lost: {versions}"));
        let reply = client.get(&format!("/blob/{path}?version={}", version["version"])).await;
        assert_eq!(reply.body, content.as_bytes(), "{path}: {version}");
    }
    let named: Vec<&String> = index["files"].as_object().unwrap().keys().collect();
    let all: Vec<&str> = steps().concat().into_iter().map(|(path, _)| path).collect();
    assert!(named.iter().all(|name| all.contains(&name.as_str())), "nothing else was written: {named:?}");
}

/// `memsync reindex` finds nothing to repair.
async fn is_right(home: &Path, server: &Server) {
    let mut command = memsync(home, server);
    command.arg("reindex");
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
    assert!(out.status.success() && text.contains("the index is right"), "{text}");
}

/// Files are created, changed, deleted and created again, alone and in a batch, until the proxy dies. A new proxy takes
/// the rest.
pub(crate) fn a_bucket(point: &str) {
    on_a_runtime(async {
        let (server, home) = (Server::start().await, tempfile::tempdir().unwrap());
        let mut known = Known::default();
        let dying = Serving::start(home.path(), &server, &[("MEMSYNC_KILL_AT", point)]).await;
        let at = go_on(&mut dying.client().await, &mut known, 0).await.expect("it dies on the way");
        crate::kill_points::died(dying.ended().await, point);
        let next = Serving::start(home.path(), &server, &[]).await;
        let mut client = next.client().await;
        verify(&server, &mut client, &mut known).await;
        is_right(home.path(), &server).await;
        assert_eq!(go_on(&mut client, &mut known, at).await, None);
        verify(&server, &mut client, &mut known).await;
        drop(next);
        is_right(home.path(), &server).await;
    });
}

/// A file expires, and the proxy dies while it deletes the file.
pub(crate) fn an_expiry(point: &str) {
    on_a_runtime(async {
        let (server, home) = (Server::start().await, tempfile::tempdir().unwrap());
        let first = Serving::start(home.path(), &server, &[]).await;
        let mut client = first.client().await;
        let due = [("Content-MD5", "new"), ("X-Memsync-Expires", "2020-01-01T00:00:00Z")];
        // The next expiry run is half a minute away. A new proxy runs one at its start.
        assert_eq!(client.put("/blob/stays.md", "new", b"stays").await.status, 201);
        assert_eq!(client.send("PUT", "/blob/due.md", &due, b"due").await.status, 201);
        drop(first);
        let dying = Serving::start(home.path(), &server, &[("MEMSYNC_KILL_AT", point)]).await;
        crate::kill_points::died(dying.ended().await, point);
        let last = Serving::start(home.path(), &server, &[]).await;
        let mut client = last.client().await;
        let deadline = Instant::now() + Duration::from_secs(60);
        while client.get("/blob/due.md").await.status != 404 || !difference(&server, "memory").is_empty() {
            assert!(
                Instant::now() < deadline,
                "it expires, and the index says so: {:?}",
                difference(&server, "memory")
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let versions = client.get("/versions/due.md").await.json();
        assert_eq!(versions["versions"][0]["is_deleted"], true);
        let earlier = format!("/blob/due.md?version={}", versions["versions"][1]["version"]);
        assert_eq!(client.get(&earlier).await.body, b"due");
        assert_eq!(client.get("/blob/stays.md").await.body, b"stays");
        drop(last);
        is_right(home.path(), &server).await;
    });
}

/// A key that was shown still opens the proxy after a later key was lost in a kill.
pub(crate) fn a_key(point: &str) {
    on_a_runtime(async {
        let (server, home) = (Server::start().await, tempfile::tempdir().unwrap());
        let run = async |args: &[&str], kill_at: Option<&str>| {
            let mut command = memsync(home.path(), &server);
            command.args(args).envs(kill_at.map(|point| ("MEMSYNC_KILL_AT", point)));
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
        };
        let made = run(&["key", "create", "--name", "first"], None).await;
        let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        crate::kill_points::died(run(&["key", "create", "--name", "second"], Some(point)).await.status, point);
        let serving = Serving::start(home.path(), &server, &[]).await;
        let mut client = serving.client().await;
        client.token = key;
        let reply = client.get("/sync").await;
        assert_eq!(reply.status, 200, "{reply:?}");
        // The key that was never shown is listed, so that a person can revoke it.
        let listed = run(&["key", "list"], None).await;
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.contains("first") && listed.contains("second"), "{listed}");
        assert!(run(&["key", "create", "--name", "third"], None).await.status.success());
        is_right(home.path(), &server).await;
    });
}
