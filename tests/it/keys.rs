//! Authentication: keys, their scopes and expiry, quotas, an external verifier, and the commands for keys.

mod commands;
mod verifier;

use crate::common::frames;
use crate::common::proxy;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::common::frames::frames;
use crate::common::log::Log;
use crate::common::proxy::{Client, Running, head, md5};
use futures::future::join_all;
use jiff::Timestamp;
use memsync::path::RelPath;
use memsync::proxy::ProxyOptions;
use memsync::proxy::keys::{self, IssuedKey, KeyScope, KeySpec};
use memsync::store::sqlite::SqliteRecords;
use memsync::store::{RecordStore, SqliteStore, Store};
use memsync::testing::MemoryStore;
use secrecy::ExposeSecret;
use serde_json::json;

/// The last chunk of a stream.
const END: &str = "\r\n0\r\n\r\n";

/// A proxy without a token of its own.
async fn keyed<S: Store>(store: &Arc<S>) -> Running {
    // The limit on invalid tokens is tested elsewhere.
    let options = ProxyOptions { failed_attempts: NonZeroU32::MAX, ..ProxyOptions::default() };
    Running::start_with(store.clone(), options).await
}

async fn make(records: &impl RecordStore, change: impl Fn(&mut KeySpec)) -> IssuedKey {
    let mut new = KeySpec::default();
    change(&mut new);
    keys::edit(records, |keys| keys.create_key(&new, Timestamp::now())).await.unwrap()
}

fn scope(namespaces: &[&str], read_only: bool) -> KeyScope {
    KeyScope { namespaces: namespaces.iter().map(|ns| ns.parse().unwrap()).collect(), read_only }
}

fn token(made: &IssuedKey) -> String {
    made.token.expose_secret().to_owned()
}

async fn client(running: &Running, token: &str) -> Client {
    let mut client = running.client().await;
    client.token = token.to_owned();
    client
}

/// The status and `error_code` of a response.
async fn send(client: &mut Client, method: &str, target: &str) -> (u16, String) {
    let r = client.send(method, target, &[("Content-MD5", "new")], b"").await;
    let code = if r.body.first() == Some(&b'{') && r.status >= 400 { r.code() } else { String::new() };
    (r.status, code)
}

async fn open_stream(running: &Running, token: &str) -> Client {
    let mut events = running.client().await;
    events.write(&head("GET", "/events", &[("Authorization", format!("Bearer {token}"))])).await;
    assert_eq!(events.reply("GET").await.status, 200);
    events.until(": connected\n\n").await;
    events
}

#[tokio::test]
async fn key_scope_limits_requests() {
    let store = Arc::new(MemoryStore::new());
    let running = keyed(&store).await;
    for (namespaces, read_only, reads, writes) in [
        (&["*"][..], false, "", ""),
        (&[""], false, "", ""),
        (&["team", ""], false, "", ""),
        (&["*"], true, "", "READ_ONLY"),
        (&[""], true, "", "READ_ONLY"),
        (&["team"], false, "NAMESPACE_FORBIDDEN", "NAMESPACE_FORBIDDEN"),
        (&["team/*", "b"], true, "NAMESPACE_FORBIDDEN", "NAMESPACE_FORBIDDEN"),
    ] {
        let made = make(store.as_ref(), |new| new.scope = scope(namespaces, read_only)).await;
        let mut c = client(&running, &token(&made)).await;
        let expected = |code: &str, else_: u16| (if code.is_empty() { else_ } else { 403 }, code.to_owned());
        assert_eq!(send(&mut c, "PUT", "/blob/x").await, expected(writes, 201), "{namespaces:?}");
        let found = if writes.is_empty() { 200 } else { 404 };
        let (status, code) = send(&mut c, "GET", "/blob/x").await;
        let code = if code == "NOT_FOUND" { String::new() } else { code };
        assert_eq!((status, code), expected(reads, found), "{namespaces:?}");
        assert_eq!(send(&mut c, "GET", "/sync").await, expected(reads, 200), "{namespaces:?}");
        assert_eq!(send(&mut c, "DELETE", "/blob/x").await, expected(writes, 204), "{namespaces:?}");
        let mut c = client(&running, &token(&made)).await;
        let headers = [("Authorization", format!("Bearer {}", token(&made)))];
        c.write(&head("GET", "/events", &headers)).await;
        assert_eq!(c.reply("GET").await.status, expected(reads, 200).0, "{namespaces:?}");
        // Cleans up for the next pass.
        keys::edit(store.as_ref(), |keys| keys.revoke(&made.key.id)).await.unwrap();
        store.delete("", &RelPath::parse("x").unwrap(), None, Default::default()).await.unwrap();
    }
}

