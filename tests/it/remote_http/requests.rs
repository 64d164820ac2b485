//! The flat dialect with successful requests and lost races.

use memsync::digest::Md5;
use memsync::protocol::{IndexCursor, Precondition};
use memsync::remote::http::{HttpOptions, HttpRemote};
use memsync::remote::{DeleteReply, FetchedIndex, GetReply, IndexUpdate, PutReply, Remote};

use crate::remote_http::server::{DEADLINE, Reply, Server, Then, reply};
use crate::remote_http::*;

const HELLO: &str = "5d41402abc4b2a76b9719d911017c592";
const ALL: &[&str] = &["honest-412", "strong-index", "index-etag", "delta"];

#[tokio::test]
async fn names_are_encoded_once() {
    let server = Server::start(&[], |_| reply(404, &[], b"")).await;
    let remote = HttpRemote::new(options(&format!("{}/base/", server.origin()))).unwrap();
    let names = [
        ("a%2e%2e/b", "a%252e%252e/b"),
        ("%2e%2e/%2F", "%252e%252e/%252F"),
        ("ü/日本.md", "%C3%BC/%E6%97%A5%E6%9C%AC.md"),
        ("a#b?c&d=e+f g", "a%23b%3Fc%26d%3De%2Bf%20g"),
        ("100%;'()*!@$,:[]{}|^`\"<>", "100%25%3B%27%28%29%2A%21%40%24%2C%3A%5B%5D%7B%7D%7C%5E%60%22%3C%3E"),
        (".../..a/~b_-", ".../..a/~b_-"),
        ("C:/x", "C%3A/x"),
    ];
    for (name, wire) in names {
        assert!(matches!(remote.get(&path(name)).await.unwrap(), GetReply::Absent { tombstone: None }));
        let put = remote.put(&path(name), Precondition::New, 0, outgoing(b"")).await;
        assert!(put.unwrap_err().to_string().contains("404"));
        assert_eq!(remote.delete(&path(name), Md5::of(b""), 0).await.unwrap(), DeleteReply::Absent);
        let seen = server.seen();
        for request in &seen[seen.len() - 3..] {
            assert_eq!(request.target, format!("/base/blob/{wire}"));
        }
    }
    // With a base path, `/health` is below it too.
    assert_eq!(server.seen()[0].target, "/base/health");
}

