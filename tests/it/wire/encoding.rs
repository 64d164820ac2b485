//! Capability `encoding`: packed responses, packed request bodies, and compression bombs.

use std::sync::Arc;

use memsync::testing::MemoryStore;

use super::batch;
use super::{embedded, memory};
use crate::common::frames::{self, frames, parse};
use crate::common::left_out::left_out;
use crate::common::packed::{gzip_bomb, noise, pack, text, unpack, unpack_elsewhere, zstd_bomb};
use crate::common::proxy::{Client, Reply, Running, md5, options};

const BOTH: [&str; 2] = ["zstd", "gzip"];

/// A GET with this `Accept-Encoding`.
async fn get(c: &mut Client, target: &str, accept: &str) -> Reply {
    c.send("GET", target, &[("Accept-Encoding", accept)], b"").await
}

/// The unpacked content of a response, and its coding.
async fn content(c: &mut Client, r: &Reply) -> (Option<String>, Vec<u8>) {
    let coding = r.header("content-encoding").map(str::to_owned);
    let body = if r.header("transfer-encoding").is_some() { c.chunks().await.unwrap() } else { r.body.clone() };
    let plain = coding.as_deref().map_or_else(|| body.clone(), |coding| unpack(coding, &body));
    if let Some(coding) = &coding {
        match unpack_elsewhere(coding, &body) {
            Some(other) => assert!(other == plain, "{coding}"),
            None => left_out(&format!("the comparison with `{coding}`, which is not here")),
        }
    }
    (coding, plain)
}

/// A PUT of a new path with this `Content-Encoding`.
async fn put(c: &mut Client, target: &str, coding: &str, body: &[u8]) -> Reply {
    c.send("PUT", target, &[("Content-MD5", "new"), ("Content-Encoding", coding)], body).await
}

#[tokio::test]
async fn client_gets_its_preferred_coding() {
    let (_running, mut c) = memory().await;
    let note = text(5_000);
    c.put("/blob/note.md", "new", &note).await;
    for (accept, coding) in [
        ("", None),
        ("zstd", Some("zstd")),
        ("gzip", Some("gzip")),
        ("x-gzip", Some("gzip")),
        ("gzip, deflate", Some("gzip")),
        ("gzip, deflate, br, zstd", Some("zstd")),
        ("GZIP;Q=1, zstd ; q=0.9", Some("gzip")),
        ("zstd;q=0, gzip;q=0.001", Some("gzip")),
        ("zstd;q=0", None),
        ("zstd;q=0.5, identity", None),
        ("zstd;q=0.5, identity;q=0.4", Some("zstd")),
        ("zstd;q=2, gzip;q=much", None),
        ("identity;q=0, *;q=0", None),
        ("*", None),
        ("deflate, br", None),
        (",;,=,;q=1, zstd", Some("zstd")),
    ] {
        let r = get(&mut c, "/blob/note.md", accept).await;
        assert_eq!((r.status, r.header("vary")), (200, Some("accept-encoding")), "{accept:?}");
        assert_eq!(r.header("etag"), Some(format!("\"{}\"", md5(&note)).as_str()), "of the plain content");
        assert!(r.body.len() < note.len() || coding.is_none());
        assert_eq!(content(&mut c, &r).await, (coding.map(str::to_owned), note.clone()), "{accept:?}");
    }
    let two = [("Accept-Encoding", "br"), ("Accept-Encoding", "gzip")];
    let r = c.send("GET", "/blob/note.md", &two, b"").await;
    assert_eq!(r.header("content-encoding"), Some("gzip"));
    assert_eq!(c.get("/blob/note.md").await.body, note, "a client that accepts no coding");

    // A response to HEAD has the length of the plain content.
    let r = c.send("HEAD", "/blob/note.md", &[("Accept-Encoding", "zstd")], b"").await;
    assert_eq!((r.status, r.header("content-length"), r.header("content-encoding")), (200, Some("5000"), None));
    let r = get(&mut c, "/blob/absent", "zstd").await;
    assert_eq!((r.status, r.header("content-encoding")), (404, None));
}