/// For each request of the namespaced dialect the namespace in its address counts.
#[tokio::test]
async fn key_opens_only_the_namespaces_of_its_scope() {
    let store = Arc::new(MemoryStore::new());
    let running = keyed(&store).await;
    let all = make(store.as_ref(), |_| {}).await;
    let mut owner = client(&running, &token(&all)).await;
    let namespaces = ["", "team", "team/a", "team/a/b", "teamster/a", "other"];
    let root = |ns: &str| if ns.is_empty() { String::new() } else { format!("/{ns}") };
    for (scoped, read_only, open) in [
        (&["team/*"][..], false, &["team/a", "team/a/b"][..]),
        (&["team/*"], true, &["team/a", "team/a/b"]),
        (&["team"], false, &["team"]),
        (&["other", ""], false, &["", "other"]),
        (&["*"], true, &namespaces),
    ] {
        let made = make(store.as_ref(), |new| new.scope = scope(scoped, read_only)).await;
        for ns in namespaces {
            let which = format!("{scoped:?}, read only: {read_only}, namespace {ns:?}");
            let (root, new) = (root(ns), [("If-Match-Version", "0"), ("Content-MD5", "new")]);
            let new = if ns.is_empty() { &new[1..] } else { &new[..1] };
            let secret = format!("{root}/blob/secret");
            owner.delete(&secret).await;
            let r = owner.send("PUT", &secret, new, b"secret").await;
            assert_eq!(r.status, 201, "{which}: {r:?}");

            let mut c = client(&running, &token(&made)).await;
            let reads = open.contains(&ns);
            let refused = match (reads, read_only) {
                (false, _) => Some("NAMESPACE_FORBIDDEN"),
                (true, true) => Some("READ_ONLY"),
                (true, false) => None,
            };
            // A refusal does not reveal the content.
            let check = |r: proxy::Reply, refused: Option<&str>, done: u16| match refused {
                Some(code) => {
                    assert_eq!((r.status, r.code().as_str()), (403, code), "{which}");
                    let body = String::from_utf8(r.body).unwrap();
                    assert!(!body.contains("secret") && !body.contains(&md5(b"secret")), "{which}: {body}");
                    assert!(r.headers.iter().all(|(name, _)| name != "etag" && name != "x-version"), "{which}");
                }
                None => assert_eq!(r.status, done, "{which}"),
            };
            let unread = (!reads).then_some("NAMESPACE_FORBIDDEN");
            check(c.get(&secret).await, unread, 200);
            check(c.get(&format!("{root}/versions/secret")).await, unread, 200);
            check(c.get(&format!("/sync{root}")).await, unread, 200);
            // Every spelling of the name counts as the same namespace.
            let hidden: String = ns.bytes().map(|b| format!("%{b:02x}")).collect();
            if !ns.is_empty() {
                check(c.get(&format!("/{hidden}/blob/secret")).await, unread, 200);
            }
            let url = format!("{root}/blob/by-{}", made.key.id);
            check(c.send("PUT", &url, new, b"mine").await, refused, 201);
            check(c.send("PUT", &secret, new, b"mine").await, refused, 412);
            let deleted = if ns.is_empty() { 204 } else { 200 };
            check(c.delete(&url).await, refused, deleted);
            let batch = |op: &str| {
                frames(&[(json!({"op": op, "path": "secret", "precondition": "new", "version": 0}), Vec::new())])
            };
            let (batches, kind) = (format!("/batch{root}"), [("Content-Type", frames::TYPE)]);
            check(c.send("POST", &batches, &kind, &batch("get")).await, unread, 200);
            check(c.send("POST", &batches, &kind, &batch("put")).await, refused, 200);
            let mut c = client(&running, &token(&made)).await;
            let headers = [("Authorization", format!("Bearer {}", token(&made)))];
            c.write(&head("GET", &format!("/events{root}"), &headers)).await;
            check(c.reply("GET").await, unread, 200);
            assert_eq!(owner.get(&secret).await.body, b"secret", "{which}");
        }
    }
}