#[tokio::test]
async fn every_request_but_health_carries_the_token() {
    let server = Server::start_raw(std::sync::Arc::new(|_| reply(404, &[], b""))).await;
    let remote = HttpRemote::new(HttpOptions { device: "Zoë 1".into(), ..options(&server.origin()) }).unwrap();
    remote.get(&path("a")).await.unwrap();
    let request = &server.seen()[0];
    assert_eq!(request.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(request.header("x-memsync-device"), Some("Zo%C3%AB%201"));
    assert!(request.header("user-agent").unwrap().starts_with("memsync/"));
    assert_eq!(server.health_count(), 1);
    assert_eq!(remote.capabilities().await.unwrap().len(), 0, "a proxy that shows no health has no capabilities");
    assert_eq!(server.health_count(), 1);
    let server = Server::start_raw(std::sync::Arc::new(|r| {
        assert_eq!(r.header("authorization"), None);
        reply(503, &[], br#"{"status":"error","storage":"disconnected"}"#)
    }))
    .await;
    let e = self::remote(&server).health().await.unwrap_err();
    assert!(matches!(e, RemoteError::Server { status: 503, .. }), "{e}");
}

#[tokio::test]
async fn blobs_are_downloaded_whole() {
    let big = noise(3_000_000);
    let body = big.clone();
    let server = Server::start(&[], move |request| match request.target.as_str() {
        "/blob/big" => reply(200, &[&etag(&body)], &body),
        "/blob/empty" => reply(200, &[&etag(b"")], b""),
        "/blob/chunked" => Reply {
            bytes: format!("HTTP/1.1 200 OK\r\netag: \"{HELLO}\"\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n").into(),
            then: Then::Keep,
        },
        _ => reply(200, &[&etag(b"hello")], b"hello"),
    })
    .await;
    // With one request at a time, a blob in reading must not block the next request.
    let remote = HttpRemote::new(HttpOptions { concurrency: 1, ..options(&server.origin()) }).unwrap();
    let blob = found(remote.get(&path("big")).await.unwrap());
    assert_eq!((blob.md5, blob.size), (Md5::of(&big), Some(big.len() as u64)));
    let small = tokio::time::timeout(DEADLINE, remote.get(&path("small"))).await.expect("held up");
    let small = found(small.unwrap());
    assert_eq!((small.md5.to_string(), small.size), (HELLO.to_owned(), Some(5)));
    assert_eq!(read(small).await.unwrap(), b"hello");
    assert!(read(blob).await.unwrap() == big);
    assert_eq!(read(found(remote.get(&path("empty")).await.unwrap())).await.unwrap(), b"");
    let chunked = found(remote.get(&path("chunked")).await.unwrap());
    assert_eq!(chunked.size, None);
    assert_eq!(read(chunked).await.unwrap(), b"hello");
}

#[tokio::test]
async fn only_an_honest_proxy_proves_a_tombstone() {
    let answer = |_: &server::Request| reply(404, &[&format!("x-tombstone: {HELLO}")], b"{}");
    let honest = Server::start(&["honest-412"], answer).await;
    let plain = Server::start(&[], answer).await;
    let bad = Server::start(&["honest-412"], |_| reply(404, &["x-tombstone: yes"], b"{}")).await;
    let tombstone = |got| match got {
        GetReply::Absent { tombstone } => tombstone,
        GetReply::Found(_) => panic!("found"),
    };
    assert_eq!(tombstone(remote(&honest).get(&path("a")).await.unwrap()), Some(Md5::of(b"hello")));
    assert_eq!(tombstone(remote(&plain).get(&path("a")).await.unwrap()), None);
    assert!(matches!(remote(&bad).get(&path("a")).await, Err(RemoteError::Protocol { .. })));
}

#[tokio::test]
async fn writes_carry_their_precondition() {
    let server = Server::start(&[], |request| {
        reply(if request.header("content-md5") == Some("new") { 201 } else { 200 }, &[&etag(&request.body)], b"")
    })
    .await;
    let remote = remote(&server);
    for (size, precondition) in [
        (0, Precondition::New),
        (5, Precondition::Holds(Md5::of(b"hello"))),
        (256 * 1024, Precondition::New),
        (256 * 1024 + 1, Precondition::New),
        (3_000_000, Precondition::Holds(Md5::of(b"old"))),
    ] {
        let content = noise(size);
        let put = remote.put(&path("a"), precondition, 0, outgoing(&content)).await;
        assert_eq!(put, Ok(PutReply::Stored { version: 0 }), "{size}");
        let request = server.seen().pop().unwrap();
        assert!(request.body == content && request.method == "PUT");
        assert_eq!(request.header("content-length"), Some(size.to_string().as_str()));
        assert_eq!(request.header("content-md5"), Some(precondition.to_string().as_str()));
        assert_eq!(request.header("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn lost_race_is_a_value() {
    let server = Server::start(&[], |request| match request.target.as_str() {
        "/blob/held" => {
            reply(412, &[], format!(r#"{{"detail":"x","error_code":"PRECONDITION_FAILED","context":{{"current_md5":"{HELLO}","provided_md5":"new","is_deleted":true}}}}"#).as_bytes())
        }
        "/blob/none" => reply(412, &[], br#"{"detail":"x","error_code":null,"context":{"current_md5":"none"}}"#),
        _ => reply(412, &[], b"<html>no"),
    })
    .await;
    let remote = remote(&server);
    let held = Some(Md5::of(b"hello"));
    for (name, current, is_deleted) in [("held", held, Some(true)), ("none", None, None), ("html", None, None)] {
        let put = remote.put(&path(name), Precondition::New, 0, outgoing(b"x")).await;
        assert_eq!(put, Ok(PutReply::Mismatch { current, is_deleted, version: 0 }), "{name}");
        let deleted = remote.delete(&path(name), Md5::of(b"x"), 0).await;
        assert_eq!(deleted, Ok(DeleteReply::Mismatch { current }), "{name}");
    }
}

#[tokio::test]
async fn deletes_carry_their_precondition() {
    let server = Server::start(&[], |request| match request.target.as_str() {
        "/blob/a" => reply(204, &[], b""),
        "/blob/b" => reply(200, &[], b"{}"),
        _ => reply(404, &[], br#"{"detail":"absent"}"#),
    })
    .await;
    let remote = remote(&server);
    for (name, want) in [("a", DeleteReply::Done), ("b", DeleteReply::Done), ("c", DeleteReply::Absent)] {
        assert_eq!(remote.delete(&path(name), Md5::of(b"hello"), 0).await, Ok(want));
        let request = server.seen().pop().unwrap();
        assert_eq!((request.method.as_str(), request.header("if-match")), ("DELETE", Some(&*format!("\"{HELLO}\""))));
    }
}

fn whole(cursor: u64, delta: bool) -> Vec<u8> {
    format!(
        r#"{{"files":{{"a.md":{{"md5":"{HELLO}","size":5,"last_modified":"2024-01-15T10:30:00.123Z","is_deleted":false}}}},
            "index_last_modified":"x","index_epoch":"e/1 &","index_cursor":{cursor},"tombstone_floor":2,"delta":{delta}}}"#
    )
    .into_bytes()
}

fn cursor(cursor: u64) -> IndexCursor {
    IndexCursor { epoch: "e/1 &".into(), cursor, floor: 2 }
}

fn index_of(answer: IndexUpdate) -> (&'static str, FetchedIndex) {
    match answer {
        IndexUpdate::Whole(index) => ("whole", index),
        IndexUpdate::Delta(index) => ("delta", index),
        IndexUpdate::Unchanged => ("unchanged", FetchedIndex::default()),
    }
}

#[tokio::test]
async fn index_is_whole_or_delta_or_unchanged() {
    let server = Server::start(ALL, |request| {
        let tag = format!("etag: \"of {}\"", request.target);
        if let Some(sent) = request.header("if-none-match") {
            assert!(tag.ends_with(sent), "{sent} sent to {}", request.target);
            return reply(304, &[&tag], b"");
        }
        match request.target.as_str() {
            "/sync" => reply(200, &[&tag], &whole(7, false)),
            "/sync?since=7&epoch=e%2F1%20%26" => reply(200, &[&tag], &whole(9, true)),
            "/sync?since=9&epoch=e%2F1%20%26" => reply(200, &[&tag], &whole(9, true)),
            "/sync?since=1&epoch=e%2F1%20%26" => reply(200, &[&tag], &whole(9, false)),
            "/sync?since=20&epoch=e%2F1%20%26" => reply(200, &[&tag], &whole(9, true)),
            other => panic!("{other}"),
        }
    })
    .await;
    let remote = remote(&server);
    let (kind, index) = index_of(remote.index(None, None).await.unwrap());
    assert_eq!((kind, index.cursor), ("whole", Some(cursor(7))));
    assert_eq!(index.files["a.md"].md5.to_string(), HELLO);
    assert_eq!(remote.index(None, None).await, Ok(IndexUpdate::Unchanged));
    let (kind, index) = index_of(remote.index(Some(&cursor(7)), None).await.unwrap());
    assert_eq!((kind, index.cursor), ("delta", Some(cursor(9))));
    // A caller that still holds 7 gets the delta again. A caller that holds 9 learns when nothing is new.
    assert_eq!(index_of(remote.index(Some(&cursor(7)), None).await.unwrap()).0, "delta");
    assert_eq!(index_of(remote.index(Some(&cursor(9)), None).await.unwrap()).0, "delta");
    // The floor may be unknown. The cursor counts.
    assert_eq!(remote.index(Some(&IndexCursor { floor: 0, ..cursor(9) }), None).await, Ok(IndexUpdate::Unchanged));
    let (kind, _) = index_of(remote.index(Some(&cursor(1)), None).await.unwrap());
    assert_eq!(kind, "whole", "a cursor before the floor gives all");
    // The ETag of another address, or of an older answer, is not sent.
    assert_eq!(index_of(remote.index(None, None).await.unwrap()).0, "whole");
    assert!(matches!(remote.index(Some(&cursor(20)), None).await, Err(RemoteError::Protocol { .. })));
    let other = IndexCursor { epoch: "other".into(), ..cursor(7) };
    let server = Server::start(ALL, |_| reply(200, &[], &whole(9, true))).await;
    let remote = self::remote(&server);
    assert!(matches!(remote.index(Some(&other), None).await, Err(RemoteError::Protocol { .. })));
    assert!(matches!(remote.index(None, None).await, Err(RemoteError::Protocol { .. })));
}

#[tokio::test]
async fn plain_proxy_needs_no_extension() {
    let server = Server::start(&[], |_| reply(200, &["etag: \"x\""], &whole(7, false))).await;
    let remote = remote(&server);
    for _ in 0..2 {
        let (kind, index) = index_of(remote.index(Some(&cursor(5)), None).await.unwrap());
        assert_eq!((kind, index.cursor, index.files.len()), ("whole", None, 1));
    }
    for request in server.seen() {
        assert_eq!((request.target.as_str(), request.header("if-none-match")), ("/sync", None));
    }
    let server = Server::start(&[], |_| reply(304, &[], b"")).await;
    assert!(matches!(self::remote(&server).index(None, None).await, Err(RemoteError::Protocol { .. })));
}

#[tokio::test]
async fn connections_are_reused_and_requests_bounded() {
    let server = Server::start(&[], |_| reply(404, &[], b"{}")).await;
    let remote = remote(&server);
    remote.capabilities().await.unwrap();
    let all = (0..40).map(|i| {
        let remote = remote.clone();
        async move { remote.get(&path(&format!("f{i}"))).await.map(|_| ()) }
    });
    futures::future::try_join_all(all).await.unwrap();
    assert_eq!(server.seen().len(), 40);
    assert!(server.connections() <= 5, "{} connections for 40 requests, 4 at a time", server.connections());
}

#[tokio::test]
async fn forgotten_index_is_fetched_whole_again() {
    let server = Server::start(&["index-etag"], |request| match request.header("if-none-match") {
        Some("\"x\"") => reply(304, &["etag: \"x\""], b""),
        _ => reply(200, &["etag: \"x\""], &whole(7, false)),
    })
    .await;
    let remote = remote(&server);
    assert!(matches!(remote.index(None, None).await, Ok(IndexUpdate::Whole(_))));
    assert_eq!(remote.index(None, None).await, Ok(IndexUpdate::Unchanged));
    remote.forget_index();
    assert!(matches!(remote.index(None, None).await, Ok(IndexUpdate::Whole(_))));
}
