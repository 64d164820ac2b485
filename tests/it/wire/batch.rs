//! `POST /batch`: each request behaves as it would alone, and a malformed batch is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use memsync::store::{SqliteStore, Store};
use memsync::testing::MemoryStore;
use serde_json::{Value, json};

use crate::common::frames::{Frame, TYPE, frames, parse};
use crate::common::proxy::{Client, Reply, Running, head, md5, options};
use crate::wire::HOSTILE;

pub(crate) fn get(path: &str) -> Frame {
    (json!({"op": "get", "path": path}), Vec::new())
}

pub(crate) fn put(path: &str, precondition: &str, content: &[u8]) -> Frame {
    (json!({"op": "put", "path": path, "precondition": precondition, "size": content.len()}), content.to_vec())
}

fn delete(path: &str, md5: &str) -> Frame {
    (json!({"op": "delete", "path": path, "md5": md5}), Vec::new())
}

async fn post(c: &mut Client, body: &[u8]) -> Reply {
    c.send("POST", "/batch", &[("Content-Type", TYPE)], body).await
}

async fn batch(c: &mut Client, of: &[Frame]) -> Vec<Frame> {
    let r = post(c, &frames(of)).await;
    assert_eq!((r.status, r.header("content-type")), (200, Some(TYPE)), "{:?}", String::from_utf8_lossy(&r.body));
    let answers = parse(&r.body);
    assert_eq!(answers.len(), of.len());
    for ((answer, _), (asked, _)) in answers.iter().zip(of) {
        assert_eq!(answer["path"], asked["path"], "in their order");
    }
    answers
}