#[tokio::test]
async fn namespaced_write_is_signed_and_counts_towards_quota() {
    let store = Arc::new(MemoryStore::new());
    let running = keyed(&store).await;
    let made = with_quota(store.as_ref(), "ana", 100, &["team/*"]).await;
    let mut c = client(&running, &token(&made)).await;
    let new = [("If-Match-Version", "0")];
    assert_eq!(c.send("PUT", "/team/a/blob/x", &new, &[b'x'; 60]).await.status, 201);
    let r = c.send("PUT", "/team/b/blob/y", &new, &[b'y'; 60]).await;
    assert_eq!((r.status, r.code().as_str()), (507, "QUOTA_EXCEEDED"));
    assert_eq!(c.send("PUT", "/team/b/blob/y", &new, &[b'y'; 40]).await.status, 201);
    let versions = c.get("/team/a/versions/x").await.json();
    assert_eq!(versions["versions"][0]["key"], made.key.name);
}

#[tokio::test]
async fn any_key_reads_the_metrics() {
    let store = Arc::new(MemoryStore::new());
    let running = keyed(&store).await;
    let made = make(store.as_ref(), |new| new.scope = scope(&["team/*"], true)).await;
    let mut c = client(&running, &token(&made)).await;
    assert_eq!(c.get("/sync").await.status, 403);
    let r = c.get("/metrics").await;
    assert!(r.status == 200 && r.body.ends_with(b"# EOF\n"));
    assert_eq!(c.send("POST", "/metrics", &[], b"").await.status, 405);
}

#[tokio::test]
async fn one_key_cannot_take_all_connections() {
    let store = Arc::new(MemoryStore::new());
    let options = ProxyOptions { max_connections_per_caller: 2, ..ProxyOptions::new("owner".to_owned().into()) };
    let running = Running::start_with(store.clone(), options).await;
    let (made, other) = (make(store.as_ref(), |_| {}).await, make(store.as_ref(), |_| {}).await);
    let one = open_stream(&running, &token(&made)).await;
    let _two = open_stream(&running, &token(&made)).await;
    let r = client(&running, &token(&made)).await.get("/sync").await;
    assert_eq!((r.status, r.code().as_str()), (429, "TOO_MANY_CONNECTIONS"));
    assert!(r.header("retry-after").is_some());
    for free in [token(&other), "owner".to_owned()] {
        let mut clients = Vec::new();
        for _ in 0..2 {
            clients.push(client(&running, &free).await);
            assert_eq!(clients.last_mut().unwrap().get("/sync").await.status, 200);
        }
    }
    drop(one);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while client(&running, &token(&made)).await.get("/sync").await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the place of one that ended is free");
    }
    running.stop().await;
}

