//! The versions that a proxy keeps of a path.

use memsync::digest::Md5;
use memsync::remote::http::{HttpOptions, HttpRemote};
use memsync::remote::{GetReply, Remote, RemoteError};

use crate::remote_http::server::{Request, Server, reply};
use crate::remote_http::*;

const LIST: &[u8] = br#"{"path": "a.md", "versions": [
    {"version": 9, "md5": "5d41402abc4b2a76b9719d911017c592", "size": 0, "is_deleted": true,
     "last_modified": "2026-11-20T10:00:09.000Z"},
    {"version": 7, "md5": "5d41402abc4b2a76b9719d911017c592", "size": 5, "is_deleted": false,
     "last_modified": "2026-11-20T10:00:07.000Z", "device": "Zo%C3%AB", "meta": {"x": "y"}}]}"#;

#[tokio::test]
async fn versions_are_listed_and_read() {
    let server = Server::start(&["versions"], |request: &Request| match request.target.as_str() {
        "/versions/a%20b/c.md" => reply(200, &[], LIST),
        "/blob/a%20b/c.md?version=7" => reply(200, &[&etag(b"hello")], b"hello"),
        _ => reply(404, &[], b""),
    })
    .await;
    let remote = remote(&server);
    let versions = remote.versions(&path("a b/c.md")).await.unwrap().unwrap();
    let facts: Vec<_> = versions.iter().map(|v| (v.version, v.size, v.is_deleted, v.device.as_deref())).collect();
    assert_eq!(facts, [(9, 0, true, None), (7, 5, false, Some("Zoë"))]);
    assert_eq!(remote.keeps_versions(), Some(true));
    assert_eq!((versions[1].md5, versions[1].at.to_string()), (Md5::of(b"hello"), "2026-11-20T10:00:07Z".to_owned()));
    let blob = found(remote.get_version(&path("a b/c.md"), 7).await.unwrap());
    assert_eq!(read(blob).await.unwrap(), b"hello");
    assert!(matches!(remote.get_version(&path("a b/c.md"), 8).await, Ok(GetReply::Absent { .. })));
    assert_eq!(remote.versions(&path("unknown")).await.unwrap(), Some(Vec::new()));
}

#[tokio::test]
async fn versions_in_a_namespace_have_an_unambiguous_address() {
    let server = Server::start(&["versions", "encoded-slash"], |_| reply(200, &[], LIST)).await;
    let options = HttpOptions { namespace: "team/b".to_owned(), ..options(&server.origin()) };
    let remote = HttpRemote::new(options).unwrap();
    for (name, target) in [
        ("d/x", "/team/b/versions/d/x"),
        ("blob/x", "/team/b/versions/blob%2Fx"),
        ("a/my-versions/b", "/team/b/versions/a/my-versions/b"),
    ] {
        remote.versions(&path(name)).await.unwrap();
        assert_eq!(server.seen().last().unwrap().target, target);
    }
}

#[tokio::test]
async fn proxy_without_versions_is_not_asked_for_them() {
    let server = Server::start(&["honest-412"], |_| reply(200, &[], LIST)).await;
    let remote = remote(&server);
    assert_eq!(remote.keeps_versions(), None, "not known yet");
    assert_eq!(remote.versions(&path("a.md")).await.unwrap(), None);
    assert_eq!(remote.keeps_versions(), Some(false));
    assert!(server.seen().iter().all(|request| !request.target.contains("versions")));
}

#[tokio::test]
async fn list_of_versions_that_makes_no_sense_is_refused() {
    let time = std::str::from_utf8(LIST).unwrap().replace("2026-11-20T10:00:07.000Z", "yesterday");
    for body in [b"<html>".to_vec(), b"{}".to_vec(), time.into_bytes(), b"[".repeat(5 << 20)] {
        let server = Server::start(&["versions"], move |_| reply(200, &[], &body)).await;
        let error = remote(&server).versions(&path("a.md")).await.unwrap_err();
        assert!(matches!(error, RemoteError::Protocol { .. } | RemoteError::TooLarge { .. }), "{error}");
        assert!(!error.to_string().contains(TOKEN), "{error}");
    }
}