fn statuses(answers: &[Frame]) -> Vec<u64> {
    answers.iter().map(|(head, _)| head["status"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn batched_request_has_its_status_alone() {
    let dir = tempfile::tempdir().unwrap();
    each_status(Arc::new(MemoryStore::new())).await;
    each_status(Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap())).await;
}

async fn each_status<S: Store>(store: Arc<S>) {
    let running = Running::start(store).await;
    let mut c = running.client().await;
    let (one, two, other) = (md5(b"one"), md5(b"two"), md5(b"other"));
    let large = vec![7; 300_000];
    let answers = batch(
        &mut c,
        &[
            put("a", "new", b"one"),
            put("ü/b \"x\".md", "new", b""),
            put("c", &other, b"x"),
            put("large", "new", &large),
        ],
    )
    .await;
    assert_eq!(statuses(&answers), [201, 201, 412, 201]);
    assert_eq!(answers[0].0["md5"], json!(one));
    assert!(answers[0].0["version"].as_u64().unwrap() > 0);
    let lost = &answers[2].0;
    assert_eq!((&lost["current_md5"], &lost["is_deleted"]), (&json!("none"), &json!(false)));
    assert_eq!(lost["error_code"], "PRECONDITION_FAILED");

    let answers = batch(
        &mut c,
        &[get("a"), put("ü/b \"x\".md", &md5(b""), b"two"), get("absent"), get("large"), delete("nothing", &one)],
    )
    .await;
    assert_eq!(statuses(&answers), [200, 200, 404, 413, 404]);
    assert_eq!((&answers[0].0["md5"], answers[0].1.as_slice()), (&json!(one), &b"one"[..]));
    assert_eq!(answers[1].0["md5"], json!(two));
    assert_eq!((answers[2].0.get("md5"), &answers[2].0["error_code"]), (None, &json!("NOT_FOUND")));
    assert_eq!(answers[3].0["error_code"], "ASK_ALONE");
    assert_eq!(c.get("/blob/large").await.body, large);

    let answers = batch(&mut c, &[delete("a", &one), delete("ü/b \"x\".md", &one), put("large", "new", b"x")]).await;
    assert_eq!(statuses(&answers), [204, 412, 412]);
    assert_eq!(answers[1].0["current_md5"], json!(two));
    assert_eq!((&answers[2].0["current_md5"], &answers[2].0["is_deleted"]), (&json!(md5(&large)), &json!(false)));

    // Tombstones, and a deletion without a precondition.
    let answers = batch(&mut c, &[get("a"), (json!({"op": "delete", "path": "large"}), vec![])]).await;
    assert_eq!((statuses(&answers), &answers[0].0["md5"]), (vec![404, 204], &json!(one)));
    let answers = batch(&mut c, &[put("a", &two, b"x"), delete("large", &one)]).await;
    assert_eq!(statuses(&answers), [412, 404]);
    assert_eq!((&answers[0].0["current_md5"], &answers[0].0["is_deleted"]), (&json!(one), &json!(true)));
    assert_eq!(statuses(&batch(&mut c, &[put("a", &one, b"again"), put("large", "new", b"y")]).await), [201, 201]);

    assert_eq!(batch(&mut c, &[]).await, []);
    let index = c.get("/sync").await.json();
    assert_eq!(index["index_cursor"], 8, "every write and no refusal is a change");
    let live = |name: &str| index["files"][name]["md5"].clone();
    assert_eq!((live("a"), live("large"), live("c")), (json!(md5(b"again")), json!(md5(b"y")), Value::Null));
}

#[tokio::test]
async fn invalid_request_in_a_batch_leaves_others_alone() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let mut c = running.client().await;
    let mut all = vec![put("first", "new", b"1")];
    let long = "x".repeat(256);
    for path in HOSTILE.into_iter().chain([long.as_str()]) {
        all.push(put(path, "new", b"x"));
    }
    let paths = all.len();
    all.push(put("%2e%2e/x", "new", b"names are not decoded"));
    all.push((json!({"op": "put", "path": "p", "size": 1}), b"x".to_vec()));
    all.push(put("q", "NEW", b"x"));
    all.push(delete("r", "*"));
    all.push((json!({"op": "frobnicate", "path": "s"}), vec![]));
    all.push((json!({"op": "get", "path": "t", "size": 3}), b"abc".to_vec()));
    all.push(put("last", "new", b"2"));
    let answers = batch(&mut c, &all).await;
    let codes: Vec<_> = answers.iter().map(|(head, _)| head["error_code"].as_str().unwrap_or("-")).collect();
    assert!(codes[1..paths].iter().all(|code| *code == "INVALID_PATH"), "{codes:?}");
    assert_eq!(statuses(&answers)[paths..], [201, 428, 400, 400, 400, 400, 201]);
    assert_eq!(statuses(&answers)[..1], [201]);
    let index = c.get("/sync").await.json();
    let names: Vec<_> = index["files"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["%2e%2e/x", "first", "last"]);
}

#[tokio::test]
async fn malformed_batch_changes_nothing() {
    let running = Running::start(Arc::new(MemoryStore::new())).await;
    let good = put("a", "new", b"hello");
    let whole = frames(std::slice::from_ref(&good));
    let two = frames(&[good.clone(), get("b")]);
    let mut bad = vec![
        [&u32::MAX.to_be_bytes()[..], b"{}"].concat(),
        [&whole[..], &8193u32.to_be_bytes(), &[b' '; 8193]].concat(),
        [&whole[..], b"junk"].concat(),
        [&whole[..], &3u32.to_be_bytes(), b"[1]"].concat(),
        frames(&[good.clone(), (json!({"op": "get"}), vec![])]),
        frames(&[good.clone(), (json!({"op": "put", "path": "b", "precondition": "new", "size": u64::MAX}), vec![])]),
        frames(&[good.clone(), get("b"), get("b")]),
        frames(&[good.clone(), put("a", &md5(b"hello"), b"x")]),
        frames(&[good.clone(), get(&"x".repeat(1025))]),
        frames(&(0..1025).map(|n| put(&n.to_string(), "new", b"")).collect::<Vec<_>>()),
    ];
    bad.extend((1..whole.len()).map(|cut| whole[..cut].to_vec()));
    bad.extend((whole.len() + 1..two.len()).map(|cut| two[..cut].to_vec()));
    let mut c = running.client().await;
    for body in bad {
        let r = post(&mut c, &body).await;
        assert_eq!((r.status, r.code().as_str()), (400, "INVALID_BATCH"), "{}", String::from_utf8_lossy(&body));
    }
    for wrong in ["application/json", "application/octet-stream", ""] {
        let r = c.send("POST", "/batch", &[("Content-Type", wrong)], &whole).await;
        assert_eq!((r.status, r.code().as_str()), (415, "NOT_A_BATCH"));
        c = running.client().await;
    }
    let r = c.send("POST", "/batch", &[("Content-Type", TYPE), ("Content-Encoding", "br")], &whole).await;
    assert_eq!((r.status, r.code().as_str()), (415, "UNSUPPORTED_ENCODING"));
    let mut c = running.client().await;
    let r = c.send("GET", "/batch", &[], b"").await;
    assert_eq!((r.status, r.header("allow")), (405, Some("POST")));
    c.write(&head("POST", "/batch", &[("Content-Type", TYPE.to_owned()), ("Content-Length", "0".to_owned())])).await;
    assert_eq!(c.reply("POST").await.status, 401);

    // A batch that is too large is refused before or while it is read.
    let large = frames(&[put("a", "new", &vec![0; 16 << 20])]);
    let r = post(&mut running.client().await, &large).await;
    assert_eq!((r.status, r.code().as_str()), (413, "TOO_LARGE"));
    let index = running.client().await.get("/sync").await.json();
    assert_eq!(index["files"], json!({}));
}

#[tokio::test]
async fn batch_response_keeps_to_its_size_limit() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap())).await;
    let mut c = running.client().await;
    let content = |n: usize| vec![u8::try_from(n).unwrap(); 256 * 1024];
    for n in (0..80).step_by(40) {
        let puts: Vec<_> = (n..n + 40).map(|n| put(&format!("f{n}"), "new", &content(n))).collect();
        assert_eq!(statuses(&batch(&mut c, &puts).await), [201; 40]);
    }
    let gets: Vec<_> = (0..80).map(|n| get(&format!("f{n}"))).collect();
    let r = post(&mut c, &frames(&gets)).await;
    assert!(r.body.len() <= 16 << 20, "{}", r.body.len());
    let answers = parse(&r.body);
    let whole = answers.iter().take_while(|(head, _)| head["status"] == 200).count();
    assert!(whole >= 56, "as many as fit: {whole}");
    for (n, (head, got)) in answers.iter().enumerate() {
        match n < whole {
            true => assert!(*got == content(n)),
            false => assert_eq!((&head["status"], &head["error_code"]), (&json!(413), &json!("ASK_ALONE"))),
        }
    }
    // Small blobs fit beside it. The proxy's own body limit applies too.
    assert_eq!(statuses(&batch(&mut c, &[get("f79"), get("f78")]).await), [200, 200]);
    let mut narrow = options();
    narrow.max_body = 1000;
    let narrow = Running::start_with(Arc::new(MemoryStore::new()), narrow).await;
    let r = post(&mut narrow.client().await, &frames(&[put("a", "new", &[0; 1000])])).await;
    assert_eq!((r.status, r.code().as_str()), (413, "TOO_LARGE"));
}