#[tokio::test]
async fn request_without_a_valid_key_gets_401() {
    let store = Arc::new(MemoryStore::new());
    let running = keyed(&store).await;
    let good = make(store.as_ref(), |_| {}).await;
    let hour_ago = Timestamp::now() - Duration::from_secs(3600);
    let minute = KeySpec { expires: Some(Duration::from_secs(60)), ..KeySpec::default() };
    let expired = keys::edit(store.as_ref(), |keys| keys.create_key(&minute, hour_ago)).await.unwrap();
    let revoked = make(store.as_ref(), |_| {}).await;
    keys::edit(store.as_ref(), |keys| keys.revoke(&revoked.key.id)).await.unwrap();
    let another_secret = format!("mk_{}_{}", good.key.id, "0".repeat(64));
    let unknown = format!("mk_{}_{}", "0".repeat(10), "0".repeat(64));
    let mut bodies = Vec::new();
    for shown in
        [token(&expired), token(&revoked), another_secret, unknown, "mk_".into(), good.key.id, "x".repeat(9000)]
    {
        for (method, target) in [("GET", "/blob/x"), ("PUT", "/blob/x"), ("GET", "/events"), ("GET", "/nowhere")] {
            let r = client(&running, &shown).await.send(method, target, &[], b"").await;
            assert_eq!((r.status, r.header("www-authenticate")), (401, Some("Bearer")), "{shown:.20}");
            bodies.push(r.body);
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "every refusal reads the same");
    assert_eq!(client(&running, good.token.expose_secret()).await.get("/sync").await.status, 200);
}

#[tokio::test]
async fn new_key_works_at_once_and_revoked_key_stops_soon() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap());
    let running = keyed(&store).await;
    let beside = SqliteRecords::open(&dir.path().join("store")).unwrap().expect("a store");
    let (gone, stays) = (make(&beside, |_| {}).await, make(&beside, |_| {}).await);
    let mut c = client(&running, &token(&gone)).await;
    assert_eq!(c.put("/blob/x", "new", b"x").await.status, 201);
    let mut ends = open_stream(&running, &token(&gone)).await;
    let mut goes_on = open_stream(&running, &token(&stays)).await;

    keys::edit(&beside, |keys| keys.revoke(&gone.key.id)).await.unwrap();
    // No other request arrives, so the proxy must notice the change by itself.
    ends.until(END).await;
    assert_eq!(c.get("/blob/x").await.status, 401, "on a connection that was let in before");
    let mut c = client(&running, &token(&stays)).await;
    assert_eq!(c.put("/blob/y", "new", b"y").await.status, 201);
    assert!(goes_on.until("\n\n").await.contains("\"y\""));
    running.stop().await;
}

#[tokio::test]
async fn stream_ends_with_its_key_or_secret() {
    let store = Arc::new(MemoryStore::new());
    let running = keyed(&store).await;
    let expiring = make(store.as_ref(), |new| new.expires = Some(Duration::from_secs(8))).await;
    let rotated = make(store.as_ref(), |_| {}).await;
    let mut expires = open_stream(&running, &token(&expiring)).await;
    let mut replaced = open_stream(&running, &token(&rotated)).await;
    let now = Timestamp::now();
    keys::edit(store.as_ref(), |keys| keys.rotate(&rotated.key.id, Duration::ZERO, None, now)).await.unwrap();
    replaced.until(END).await;
    expires.until(END).await;
    assert_eq!(client(&running, &token(&expiring)).await.get("/sync").await.status, 401);
}

#[tokio::test]
async fn rotated_key_has_two_secrets_during_the_grace_period() {
    let store = Arc::new(MemoryStore::new());
    let running = keyed(&store).await;
    let old = make(store.as_ref(), |_| {}).await;
    assert_eq!(client(&running, &token(&old)).await.get("/sync").await.status, 200);
    let rotate = |grace| {
        let (store, id) = (store.clone(), old.key.id.clone());
        async move { keys::edit(store.as_ref(), |keys| keys.rotate(&id, grace, None, Timestamp::now())).await.unwrap() }
    };
    let new = rotate(Duration::from_secs(3600)).await;
    for made in [&new, &old] {
        assert_eq!(client(&running, &token(made)).await.get("/sync").await.status, 200);
    }
    let newest = rotate(Duration::ZERO).await;
    assert_eq!(client(&running, &token(&newest)).await.get("/sync").await.status, 200);
    // The request with the newest secret made the proxy read the keys.
    for made in [&new, &old] {
        assert_eq!(client(&running, &token(made)).await.get("/sync").await.status, 401);
    }
}

