//! The namespaced dialect with a deployed proxy, which names no capability, and batches in a namespace.

use memsync::protocol::Precondition;
use memsync::protocol::batch::{self, AnswerHead, BatchWriter, RequestHead};
use memsync::remote::http::{HttpOptions, HttpRemote};
use memsync::remote::{BatchReply, BatchRequest, DeleteReply, PutReply, Remote};

use crate::remote_http::server::{Request, Server, reply};
use crate::remote_http::*;

fn team(server: &Server) -> HttpRemote {
    HttpRemote::new(HttpOptions { namespace: "team/notes".into(), ..options(&server.origin()) }).unwrap()
}

/// The 412 of a deployed proxy, which names versions only.
fn refused(current: &str) -> server::Reply {
    let context = format!(r#"{{"current_version":"{current}","provided_version":"0"}}"#);
    let body = format!(r#"{{"detail":"no","error_code":"PRECONDITION_FAILED","context":{context}}}"#);
    reply(412, &["content-type: application/json"], body.as_bytes())
}

#[tokio::test]
async fn client_ignores_a_declined_manifest() {
    let server = Server::start(&[], |request| {
        let version = if request.method == "PUT" { "x-version: 7" } else { "x-version: 8" };
        let etag = format!("etag: \"{}\"", Md5::of(b"mine"));
        reply(201, &[version, &etag, "content-type: application/json"], br#"{"files":{"other":{"md5":"?"}}}"#)
    })
    .await;
    let remote = team(&server);
    for _ in 0..2 {
        let put = remote.put(&path("a b/c"), Precondition::New, 0, outgoing(b"mine")).await.unwrap();
        assert_eq!(put, PutReply::Stored { version: 7 });
    }
    let request = &server.seen()[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("PUT", "/team/notes/blob/a%20b/c"));
    assert_eq!((request.header("if-match-version"), request.header("prefer")), (Some("0"), Some("return=minimal")));
    assert_eq!(request.header("content-md5"), Some(Md5::of(b"mine").to_string().as_str()), "of the body");
    assert!(remote.batch(vec![(path("x"), BatchRequest::Get)]).await.unwrap().is_none(), "it takes no batches");
}

#[tokio::test]
async fn tombstone_that_counts_as_existing_shows_its_version() {
    let server = Server::start(&[], |request| match request.header("if-match-version") {
        Some("0") => refused("41"),
        Some("41") => reply(200, &["x-version: 42", &format!("etag: \"{}\"", Md5::of(b"mine"))], b"{}"),
        _ => reply(404, &[], b"{}"),
    })
    .await;
    let remote = team(&server);
    let put = remote.put(&path("a"), Precondition::New, 0, outgoing(b"mine")).await.unwrap();
    assert_eq!(put, PutReply::Mismatch { current: None, is_deleted: None, version: 41 });
    let put = remote.put(&path("a"), Precondition::New, 41, outgoing(b"mine")).await.unwrap();
    assert_eq!(put, PutReply::Stored { version: 42 });
}

#[tokio::test]
async fn client_sends_a_version_of_expected_content_only() {
    let server = Server::start(&[], |request| match request.method.as_str() {
        "GET" => reply(200, &["x-version: 5", &format!("etag: \"{}\"", Md5::of(b"old"))], b"old"),
        "PUT" => reply(200, &["x-version: 6", &format!("etag: \"{}\"", Md5::of(b"mine"))], b""),
        _ => reply(200, &["x-version: 7"], b""),
    })
    .await;
    let remote = team(&server);
    let holds = |content: &[u8]| Precondition::Holds(Md5::of(content));
    let put = remote.put(&path("a"), holds(b"older"), 0, outgoing(b"mine")).await.unwrap();
    let theirs = PutReply::Mismatch { current: Some(Md5::of(b"old")), is_deleted: Some(false), version: 5 };
    assert_eq!(put, theirs);
    let deleted = remote.delete(&path("a"), Md5::of(b"older"), 0).await.unwrap();
    assert_eq!(deleted, DeleteReply::Mismatch { current: Some(Md5::of(b"old")) });
    assert!(server.seen().iter().all(|request| request.method == "GET"), "nothing was written");
    let put = remote.put(&path("a"), holds(b"old"), 0, outgoing(b"mine")).await.unwrap();
    assert_eq!(put, PutReply::Stored { version: 6 });
    assert_eq!(remote.delete(&path("a"), Md5::of(b"old"), 0).await.unwrap(), DeleteReply::Done);
    let sent: Vec<_> = server.seen().iter().filter_map(|r| Some(r.header("if-match-version")?.to_owned())).collect();
    assert_eq!(sent, ["5", "5"]);
}

#[tokio::test]
async fn batch_in_a_namespace_carries_versions() {
    let head = |path: &str, status: u16, content: &[u8], version: u64| AnswerHead {
        path: path.into(),
        status,
        md5: Some(Md5::of(content)),
        version: Some(version),
        ..AnswerHead::default()
    };
    let server = Server::start(&["honest-412", "batch"], move |_| {
        let mut lost = head("lost", 412, b"mine", 0);
        lost.current_version = Some(9);
        let mut writer = BatchWriter::default();
        writer.push(&AnswerHead { size: 5, ..head("read", 200, b"hello", 3) }, b"hello").unwrap();
        for head in [head("new", 201, b"mine", 4), lost, head("moved", 412, b"old", 0)] {
            writer.push(&head, b"").unwrap();
        }
        reply(200, &[&format!("content-type: {}", batch::CONTENT_TYPE)], &writer.finish())
    })
    .await;
    let put = |precondition, version| BatchRequest::Put { precondition, version, body: outgoing(b"mine") };
    let holds = Precondition::Holds(Md5::of(b"old"));
    let requests = [
        ("read", BatchRequest::Get),
        ("unknown", put(holds, 0)),
        ("new", put(Precondition::New, 0)),
        ("lost", put(holds, 8)),
        ("unknown too", BatchRequest::Delete { md5: Md5::of(b"old"), version: 0 }),
        ("moved", BatchRequest::Delete { md5: Md5::of(b"old"), version: 6 }),
    ];
    let requests = requests.into_iter().map(|(name, ask)| (path(name), ask)).collect();
    let mut got = team(&server).batch(requests).await.unwrap().unwrap().into_iter();
    let mut next = || got.next().unwrap();
    assert!(matches!(next(), Some(BatchReply::Got(GetReply::Found(RemoteBlob { version: 3, .. })))));
    assert!(next().is_none(), "who knows no version has to look first");
    assert!(matches!(next(), Some(BatchReply::Put(PutReply::Stored { version: 4 }))));
    assert!(matches!(next(), Some(BatchReply::Put(PutReply::Mismatch { version: 9, .. }))));
    assert!(next().is_none());
    assert!(next().is_none(), "the same content may be there under another version");

    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].target.as_str()), (1, "/batch/team/notes"));
    let asked = |request: &Request| batch::read::<RequestHead>(request.body.clone().into()).unwrap();
    let sent: Vec<_> = asked(&seen[0]).into_iter().map(|(head, _)| (head.path, head.version)).collect();
    let expected = [("read", None), ("new", Some(0)), ("lost", Some(8)), ("moved", Some(6))];
    assert_eq!(sent, expected.map(|(path, version)| (path.to_owned(), version)));
    assert!(asked(&seen[0]).iter().all(|(head, _)| head.precondition.is_none() && head.md5.is_none()));
}