#[tokio::test]
async fn one_of_the_racing_batches_wins_each_path() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap())).await;
    let mut tasks = Vec::new();
    for who in 0..6u8 {
        let mut c = running.client().await;
        tasks.push(tokio::spawn(async move {
            let puts: Vec<_> = (0..200).map(|n| put(&format!("f{n}"), "new", &[who; 40])).collect();
            (who, batch(&mut c, &puts).await)
        }));
    }
    let mut winners: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for task in tasks {
        let (who, answers) = task.await.unwrap();
        for (head, _) in answers {
            match head["status"].as_u64() {
                Some(201) => winners.entry(head["path"].as_str().unwrap().to_owned()).or_default().push(who),
                other => assert_eq!(other, Some(412)),
            }
        }
    }
    assert_eq!(winners.len(), 200);
    let mut c = running.client().await;
    let gets: Vec<_> = winners.keys().map(|name| get(name)).collect();
    for (head, content) in batch(&mut c, &gets).await {
        let won = &winners[head["path"].as_str().unwrap()];
        assert_eq!((won.len(), content), (1, vec![won[0]; 40]));
    }
    assert_eq!(c.get("/sync").await.json()["index_cursor"], 200);
}

/// Like [`batch`], in a namespace.
async fn batch_in(c: &mut Client, ns: &str, of: &[Frame]) -> Vec<Frame> {
    let r = c.send("POST", &format!("/batch/{ns}"), &[("Content-Type", TYPE)], &frames(of)).await;
    assert_eq!((r.status, r.header("content-type")), (200, Some(TYPE)), "{:?}", String::from_utf8_lossy(&r.body));
    parse(&r.body)
}

