//! Refusals, lost, broken and hostile answers. No error contains the token.

use std::io::ErrorKind;
use std::sync::Arc;

use futures::StreamExt;
use memsync::digest::Md5;
use memsync::local::Folder;
use memsync::protocol::Precondition;
use memsync::remote::http::{HttpOptions, HttpRemote, OptionsError};
use memsync::remote::{PromisedDigest, PutReply, Remote};
use memsync::testing::SimDisk;

use crate::remote_http::server::{DEADLINE, Reply, Server, Then, reply};
use crate::remote_http::*;

/// The errors of index, get, put and delete.
async fn errors(remote: &HttpRemote) -> [RemoteError; 4] {
    let a = path("a");
    [
        remote.index(None, None).await.unwrap_err(),
        remote.get(&a).await.err().expect("an error"),
        remote.put(&a, Precondition::New, 0, outgoing(b"x")).await.unwrap_err(),
        remote.delete(&a, Md5::of(b"x"), 0).await.unwrap_err(),
    ]
}

fn show_no_token(error: &RemoteError) {
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[tokio::test]
async fn every_status_has_its_class() {
    type Check = fn(&RemoteError) -> bool;
    let cases: &[(u16, &[&str], Check)] = &[
        (
            301,
            &["location: https://elsewhere.example/"],
            |e| matches!(e, RemoteError::Protocol { why, .. } if why.contains("elsewhere")),
        ),
        (302, &[], |e| matches!(e, RemoteError::Protocol { .. })),
        (307, &["location: /x"], |e| matches!(e, RemoteError::Protocol { .. })),
        (
            400,
            &[],
            |e| matches!(e, RemoteError::Refused { status: 400, detail, .. } if detail.starts_with("why: Bearer [token]")),
        ),
        (401, &[], |e| matches!(e, RemoteError::Auth { status: 401, .. })),
        (403, &[], |e| matches!(e, RemoteError::Auth { status: 403, .. })),
        (405, &[], |e| matches!(e, RemoteError::Refused { status: 405, .. })),
        (408, &[], |e| matches!(e, RemoteError::Unreachable { why, .. } if why.contains("408"))),
        (409, &[], |e| matches!(e, RemoteError::Refused { status: 409, .. })),
        (413, &[], |e| matches!(e, RemoteError::TooLarge { .. })),
        (422, &[], |e| matches!(e, RemoteError::Refused { status: 422, .. })),
        (428, &[], |e| matches!(e, RemoteError::Refused { status: 428, .. })),
        (429, &[], |e| matches!(e, RemoteError::Throttled { status: 429, after: None, .. })),
        (429, &["retry-after: 5"], |e| matches!(e, RemoteError::Throttled { after: Some(d), .. } if d.as_secs() == 5)),
        (500, &[], |e| matches!(e, RemoteError::Server { status: 500, .. })),
        (507, &[], |e| matches!(e, RemoteError::Refused { status: 507, .. })),
        (502, &["retry-after: 5"], |e| matches!(e, RemoteError::Unreachable { .. })),
        (504, &[], |e| matches!(e, RemoteError::Unreachable { .. })),
        (503, &[], |e| matches!(e, RemoteError::Server { status: 503, .. })),
        (
            503,
            &["retry-after: 86400"],
            |e| matches!(e, RemoteError::Throttled { status: 503, after: Some(d), .. } if d.as_secs() == 900),
        ),
        (202, &[], |e| matches!(e, RemoteError::Protocol { .. })),
        (206, &[], |e| matches!(e, RemoteError::Protocol { .. })),
        (999, &[], |e| matches!(e, RemoteError::Protocol { .. })),
    ];
    for &(status, headers, check) in cases {
        let server = Server::start(&[], move |request| {
            let sent = request.header("authorization").unwrap();
            reply(status, headers, format!(r#"{{"detail":"why: {sent} \u001b[31m","context":null}}"#).as_bytes())
        })
        .await;
        for error in errors(&remote(&server)).await {
            assert!(check(&error), "{status} {headers:?}: {error:?}");
            assert!(error.to_string().contains(&server.origin()) && !error.to_string().contains('\u{1b}'), "{error}");
            show_no_token(&error);
        }
        assert_eq!(server.seen().len(), 4, "nothing is followed and nothing asked again");
    }
}

#[tokio::test]
async fn endless_error_body_is_not_read_to_its_end() {
    let server = Server::start(&[], |_| {
        let mut bytes = b"HTTP/1.1 500 x\r\ncontent-length: 1000000000\r\n\r\n{\"detail\":\"".to_vec();
        bytes.resize(200_000, b'x');
        Reply { bytes, then: Then::Hold }
    })
    .await;
    let error = remote(&server).get(&path("a")).await.err().expect("an error");
    assert!(matches!(error, RemoteError::Server { status: 500, .. }), "{error}");
}

#[tokio::test]
async fn lost_reply_is_not_a_failed_write() {
    let server = Server::start(&[], |_| Reply { bytes: Vec::new(), then: Then::Close }).await;
    for error in errors(&remote(&server)).await {
        assert!(matches!(error, RemoteError::Unreachable { .. }), "{error:?}");
    }
    let silent = Server::start(&[], |_| Reply { bytes: Vec::new(), then: Then::Hold }).await;
    for error in errors(&impatient(&silent)).await {
        assert!(matches!(&error, RemoteError::Unreachable { why, .. } if why.contains("no answer")), "{error:?}");
    }
    let nonsense = Server::start(&[], |_| Reply { bytes: b"SSH-2.0-x\r\n".to_vec(), then: Then::Close }).await;
    for error in errors(&remote(&nonsense)).await {
        assert!(matches!(&error, RemoteError::Protocol { why, .. } if why.contains("HTTP")), "{error:?}");
    }
}

/// With any claimed length, or without one. The proxy answers, so other requests continue.
#[tokio::test]
async fn slow_blob_is_given_up_by_its_average_speed() {
    for length in ["content-length: 4000000", "x-length: none", "content-length: 100"] {
        let server = Server::start(&[], move |_| {
            let tag = etag(b"whole");
            let bytes = format!("HTTP/1.1 200 OK\r\n{tag}\r\n{length}\r\nconnection: close\r\n\r\n").into();
            Reply { bytes, then: Then::Drip }
        })
        .await;
        let asked = tokio::time::timeout(DEADLINE, async {
            match impatient(&server).get(&path("a")).await? {
                GetReply::Found(blob) => blob.body.try_collect::<Vec<_>>().await,
                GetReply::Absent { .. } => panic!("it is there"),
            }
        });
        let error = asked.await.expect("in time").expect_err("it never ends");
        assert!(matches!(error, RemoteError::Slow { .. }) && !error.ends_cycle(), "{length}: {error:?}");
    }
}

#[tokio::test]
async fn unreachable_proxy_is_reported_in_plain_words() {
    let server = Server::start(&[], |_| reply(404, &[], b"")).await;
    let gone = server.origin();
    drop(server);
    let refused = HttpRemote::new(options(&gone)).unwrap();
    // The listener closes with its task, which takes a moment.
    let why = tokio::time::timeout(DEADLINE, async {
        loop {
            match refused.get(&path("a")).await {
                Err(RemoteError::Unreachable { why, .. }) if why.contains("refused") => return why,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    assert!(why.await.unwrap().contains("is the proxy running?"));
    let nameless = HttpRemote::new(options("https://no-such-host.invalid")).unwrap();
    let error = nameless.get(&path("a")).await.err().expect("an error");
    assert!(matches!(&error, RemoteError::Unreachable { why, .. } if why.contains("host name")), "{error:?}");
}

#[tokio::test]
async fn capabilities_are_fetched_again_after_an_outage() {
    let server = Server::start(&["index-etag"], |request| match request.target.as_str() {
        "/blob/gone" => Reply { bytes: Vec::new(), then: Then::Close },
        _ => reply(404, &[], b""),
    })
    .await;
    let remote = remote(&server);
    for _ in 0..3 {
        remote.get(&path("a")).await.unwrap();
    }
    assert_eq!(server.health_count(), 1);
    assert!(remote.get(&path("gone")).await.is_err());
    assert!(remote.supports("index-etag").await.unwrap() && !remote.supports("delta").await.unwrap());
    assert_eq!(server.health_count(), 2);
}

#[tokio::test]
async fn blob_that_differs_from_its_etag_is_refused() {
    let content = noise(3_000_000);
    let server = Server::start(&[], move |request| {
        let body = if request.target == "/blob/big" { &content[..] } else { b"hello" };
        reply(200, &[&etag(b"other")], body)
    })
    .await;
    let folder = Folder::new(Arc::new(SimDisk::new()), "here", 1);
    folder.ensure_private().unwrap();
    for name in ["big", "small"] {
        let mut blob = found(remote(&server).get(&path(name)).await.unwrap());
        let mut staging = folder.stage().unwrap();
        while let Some(piece) = blob.body.next().await {
            staging.write(piece.unwrap()).unwrap();
        }
        let error = staging.finish(blob.md5).err().unwrap();
        assert!(error.kind() == ErrorKind::InvalidData && error.to_string().contains(&blob.md5.to_string()), "{error}");
    }
}

#[tokio::test]
async fn broken_blob_ends_in_an_error() {
    let big = noise(500_000);
    let content = big.clone();
    let server = Server::start(&[], move |request| {
        let good = reply(200, &[&etag(&content)], &content);
        let small = reply(200, &[&etag(b"hello")], b"hello");
        match request.target.as_str() {
            "/blob/cut" => good.cut(1).then(Then::Close),
            "/blob/stall" => good.cut(1).then(Then::Hold),
            "/blob/small-cut" => small.cut(1).then(Then::Close),
            "/blob/small-stall" => small.cut(1).then(Then::Hold),
            "/blob/chunk-cut" => Reply {
                bytes: format!(
                    "HTTP/1.1 200 OK\r\n{}\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
                    etag(b"hello")
                )
                .into(),
                then: Then::Close,
            },
            other => panic!("{other}"),
        }
    })
    .await;
    for name in ["cut", "small-cut", "chunk-cut", "stall", "small-stall"] {
        // Long enough for the head to arrive.
        let patient = HttpOptions { timeout: Duration::from_secs(2), ..options(&server.origin()) };
        let remote = if name.ends_with("stall") { HttpRemote::new(patient).unwrap() } else { remote(&server) };
        let error = read(found(remote.get(&path(name)).await.unwrap())).await.unwrap_err();
        assert!(matches!(error, RemoteError::Unreachable { .. }), "{name}: {error:?}");
        show_no_token(&error);
    }
}

#[tokio::test]
async fn blob_needs_a_strong_etag_and_an_allowed_size() {
    let big = noise((4 << 20) + 1);
    let md5 = Md5::of(b"hello");
    let server = Server::start(&[], move |request| match request.target.as_str() {
        "/blob/none" => reply(200, &[], b"hello"),
        "/blob/weak" => reply(200, &[&format!("etag: W/\"{md5}\"")], b"hello"),
        "/blob/bare" => reply(200, &[&format!("etag: {md5}")], b"hello"),
        "/blob/multipart" => reply(200, &[&format!("etag: \"{md5}-2\"")], b"hello"),
        "/blob/big" => reply(200, &[&etag(&big)], &big),
        "/blob/endless" => {
            let mut bytes = format!("HTTP/1.1 200 OK\r\n{}\r\nconnection: close\r\n\r\n", etag(&big)).into_bytes();
            bytes.extend_from_slice(&big);
            Reply { bytes, then: Then::Close }
        }
        other => panic!("{other}"),
    })
    .await;
    let remote = remote(&server);
    for name in ["none", "weak", "bare", "multipart"] {
        let error = remote.get(&path(name)).await.err().expect("an error");
        assert!(matches!(&error, RemoteError::Protocol { why, .. } if why.contains("ETag")), "{name}: {error:?}");
    }
    let error = remote.get(&path("big")).await.err().expect("an error");
    assert!(matches!(error, RemoteError::TooLarge { .. }), "{error:?}");
    let error = read(found(remote.get(&path("endless")).await.unwrap())).await.unwrap_err();
    assert!(matches!(error, RemoteError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn hostile_index_is_refused_and_bad_names_are_skipped() {
    let entry = r#"{"md5":"5d41402abc4b2a76b9719d911017c592","size":5}"#;
    let text = format!(r#"{{"files":{{"ok":{entry},"../x":{entry},"cafe\u0301":{entry}}}}}"#);
    let twice = format!(r#"{{"files":{{"a":{entry},"a":{entry}}}}}"#);
    let server = Server::start(&[], move |request| match request.header("x-memsync-device").unwrap() {
        "names" => reply(200, &[], text.as_bytes()),
        "twice" => reply(200, &[], twice.as_bytes()),
        "truncated" => reply(200, &[], &text.as_bytes()[..60]),
        "cut" => reply(200, &[], text.as_bytes()).cut(1).then(Then::Close),
        "stall" => reply(200, &[], text.as_bytes()).cut(1).then(Then::Hold),
        "html" => reply(200, &["content-type: text/html"], b"<html>sign in"),
        "huge" => Reply { bytes: b"HTTP/1.1 200 OK\r\ncontent-length: 67108865\r\n\r\n{".to_vec(), then: Then::Hold },
        "endless" => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"files\":{}".to_vec();
            bytes.resize((64 << 20) + 100, b' ');
            Reply { bytes, then: Then::Hold }
        }
        other => panic!("{other}"),
    })
    .await;
    let ask = async |device: &str| {
        let timeout = if device == "stall" { Duration::from_millis(100) } else { DEADLINE };
        HttpRemote::new(HttpOptions { device: device.into(), timeout, ..options(&server.origin()) })
            .unwrap()
            .index(None, None)
            .await
    };
    let memsync::remote::IndexUpdate::Whole(index) = ask("names").await.unwrap() else { panic!("not whole") };
    assert_eq!(index.files.keys().map(RelPath::as_str).collect::<Vec<_>>(), ["ok"]);
    assert_eq!(index.refused.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["../x", "cafe\u{301}"]);
    for device in ["twice", "truncated", "html", "huge", "endless"] {
        let error = ask(device).await.unwrap_err();
        assert!(matches!(error, RemoteError::Protocol { .. }), "{device}: {error:?}");
    }
    for device in ["cut", "stall"] {
        let error = ask(device).await.unwrap_err();
        assert!(matches!(error, RemoteError::Unreachable { .. }), "{device}: {error:?}");
    }
}

#[tokio::test]
async fn write_is_confirmed_by_its_own_digest_only() {
    let server = Server::start(&[], |request| match request.target.as_str() {
        "/blob/other" => reply(200, &[&etag(b"other")], b""),
        _ => reply(201, &[], b""),
    })
    .await;
    for name in ["other", "none"] {
        let error = remote(&server).put(&path(name), Precondition::New, 0, outgoing(b"x")).await.unwrap_err();
        assert!(matches!(error, RemoteError::Protocol { .. }), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn failing_source_never_becomes_a_version() {
    let server = Server::start(&[], |request| reply(201, &[&etag(&request.body)], b"")).await;
    let remote = remote(&server);
    let put = async |body| remote.put(&path("a"), Precondition::New, 0, body).await;
    let small = noise(1000);
    let big = noise(2_000_000);
    let error = put(failing(&small, 500)).await.unwrap_err();
    assert!(matches!(&error, RemoteError::Source(why) if why.contains("changed while")), "{error:?}");
    for wrong in [UploadBody { size: 999, ..outgoing(&small) }, UploadBody { size: 1001, ..outgoing(&small) }] {
        assert!(matches!(put(wrong).await, Err(RemoteError::Source(_))));
    }
    assert!(server.seen().is_empty(), "a small source is read before anything is sent");
    // Up to the last piece, and with all bytes sent but the end not confirmed.
    let size = big.len() as u64;
    for (n, body) in [
        failing(&big, 1_000_000),
        failing(&big, big.len()),
        UploadBody { size: size + 1, ..outgoing(&big) },
        UploadBody { size: size - 1, ..outgoing(&big) },
    ]
    .into_iter()
    .enumerate()
    {
        let error = put(body).await.unwrap_err();
        assert!(matches!(error, RemoteError::Source(_)), "{n}: {error:?}");
        let seen = server.wait_for(n + 1).await;
        assert!(!seen[n].whole, "{n}: the server got {} bytes and took them for a whole", seen[n].body.len());
    }
}

/// A source of endless pieces, slow enough for an answer in between. It signals its drop.
struct Endless(Option<tokio::sync::oneshot::Sender<()>>);

impl BodySource for Endless {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        Ok(Some(Bytes::from_static(&[0; 4096])))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            // The receiver is gone if the test has failed already.
            let _ = sender.send(());
        }
    }
}

#[tokio::test]
async fn early_answer_ends_the_upload() {
    let server = Server::start(&[], |request| match request.target.as_str() {
        "/blob/x-early-412" => reply(412, &[], br#"{"detail":"x","context":{"current_md5":"none"}}"#),
        _ => reply(413, &["connection: close"], br#"{"detail":"at most 1 MiB"}"#),
    })
    .await;
    let remote = remote(&server);
    for name in ["x-early-412", "x-early-413"] {
        let (sender, gone) = tokio::sync::oneshot::channel();
        let body = UploadBody {
            md5: PromisedDigest::Known(Md5::of(b"")),
            size: 1 << 40,
            source: Box::new(Endless(Some(sender))),
        };
        let put = tokio::time::timeout(DEADLINE, remote.put(&path(name), Precondition::New, 0, body)).await;
        match put.expect("the answer was not seen") {
            Ok(put) => {
                assert_eq!(
                    (name, put),
                    ("x-early-412", PutReply::Mismatch { current: None, is_deleted: None, version: 0 })
                )
            }
            Err(RemoteError::TooLarge { why, .. }) => {
                assert_eq!((name, why.as_str()), ("x-early-413", "at most 1 MiB"))
            }
            Err(other) => panic!("{name}: {other:?}"),
        }
        tokio::time::timeout(DEADLINE, gone).await.expect("the upload goes on").unwrap();
    }
}

#[tokio::test]
async fn abandoned_upload_ends_on_the_wire() {
    let server = Server::start(&[], |request| reply(201, &[&etag(&request.body)], b"")).await;
    let (sender, gone) = tokio::sync::oneshot::channel();
    let body =
        UploadBody { md5: PromisedDigest::Known(Md5::of(b"")), size: 1 << 40, source: Box::new(Endless(Some(sender))) };
    let remote = remote(&server);
    let put = tokio::spawn(async move { remote.put(&path("a"), Precondition::New, 0, body).await });
    tokio::time::timeout(DEADLINE, async {
        while server.connections() < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    put.abort();
    tokio::time::timeout(DEADLINE, gone).await.expect("the upload goes on").unwrap();
    assert!(server.seen().iter().all(|request| !request.whole));
}

/// The whole transfer takes longer than the timeout for silence.
struct Slow(u32);

impl BodySource for Slow {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some(left) = self.0.checked_sub(1) else { return Ok(None) };
        self.0 = left;
        std::thread::sleep(Duration::from_millis(60));
        Ok(Some(Bytes::from_static(&[7; 64 * 1024])))
    }
}

#[tokio::test]
async fn slow_upload_is_not_cut() {
    let server = Server::start(&[], |request| reply(201, &[&etag(&request.body)], b"")).await;
    let content = vec![7; 20 * 64 * 1024];
    let body = UploadBody { source: Box::new(Slow(20)), ..outgoing(&content) };
    let options = HttpOptions { timeout: Duration::from_secs(1), ..options(&server.origin()) };
    let put = HttpRemote::new(options).unwrap().put(&path("a"), Precondition::New, 0, body).await;
    assert_eq!(put, Ok(PutReply::Stored { version: 0 }));
}

#[tokio::test]
async fn buffered_upload_is_not_cut() {
    let server = Server::start(&[], |request| reply(201, &[&etag(&request.body)], b"")).await;
    for size in [250_000, 1_000_000, 4 << 20] {
        let put = impatient(&server).put(&path("x-slow"), Precondition::New, 0, outgoing(&noise(size))).await;
        assert_eq!(put, Ok(PutReply::Stored { version: 0 }), "{size}");
    }
}

#[tokio::test]
async fn options_that_would_leak_the_token_are_refused() {
    let new = |origin: &str| HttpRemote::new(options(origin)).err();
    assert!(matches!(new("not a url"), Some(OptionsError::Url(_))));
    assert_eq!(new("ftp://x"), Some(OptionsError::Scheme));
    assert_eq!(new("https://user:pw@x"), Some(OptionsError::Userinfo));
    assert_eq!(new("https://tok@x"), Some(OptionsError::Userinfo));
    assert_eq!(new("https://x/?a"), Some(OptionsError::Suffix));
    assert_eq!(new("https://x/#a"), Some(OptionsError::Suffix));
    assert!(matches!(new("http://example.org"), Some(OptionsError::PlainHttp(_))));
    assert!(matches!(new("http://localhost.example.org"), Some(OptionsError::PlainHttp(_))));
    for fine in
        ["http://127.0.0.1:1", "http://127.8.0.1", "http://[::1]:1", "http://localhost", "https://example.org/x/"]
    {
        assert_eq!(new(fine), None, "{fine}");
    }
    let allowed = HttpOptions { allow_http: true, ..options("http://example.org") };
    assert!(HttpRemote::new(allowed).is_ok());
    let reserved = HttpOptions { namespace: "sync/n".into(), ..options("https://x") };
    assert!(matches!(HttpRemote::new(reserved), Err(OptionsError::Namespace(name, _)) if name == "sync/n"));
    for bad in ["", "to ken", "token\n", "tok\u{e9}n"] {
        let bad = HttpOptions { token: bad.into(), ..options("https://x") };
        assert_eq!(HttpRemote::new(bad).err(), Some(OptionsError::Token));
    }
    let remote = HttpRemote::new(options("https://x")).unwrap();
    for text in [format!("{remote:?}"), format!("{:?}", options("https://x"))] {
        assert!(!text.contains(TOKEN), "{text}");
    }
}

/// Downloads a whole blob.
async fn blob(remote: &HttpRemote, name: &str) -> Result<Vec<u8>, RemoteError> {
    read(found(remote.get(&path(name)).await?)).await
}

/// The whole content, from a server that closes after some bytes of each answer but the last.
#[tokio::test]
async fn broken_download_resumes_at_its_end() {
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let whole = content.clone();
    let tag = format!("etag: \"{}\"", Md5::of(&content));
    let server = Server::start(&[], move |request| {
        let first = match request.header("range") {
            None => 0,
            Some(range) => range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap(),
        };
        let rest = &whole[first..];
        let range = format!("content-range: bytes {first}-{}/{}", whole.len() - 1, whole.len());
        let status = if first == 0 { 200 } else { 206 };
        let answer = reply(status, &[&tag, "accept-ranges: bytes", &range], rest);
        answer.cut(rest.len().saturating_sub(100_000)).then(Then::Close)
    })
    .await;
    assert_eq!(blob(&remote(&server), "x").await.unwrap(), content);
    let asked: Vec<_> = server.seen().iter().map(|r| r.header("range").unwrap_or("-").to_owned()).collect();
    assert_eq!((asked.len(), asked[0].as_str()), (3, "-"), "{asked:?}");
    let tag = format!("\"{}\"", Md5::of(&content));
    assert!(server.seen()[1..].iter().all(|r| r.header("if-match") == Some(&*tag)), "only of the same content");
}

/// With other content, or without a range, a broken download fails.
#[tokio::test]
async fn broken_download_does_not_resume_with_other_content() {
    for (status, other) in [(206, true), (200, false), (412, false)] {
        let server = Server::start(&[], move |request| {
            let tag = |text: &str| format!("etag: \"{}\"", Md5::of(text.as_bytes()));
            match request.header("range") {
                None => {
                    let answer = reply(200, &[&tag("0123456789"), "accept-ranges: bytes"], b"0123456789");
                    answer.cut(5).then(Then::Close)
                }
                Some(_) => {
                    let tag = tag(if other { "01234xxxxx" } else { "0123456789" });
                    reply(status, &[&tag, "content-range: bytes 5-9/10"], b"xxxxx")
                }
            }
        })
        .await;
        let broken = blob(&remote(&server), "x").await;
        assert!(matches!(&broken, Err(RemoteError::Unreachable { .. })), "{status}: {broken:?}");
    }
}

#[tokio::test]
async fn changed_etag_error_names_the_reverse_proxy() {
    for tag in ["W/\"5d41402abc4b2a76b9719d911017c592\"", "\"5d41402abc4b2a76b9719d911017c592-gzip\""] {
        let header = format!("etag: {tag}");
        let server = Server::start(&[], move |_| reply(200, &[&header], b"hello")).await;
        let told = blob(&remote(&server), "x").await.unwrap_err().to_string();
        assert!(told.contains(tag) && told.contains("in front of the proxy"), "{told}");
    }
}