#[tokio::test]
async fn write_records_the_name_and_device_of_its_key() {
    let store = Arc::new(MemoryStore::new());
    let running = Running::start(store.clone()).await;
    let made = make(store.as_ref(), |new| {
        (new.name, new.device) = (Some("laptop-key".to_owned()), Some("laptop".to_owned()));
    });
    let made = made.await;
    let loose = make(store.as_ref(), |new| new.name = Some("loose".to_owned())).await;
    let path = RelPath::parse("x").unwrap();
    let headers = [("Content-MD5", "new"), ("X-Memsync-Device", "liar")];
    for (token, key, device) in [
        (token(&made), Some("laptop-key"), "laptop"),
        (token(&loose), Some("loose"), "liar"),
        (proxy::TOKEN.to_owned(), None, "liar"),
    ] {
        let mut c = client(&running, &token).await;
        assert_eq!(c.send("PUT", "/blob/x", &headers, b"x").await.status, 201);
        let of_put = store.versions("", &path).await.unwrap().remove(0).meta;
        assert_eq!(c.send("DELETE", "/blob/x", &headers, b"").await.status, 204);
        let of_delete = store.versions("", &path).await.unwrap().remove(0).meta;
        for meta in [of_put, of_delete] {
            assert_eq!((meta.key.as_deref(), meta.device.as_deref()), (key, Some(device)));
        }
    }
    // The last use is recorded in the background.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while keys::last_used(store.as_ref()).await.unwrap().len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "both keys were used");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The key of a user with this quota.
async fn with_quota(records: &impl RecordStore, user: &str, quota: u64, namespaces: &[&str]) -> IssuedKey {
    let now = Timestamp::now();
    keys::edit(records, |keys| keys.create_user(user, Some(quota), now)).await.unwrap();
    make(records, |new| (new.user, new.scope) = (Some(user.to_owned()), scope(namespaces, false))).await
}

#[tokio::test]
async fn quota_limits_the_bytes_of_a_user() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap());
    let store = open();
    let running = Running::start(store.clone()).await;
    let made = with_quota(store.as_ref(), "ana", 100, &[""]).await;
    // A refusal before the body is read ends the connection, so each request has its own.
    let put = async |name: &str, precondition: &str, body: &[u8]| {
        client(&running, &token(&made)).await.put(&format!("/blob/{name}"), precondition, body).await
    };
    assert_eq!(put("a", "new", &[b'a'; 60]).await.status, 201);
    let r = put("b", "new", &[b'b'; 41]).await;
    assert_eq!((r.status, r.code().as_str()), (507, "QUOTA_EXCEEDED"));
    assert!(r.json()["detail"].as_str().unwrap().contains("60 of 100 bytes"), "{}", r.json());
    let mut c = client(&running, &token(&made)).await;
    assert_eq!(c.get("/blob/b").await.status, 404, "nothing was written");
    // Bodies of unknown length.
    let mut chunked = running.client().await;
    let headers = [
        ("Authorization", format!("Bearer {}", token(&made))),
        ("Content-MD5", "new".to_owned()),
        ("Transfer-Encoding", "chunked".to_owned()),
    ];
    chunked.write(&head("PUT", "/blob/b", &headers)).await;
    // Refused as soon as it is too long, not when all of it is on the disk.
    chunked.write(format!("29\r\n{}\r\n", "b".repeat(41)).as_bytes()).await;
    assert_eq!(chunked.reply("PUT").await.status, 507);

    assert_eq!(put("b", "new", &[b'b'; 40]).await.status, 201, "exactly the limit");
    assert_eq!(put("a", &md5(&[b'a'; 60]), &[b'c'; 60]).await.status, 200, "replaced content does not count");
    assert_eq!(put("a", &md5(&[b'c'; 60]), &[b'd'; 61]).await.status, 507);
    assert_eq!(put("a", &md5(&[b'c'; 60]), &[b'd'; 10]).await.status, 200);
    assert_eq!(c.delete("/blob/b").await.status, 204);
    assert_eq!(store.usage("").await.unwrap(), 10);
    assert_eq!(running.client().await.put("/blob/z", "new", &[b'z'; 500]).await.status, 201, "no quota, no limit");
    assert_eq!(put("a", &md5(&[b'd'; 10]), b"less").await.status, 200, "less is taken beyond the limit too");
    assert_eq!(put("b", "new", b"1").await.status, 507, "whoever wrote it");
    running.stop().await;
    drop(store);
    let store = open();
    assert_eq!((store.usage("").await.unwrap(), store.usage("other").await.unwrap()), (504, 0), "after a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writes_cannot_exceed_a_quota() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap());
    let running = Running::start(store.clone()).await;
    let token = token(&with_quota(store.as_ref(), "ana", 1000, &["*"]).await);
    let writes = (0..32).map(|n| {
        let (addr, token) = (running.addr, token.clone());
        tokio::spawn(async move {
            let mut c = Client::connect(addr).await;
            c.token = token;
            c.put(&format!("/blob/{n}"), "new", &[b'x'; 90]).await.status
        })
    });
    let statuses: Vec<u16> = join_all(writes).await.into_iter().map(Result::unwrap).collect();
    let written = statuses.iter().filter(|status| **status == 201).count() as u64;
    assert!(statuses.iter().all(|status| [201, 507].contains(status)), "{statuses:?}");
    assert!(written > 0 && written * 90 <= 1000, "{statuses:?}");
    assert_eq!(store.usage("").await.unwrap(), written * 90);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_and_key_changes_run_concurrently() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap());
    let running = Running::start(store.clone()).await;
    let beside = SqliteRecords::open(&dir.path().join("store")).unwrap().expect("a store");
    let changes = tokio::spawn(async move {
        for _ in 0..40 {
            make(&beside, |_| {}).await;
        }
    });
    let mut c = running.client().await;
    let mut n = 0;
    while n < 100 || !changes.is_finished() {
        assert_eq!(c.put(&format!("/blob/{n}"), "new", b"x").await.status, 201, "write {n}");
        n += 1;
    }
    changes.await.unwrap();
    assert_eq!(keys::load(store.as_ref()).await.unwrap().keys.len(), 40);
}