#[tokio::test]
async fn batch_in_a_namespace_has_versions_as_preconditions() {
    let dir = tempfile::tempdir().unwrap();
    each_version(Arc::new(MemoryStore::new())).await;
    each_version(Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap())).await;
}

async fn each_version<S: Store>(store: Arc<S>) {
    let running = Running::start(store).await;
    let mut c = running.client().await;
    let put = |path: &str, version: u64, content: &[u8]| -> Frame {
        (json!({"op": "put", "path": path, "version": version, "size": content.len()}), content.to_vec())
    };
    let delete =
        |path: &str, version: u64| -> Frame { (json!({"op": "delete", "path": path, "version": version}), vec![]) };
    c.put("/blob/a", "new", b"flat").await;
    let ns = "team/notes";
    let answers = batch_in(&mut c, ns, &[put("a", 0, b"one"), put("blob/b", 0, b"two"), put("c", 5, b"x")]).await;
    assert_eq!(statuses(&answers), [201, 201, 412]);
    let lost = &answers[2].0;
    assert_eq!((&lost["current_version"], &lost["current_md5"]), (&json!(0), &json!("none")));
    let version = |frame: &Frame| frame.0["version"].as_u64().unwrap();
    let (a, b) = (version(&answers[0]), version(&answers[1]));
    let r = c.get("/team/notes/blob/blob%2Fb").await;
    assert_eq!((r.header("x-version"), r.body.as_slice()), (Some(b.to_string().as_str()), &b"two"[..]));

    let unconditional = (json!({"op": "put", "path": "d", "precondition": "new", "size": 0}), vec![]);
    let answers =
        batch_in(&mut c, ns, &[get("a"), put("blob/b", b, b"three"), delete("none", 7), unconditional.clone()]).await;
    assert_eq!(statuses(&answers), [200, 200, 404, 422]);
    assert_eq!((version(&answers[0]), answers[0].1.as_slice()), (a, &b"one"[..]));
    assert_eq!(answers[3].0["error_code"], "VERSION_REQUIRED");
    let newer = version(&answers[1]);
    assert!(newer > b);

    let answers = batch_in(&mut c, ns, &[delete("blob/b", b), delete("a", a)]).await;
    assert_eq!(statuses(&answers), [412, 204]);
    assert_eq!((&answers[0].0["current_version"], &answers[0].0["is_deleted"]), (&json!(newer), &json!(false)));
    let dead = version(&answers[1]);
    let answers = batch_in(&mut c, ns, &[get("a"), (json!({"op": "delete", "path": "blob/b"}), vec![])]).await;
    assert_eq!(statuses(&answers), [404, 204]);
    assert_eq!((version(&answers[0]), &answers[0].0["md5"]), (dead, &json!(md5(b"one"))));
    // A tombstone is overwritten by its version and by 0, as in a request of its own.
    let answers = batch_in(&mut c, ns, &[put("a", dead, b"again"), put("blob/b", 0, b"again")]).await;
    assert_eq!(statuses(&answers), [201, 201]);
    assert_eq!(c.get("/blob/a").await.body, b"flat");
    assert_eq!(c.get("/sync").await.json()["files"].as_object().unwrap().len(), 1);
    let r = c.send("POST", "/batch/..", &[("Content-Type", TYPE)], &frames(&[unconditional])).await;
    assert_eq!((r.status, r.code().as_str()), (400, "INVALID_NAMESPACE"));
}