#[tokio::test]
async fn compressible_blobs_are_packed() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    let mut mixed = text(3 << 20);
    mixed.extend(noise(1 << 20));
    let large = text(5 << 20);
    for (name, content_of, smaller) in [
        ("tiny", text(1_000), false),
        ("note", text(30_000), true),
        ("inline", text(200_000), true),
        ("large", large.clone(), true),
        ("mixed", mixed, true),
        ("photo", noise(30_000), false),
        ("video", noise(3 << 20), false),
        ("archive", pack("zstd", &large), false),
    ] {
        let target = format!("/blob/{name}");
        assert_eq!(c.put(&target, "new", &content_of).await.status, 201);
        for coding in BOTH {
            let r = get(&mut c, &target, coding).await;
            let (came, plain) = content(&mut c, &r).await;
            assert_eq!(came.as_deref(), smaller.then_some(coding), "{name}");
            assert!(plain == content_of, "{name} {coding}");
            let length = r.header("content-length").map(|n| n.parse::<usize>().unwrap());
            assert!(smaller || length == Some(content_of.len()), "{name}: as ever where it is not packed");
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn response_is_unpacked_when_all_encoders_are_busy() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    // Longer, even packed, than the buffers of a connection.
    let large = text(60 << 20);
    assert_eq!(c.put("/blob/large", "new", &large).await.status, 201);
    let mut slow = Vec::new();
    let r = loop {
        let mut c = running.client().await;
        let r = get(&mut c, "/blob/large", "gzip").await;
        if r.header("content-encoding").is_none() {
            break r;
        }
        assert!(slow.len() < 100, "there is no end to them");
        slow.push(c);
    };
    assert!(r.body == large && slow.len() >= 16);
    // An ended connection frees its encoder.
    drop(slow);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let mut c = running.client().await;
        if get(&mut c, "/blob/large", "gzip").await.header("content-encoding").is_some() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "no encoder became free");
    }
}

#[tokio::test]
async fn packed_index_keeps_its_etag() {
    let (_running, mut c) = memory().await;
    for ns in ["", "/n"] {
        for n in 0..50 {
            let put = [("Content-MD5", "new"), ("If-Match-Version", "0"), ("Prefer", "return=minimal")];
            let put = if ns.is_empty() { &put[..1] } else { &put[1..] };
            assert_eq!(c.send("PUT", &format!("{ns}/blob/{n}.md"), put, b"x").await.status, 201);
        }
        let target = format!("/sync{ns}");
        let plain = c.get(&target).await;
        let etag = plain.header("etag").unwrap();
        // Twice: the second response comes from the cache.
        for coding in ["zstd", "gzip", "zstd", "gzip"] {
            let r = get(&mut c, &target, coding).await;
            assert_eq!((r.header("etag"), r.header("content-type")), (Some(etag), Some("application/json")));
            assert!(r.body.len() * 3 < plain.body.len(), "{} of {}", r.body.len(), plain.body.len());
            assert_eq!(content(&mut c, &r).await, (Some(coding.to_owned()), plain.body.clone()));
            let r = c.send("GET", &target, &[("Accept-Encoding", coding), ("If-None-Match", etag)], b"").await;
            assert_eq!((r.status, r.header("etag"), r.header("content-encoding")), (304, Some(etag), None));
        }
    }
    let put = [("If-Match-Version", "0"), ("Accept-Encoding", "gzip")];
    let r = c.send("PUT", "/n/blob/last", &put, b"x").await;
    let (coding, manifest) = content(&mut c, &r).await;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!((coding.as_deref(), manifest["files"].as_object().unwrap().len()), (Some("gzip"), 51));
    assert_eq!(get(&mut c, "/sync", "gzip").await.header("content-encoding"), Some("gzip"), "not another's");
    assert_eq!(get(&mut c, "/sync/other", "gzip").await.header("content-encoding"), None, "too small");
}

