//! Deltas of an index of hints: the requests, and the handling of the answers.

use memsync::remote::http::HttpRemote;
use memsync::remote::{FetchedIndex, IndexUpdate, Remote, RemoteError};

use crate::remote_http::server::{Reply, Server, reply};
use crate::remote_http::*;

const OFFERED: &[&str] = &["index-etag", "etag-delta"];

/// An index of one file, or its delta since the tag `base`.
fn index(tag: &str, name: &str, base: Option<&str>) -> Reply {
    let md5 = Md5::of(name.as_bytes());
    let base = base.map_or(String::new(), |base| format!(r#","delta":true,"delta_base":"{base}""#));
    let body = format!(r#"{{"files":{{"{name}":{{"md5":"{md5}","size":1}}}},"index_last_modified":"x"{base}}}"#);
    let etag = format!("etag: {tag}");
    let headers: &[&str] = if tag.is_empty() { &[] } else { &[&etag] };
    reply(200, headers, body.as_bytes())
}

/// The kind of the answer, and the names in the index.
async fn ask(remote: &HttpRemote) -> Result<(&'static str, Vec<String>), RemoteError> {
    let names = |index: FetchedIndex| index.files.into_keys().map(|path| path.to_string()).collect();
    Ok(match remote.index(None, None).await? {
        IndexUpdate::Whole(index) => ("whole", names(index)),
        IndexUpdate::Delta(index) => ("delta", names(index)),
        IndexUpdate::Unchanged => ("unchanged", Vec::new()),
    })
}

fn asked(server: &Server) -> Vec<String> {
    server.seen().iter().map(|r| format!("{} {}", r.target, r.header("if-none-match").unwrap_or("-"))).collect()
}

fn came(how: &'static str, name: &str) -> Result<(&'static str, Vec<String>), RemoteError> {
    Ok((how, vec![name.to_owned()]))
}

#[tokio::test]
async fn delta_is_requested_by_the_held_etag() {
    let server = Server::start(OFFERED, |request| match request.target.as_str() {
        "/sync" => index("\"1&+ %\"", "a", None),
        "/sync?from=1%26%2B%20%25" => index("W/\"2\"", "b", Some("1&+ %")),
        "/sync?from=2" => index("\"3\"", "c", Some("2")),
        "/sync?from=3" => reply(304, &["etag: \"3\""], b""),
        other => panic!("{other}"),
    })
    .await;
    let remote = remote(&server);
    assert_eq!(ask(&remote).await, came("whole", "a"));
    assert_eq!(ask(&remote).await, came("delta", "b"));
    assert_eq!(ask(&remote).await, came("delta", "c"));
    assert_eq!(ask(&remote).await, Ok(("unchanged", Vec::new())));
    remote.forget_index();
    assert_eq!(ask(&remote).await, came("whole", "a"));
    let all =
        ["/sync -", "/sync?from=1%26%2B%20%25 \"1&+ %\"", "/sync?from=2 W/\"2\"", "/sync?from=3 \"3\"", "/sync -"];
    assert_eq!(asked(&server), all);
}

#[tokio::test]
async fn delta_of_another_index_is_refused() {
    for base in ["0", ""] {
        let server = Server::start(OFFERED, move |request| match request.target.as_str() {
            "/sync" => index("\"1\"", "a", None),
            _ => index("\"2\"", "b", Some(base)),
        })
        .await;
        let remote = remote(&server);
        assert_eq!(ask(&remote).await, came("whole", "a"));
        assert_eq!(ask(&remote).await, came("whole", "a"), "all of it is asked for at once");
        assert_eq!(asked(&server), ["/sync -", "/sync?from=1 \"1\"", "/sync -"]);
    }
    // A delta without a request for one is refused.
    let server = Server::start(OFFERED, |_| index("\"1\"", "a", Some("1"))).await;
    assert!(matches!(ask(&remote(&server)).await, Err(RemoteError::Protocol { .. })));
}

#[tokio::test]
async fn whole_index_is_accepted_for_a_delta_request() {
    let server = Server::start(OFFERED, |request| match request.target.as_str() {
        "/sync" => index("\"1\"", "a", None),
        "/sync?from=1" => index("\"2\"", "b", None),
        // The next request would have no tag to start from.
        "/sync?from=2" => index("", "c", Some("2")),
        other => panic!("{other}"),
    })
    .await;
    let remote = remote(&server);
    for (how, name) in [("whole", "a"), ("whole", "b"), ("delta", "c"), ("whole", "a")] {
        assert_eq!(ask(&remote).await, came(how, name));
    }
}

#[tokio::test]
async fn no_delta_is_requested_without_capability_or_index() {
    for offered in [&["index-etag"][..], &["etag-delta"], &[]] {
        let server = Server::start(offered, |_| index("\"1\"", "a", None)).await;
        let remote = remote(&server);
        for _ in 0..3 {
            assert_eq!(ask(&remote).await, came("whole", "a"));
        }
        assert!(server.seen().iter().all(|r| r.target == "/sync"), "{offered:?}");
    }
    // An invalid ETag identifies no index.
    let server = Server::start(OFFERED, |_| index("1", "a", None)).await;
    let remote = remote(&server);
    for _ in 0..2 {
        assert_eq!(ask(&remote).await, came("whole", "a"));
    }
    assert!(server.seen().iter().all(|r| r.target == "/sync"));
}