// One thread, so that its log subscriber sees the tasks of the proxy.
#[tokio::test(flavor = "current_thread")]
async fn key_changes_and_refusals_are_logged_without_secrets() {
    let log = Log::default();
    let _guard = log.listen();
    let store = Arc::new(MemoryStore::new());
    let running = keyed(&store).await;
    let first = make(store.as_ref(), |new| new.name = Some("first".to_owned())).await;
    client(&running, &token(&first)).await.get("/sync").await;
    let reader = make(store.as_ref(), |new| new.scope = scope(&[""], true)).await;
    let mut c = client(&running, &token(&reader)).await;
    assert_eq!(c.put("/blob/x", "new", b"x").await.status, 403);
    let now = Timestamp::now();
    let rotated =
        keys::edit(store.as_ref(), |keys| keys.rotate(&first.key.id, Duration::ZERO, None, now)).await.unwrap();
    client(&running, &token(&rotated)).await.get("/sync").await;
    keys::edit(store.as_ref(), |keys| keys.revoke(&first.key.id)).await.unwrap();
    // An unknown id makes the proxy read the keys again.
    let unknown = format!("mk_{}_{}", "0".repeat(10), "1".repeat(64));
    client(&running, &unknown).await.get("/sync").await;
    running.stop().await;

    let log = log.text();
    let audit: Vec<_> = log.lines().filter(|line| line.contains("memsync::audit")).collect();
    for (line, parts) in audit.iter().zip([
        ["key created", reader.key.id.as_str(), "read-only"],
        ["refused: this key may read and not write", &reader.key.id, "namespace"],
        ["key rotated", &first.key.id, "first"],
        ["key revoked", &first.key.id, "first"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}\n{parts:?}");
    }
    assert_eq!(audit.len(), 4, "{audit:#?}");
    for secret in [&first, &reader, &rotated].map(token).into_iter().chain([unknown]) {
        assert!(!log.contains(secret.rsplit('_').next().unwrap()), "{log}");
    }
}