#[tokio::test]
async fn packed_body_is_stored_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(embedded(&dir)).await;
    let mut c = running.client().await;
    for coding in BOTH {
        for size in [0, 1, 5_000, 3 << 20] {
            let plain = text(size);
            let (body, target) = (pack(coding, &plain), format!("/blob/{coding}{size}"));
            let r = put(&mut c, &target, coding, &body).await;
            assert_eq!((r.status, r.header("etag")), (201, Some(format!("\"{}\"", md5(&plain)).as_str())), "{target}");
            assert!(c.get(&target).await.body == plain, "{target}");
        }
        let plain = text(4_000);
        let (body, digest) = (pack(coding, &plain), md5(&plain));
        // The MD5 is that of the unpacked content.
        let target = format!("/n/blob/{coding}");
        let mut headers = vec![("If-Match-Version", "0"), ("Content-Encoding", coding)];
        headers.push(("Content-MD5", &digest));
        assert_eq!(c.send("PUT", &target, &headers, &body).await.status, 201);
        let of_packed = md5(&body);
        headers[2].1 = &of_packed;
        headers[0].1 = "1";
        let r = c.send("PUT", &target, &headers, &body).await;
        assert_eq!((r.status, r.code().as_str()), (400, "DIGEST_MISMATCH"));
        assert_eq!(c.get(&target).await.body, plain);
    }
    let index = c.get("/sync").await.json();
    assert_eq!(index["files"]["zstd5000"]["size"], 5000);
    // A packed batch and its packed response.
    let (a, b) = (text(9_000), noise(2_000));
    let all = frames(&[batch::put("a", "new", &a), batch::put("b", "new", &b), batch::get("zstd5000")]);
    for coding in BOTH {
        let headers = [("Content-Type", frames::TYPE), ("Content-Encoding", coding), ("Accept-Encoding", coding)];
        let r = c.send("POST", "/batch", &headers, &pack(coding, &all)).await;
        let (came, answers) = content(&mut c, &r).await;
        assert_eq!((r.status, came.as_deref()), (200, Some(coding)));
        let statuses: Vec<_> = parse(&answers).iter().map(|(head, _)| head["status"].clone()).collect();
        assert_eq!(statuses, if coding == "zstd" { [201, 201, 200] } else { [412, 412, 200] });
        assert_eq!(parse(&answers)[2].1, text(5_000));
    }
    assert_eq!((c.get("/blob/a").await.body, c.get("/blob/b").await.body), (a, b));
}

#[tokio::test]
async fn body_with_another_md5_than_promised_is_refused() {
    let (_running, mut c) = memory().await;
    let plain = text(2_000);
    let (right, packed) = (md5(&plain), pack("zstd", &plain));
    let send = async |c: &mut Client, md5: &str, coding: &str, body: &[u8]| {
        let headers = [("Content-MD5", "new"), ("X-Memsync-Md5", md5), ("Content-Encoding", coding)];
        c.send("PUT", "/blob/x", &headers, body).await
    };
    // The Content-Encoding got lost on the way.
    let r = send(&mut c, &right, "identity", &packed).await;
    assert_eq!((r.status, r.code().as_str()), (400, "DIGEST_MISMATCH"));
    assert_eq!(send(&mut c, "none", "zstd", &packed).await.code(), "INVALID_HEADER");
    assert_eq!(Client::connect(c.stream.peer_addr().unwrap()).await.get("/blob/x").await.status, 404);
    let mut c = Client::connect(c.stream.peer_addr().unwrap()).await;
    assert_eq!(send(&mut c, &right, "zstd", &packed).await.status, 201);
    assert_eq!(c.get("/blob/x").await.body, plain);
}

#[tokio::test]
async fn corrupt_packed_body_writes_nothing() {
    let (running, mut c) = memory().await;
    let plain = text(5_000);
    let refused = async |coding: &str, body: &[u8], status: u16, code: &str| {
        let mut c = running.client().await;
        let r = put(&mut c, "/blob/x", coding, body).await;
        assert_eq!((r.status, r.code().as_str()), (status, code), "{coding}");
        if status == 415 {
            assert_eq!(r.header("accept-encoding"), Some("zstd, gzip"));
        }
        let mut c = running.client().await;
        let headers = [("Content-Type", frames::TYPE), ("Content-Encoding", coding)];
        let r = c.send("POST", "/batch", &headers, body).await;
        assert_eq!((r.status, r.code().as_str()), (status, code), "{coding}, in a batch");
    };
    for coding in BOTH {
        let good = pack(coding, &plain);
        let mut damaged = good.clone();
        damaged[good.len() / 2] ^= 0x55;
        let trailing = [&good[..], b"more"].concat();
        for bad in [&good[..good.len() - 1], &good[..3], b"", b"x", &plain, &damaged, &trailing] {
            refused(coding, bad, 400, "INVALID_ENCODING").await;
        }
        // Two codings are refused in every notation.
        let twice = pack(coding, &good);
        for said in [format!("{coding}, {coding}"), format!("{coding}, gzip"), format!("br, {coding}")] {
            refused(&said, &twice, 415, "UNSUPPORTED_ENCODING").await;
        }
        let mut c = running.client().await;
        let headers = [("Content-MD5", "new"), ("Content-Encoding", coding), ("Content-Encoding", coding)];
        assert_eq!(c.send("PUT", "/blob/x", &headers, &twice).await.status, 415);
    }
    for unknown in ["br", "deflate", "compress", "zstd;q=1", "zstd gzip", "*", "\u{e9}"] {
        refused(unknown, &pack("zstd", &plain), 415, "UNSUPPORTED_ENCODING").await;
    }
    refused("zstd", &pack("gzip", &plain), 400, "INVALID_ENCODING").await;
    // A wrong length, and chunks that end too early.
    let good = pack("zstd", &plain);
    let head = |more: &str| {
        let auth = format!("Authorization: Bearer {}", super::TOKEN);
        format!(
            "PUT /blob/x HTTP/1.1\r\nHost: p\r\n{auth}\r\nContent-MD5: new\r\nContent-Encoding: zstd\r\n{more}\r\n\r\n"
        )
    };
    let mut cut = running.client().await;
    cut.write(&[head("Content-Length: 99999").as_bytes(), &good].concat()).await;
    drop(cut);
    let mut cut = running.client().await;
    let chunk = format!("{:x}\r\n", good.len() - 1);
    cut.write(
        &[head("Transfer-Encoding: chunked").as_bytes(), chunk.as_bytes(), &good[1..], b"\r\n0\r\n\r\n"].concat(),
    )
    .await;
    assert_eq!(cut.reply("PUT").await.code(), "INVALID_ENCODING");
    assert_eq!(c.get("/sync").await.json()["index_cursor"], 0, "nothing was written");
}

#[tokio::test]
async fn compression_bomb_is_refused() {
    let mut options = options();
    options.max_body = 8 << 20;
    let running = Running::start_with(Arc::new(MemoryStore::new()), options).await;
    for (coding, bomb) in [
        // Unpacked, the largest allowed body would be a quarter of a terabyte.
        ("zstd", zstd_bomb(400 << 30, 23)),
        ("gzip", gzip_bomb(200 << 20)),
        ("zstd", zstd_bomb((8 << 20) + 1, 20)),
        ("gzip", gzip_bomb((8 << 20) + 1)),
    ] {
        let bomb = &bomb[..bomb.len().min(8 << 20)];
        for (method, target) in [("PUT", "/blob/x"), ("PUT", "/n/blob/x"), ("POST", "/batch")] {
            let mut c = running.client().await;
            let headers = [
                ("Content-MD5", "new"),
                ("If-Match-Version", "0"),
                ("Content-Type", frames::TYPE),
                ("Content-Encoding", coding),
            ];
            let headers = if target.starts_with("/n") { &headers[1..] } else { &headers[..] };
            let r = c.try_send(method, target, headers, bomb).await.unwrap();
            assert_eq!((r.status, r.code().as_str()), (413, "TOO_LARGE"), "{coding} {target}");
        }
    }
    let mut c = running.client().await;
    // Exactly the size limit, and a window beyond its limit.
    let fits = zstd_bomb(8 << 20, 20);
    assert_eq!(put(&mut c, "/blob/fits", "zstd", &fits).await.status, 201);
    let r = put(&mut c, "/blob/x", "zstd", &zstd_bomb(1000, 24)).await;
    assert_eq!((r.status, r.code().as_str()), (413, "TOO_LARGE"));
    let mut c = running.client().await;
    // Endless empty frames: the packed size is limited too.
    let empty = zstd_bomb(1, 10).repeat((8 << 20) / 10 + 1);
    assert_eq!(put(&mut c, "/blob/x", "zstd", &empty).await.status, 413);
    let mut c = running.client().await;
    assert_eq!(c.get("/blob/fits").await.body.len(), 8 << 20);
    assert_eq!(c.get("/sync").await.json()["index_cursor"], 1, "nothing else was written");
}
