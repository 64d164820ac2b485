//! Hostile clients: floods, huge requests, false lengths, guessed tokens, and connections held open.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use memsync::proxy::keys::{self, KeySpec};
use memsync::testing::MemoryStore;
use secrecy::ExposeSecret;
use tokio::io::AsyncWriteExt;

use super::bearer;
use crate::common::packed::{pack, text, zstd_bomb};
use crate::common::proxy::{Client, Reply, Running, TOKEN, head, options};

async fn memory(change: impl FnOnce(&mut memsync::proxy::ProxyOptions)) -> Running {
    let mut options = options();
    change(&mut options);
    Running::start_with(Arc::new(MemoryStore::new()), options).await
}

/// Sends pieces until the proxy stops reading them. Gives its response, if any.
async fn pour(c: &mut Client, pieces: impl Iterator<Item = Vec<u8>>) -> Option<Reply> {
    for piece in pieces {
        if c.stream.write_all(&piece).await.is_err() {
            break;
        }
    }
    c.try_reply("GET").await
}

#[tokio::test]
async fn path_of_ten_megabytes_is_refused() {
    let running = memory(|_| ()).await;
    for unit in ["x", "x/", "%2e%2e/", "%"] {
        let mut c = running.client().await;
        let begin = std::iter::once(b"GET /blob/".to_vec());
        let many = std::iter::repeat_n(unit.repeat(10_000).into_bytes(), 10_000_000 / unit.len() / 10_000);
        let r = pour(&mut c, begin.chain(many).chain([b" HTTP/1.1\r\nHost: p\r\n\r\n".to_vec()])).await;
        // The connection may end before the response arrives.
        assert!(r.is_none_or(|r| matches!(r.status, 414 | 431)), "{unit}");
    }
    let mut c = running.client().await;
    for unit in ["x", "%41", "y/"] {
        let r = c.get(&format!("/blob/{}", unit.repeat(4_000))).await;
        assert_eq!((r.status, r.code().as_str()), (414, "PATH_TOO_LONG"), "{unit}");
    }
    assert_eq!(c.get("/sync").await.status, 200);
}

#[tokio::test]
async fn flood_of_headers_is_refused() {
    let running = memory(|_| ()).await;
    let many: Vec<(String, String)> = (0..101).map(|n| (format!("X-{n}"), "v".to_owned())).collect();
    let many: Vec<(&str, String)> = many.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    let mut c = running.client().await;
    c.write(&head("GET", "/health", &many)).await;
    assert_eq!(c.reply("GET").await.status, 431);
    c.wait_for_end().await;
    // Headers without end, and one header without end.
    for line in ["X-Flood: 0123456789012345678901234567890123456789\r\n", "0123456789"] {
        let mut c = running.client().await;
        let begin = std::iter::once(b"GET /health HTTP/1.1\r\nX: ".to_vec());
        let r = pour(&mut c, begin.chain(std::iter::repeat_n(line.repeat(100).into_bytes(), 2_000))).await;
        assert!(r.is_none_or(|r| r.status == 431 || r.status == 400), "{line}");
    }
    assert_eq!(running.client().await.get("/sync").await.status, 200);
}

#[tokio::test]
async fn false_content_length_writes_nothing() {
    let running = memory(|_| ()).await;
    let put = |more: &[(&'static str, &str)]| {
        let mut headers = vec![bearer(), ("Content-MD5", "new".to_owned())];
        headers.extend(more.iter().map(|(n, v)| (*n, (*v).to_owned())));
        head("PUT", "/blob/x", &headers)
    };
    for lie in [
        &[("Content-Length", "-1")][..],
        &[("Content-Length", "1x")],
        &[("Content-Length", "99999999999999999999999")],
        &[("Content-Length", "3"), ("Content-Length", "4")],
        &[("Content-Length", "3, 4")],
        &[("Transfer-Encoding", "chunked, gzip")],
        &[("Transfer-Encoding", "gzip")],
    ] {
        let mut c = running.client().await;
        c.write(&[put(lie), b"abc".to_vec()].concat()).await;
        let r = c.try_reply("PUT").await;
        assert!(r.as_ref().is_none_or(|r| r.status == 400 || r.status == 413 || r.status == 501), "{lie:?} {r:?}");
        c.wait_for_end().await;
        assert_eq!(running.client().await.get("/blob/x").await.status, 404, "{lie:?}");
    }
    // With both lengths the chunks count (RFC 9112, section 6.3). Bytes that a reverse proxy took for more of the body are
    // a new request, which needs a token of its own.
    let mut c = running.client().await;
    assert_eq!(c.put("/blob/there", "new", b"stays").await.status, 201);
    let smuggled = head("DELETE", "/blob/there", &[]);
    let length = (smuggled.len() + 5).to_string();
    let both = put(&[("Content-Length", &length), ("Transfer-Encoding", "chunked")]);
    c.write(&[both, b"0\r\n\r\n".to_vec(), smuggled].concat()).await;
    let first = c.try_reply("PUT").await;
    assert!(first.is_none_or(|r| r.status == 400 || r.status == 201));
    assert!(c.try_reply("DELETE").await.is_none_or(|r| r.status == 401), "it has no token");
    let mut c = running.client().await;
    assert_eq!(c.get("/blob/there").await.body, b"stays");
    let x = c.get("/blob/x").await;
    assert!(x.status == 404 || (x.status, x.body.len()) == (200, 0), "{x:?}");
    // Malformed chunks.
    for chunk in ["zz\r\nabc\r\n", "ffffffffffffffffff\r\nabc", "3\r\nabcdef\r\n0\r\n\r\n", "-3\r\nabc\r\n"] {
        let mut c = running.client().await;
        c.write(
            &[
                head(
                    "PUT",
                    "/blob/y",
                    &[bearer(), ("Content-MD5", "new".into()), ("Transfer-Encoding", "chunked".into())],
                ),
                chunk.into(),
            ]
            .concat(),
        )
        .await;
        let r = c.try_reply("PUT").await;
        assert!(r.is_none_or(|r| r.status == 400), "{chunk}");
    }
    assert_eq!(running.client().await.get("/blob/y").await.status, 404);
}

#[tokio::test]
async fn name_is_decoded_only_once() {
    let running = memory(|_| ()).await;
    let mut c = running.client().await;
    for (name, status) in [
        ("%252e%252e%252fetc", 201),
        ("%25252e", 201),
        ("%2e%2e%2f%2e%2e%2fetc", 400),
        ("%2e%2e%5c", 400),
        ("..%2f", 400),
        ("a%2f%2e%2e%2fb", 400),
        ("%c0%af", 400),
        ("%e0%80%af", 400),
        ("%u002e", 400),
        ("%00", 400),
        ("a%0d%0aX-Evil:%201", 400),
    ] {
        assert_eq!(c.put(&format!("/blob/{name}"), "new", b"x").await.status, status, "{name}");
    }
    let files = c.get("/sync").await.json()["files"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(files, ["%252e", "%2e%2e%2fetc"]);
}

#[tokio::test]
async fn token_guesser_is_blocked_and_trusted_tokens_pass() {
    let running = memory(|options| options.failed_attempts = NonZeroU32::new(20).unwrap()).await;
    let mut known = running.client().await;
    assert_eq!(known.get("/sync").await.status, 200);
    let guess = async |c: &mut Client, n: usize| {
        c.write(&head("GET", "/sync", &[("Authorization", format!("Bearer guess-{n}"))])).await;
        c.reply("GET").await
    };
    let mut guesser = running.client().await;
    let mut refused = None;
    for n in 0..200 {
        let r = guess(&mut guesser, n).await;
        if r.status == 429 {
            refused = Some((n, r));
            break;
        }
        assert_eq!(r.status, 401);
    }
    let (n, r) = refused.expect("it ends");
    assert!(n >= 20, "{n}");
    assert_eq!(r.code(), "TOO_MANY_REQUESTS");
    let wait: u64 = r.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=4).contains(&wait), "{wait}");
    // A request without a token is no guess, and health needs none.
    guesser.write(&head("GET", "/sync", &[])).await;
    assert_eq!(guesser.reply("GET").await.status, 401);
    assert_eq!(guesser.get("/health").await.status, 200);
    // The valid token was shown from this address before, so it passes on old and new connections.
    assert_eq!(known.get("/sync").await.status, 200);
    assert_eq!(running.client().await.get("/sync").await.status, 200);
}

#[tokio::test]
async fn new_valid_token_waits_until_retry_after() {
    // 600 a minute: one each tenth of a second.
    let running = memory(|options| options.failed_attempts = NonZeroU32::new(600).unwrap()).await;
    let mut c = running.client().await;
    let wrong = head("GET", "/sync", &[("Authorization", "Bearer wrong".to_owned())]);
    loop {
        c.write(&wrong).await;
        if c.reply("GET").await.status == 429 {
            break;
        }
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while c.get("/sync").await.status != 200 {
        assert!(std::time::Instant::now() < deadline, "locked out");
    }
}

#[tokio::test]
async fn honest_client_connects_despite_silent_peers() {
    let running = memory(|options| {
        options.max_connections = 12;
        options.max_unauthenticated = 6;
        options.max_unauthenticated_per_address = 4;
        options.head_timeout = Duration::from_secs(120);
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut c = running.client().await;
        c.write(b"GET /health HTTP/1.1\r\nX: ").await;
        silent.push(c);
    }
    let mut c = running.client().await;
    assert_eq!(c.get("/sync").await.status, 200, "an honest client is served");
    for c in &mut silent[..90] {
        c.wait_for_end().await;
    }
    // A connection with a valid token stays open, however many others come.
    for _ in 0..20 {
        silent.push(running.client().await);
    }
    assert_eq!(c.get("/sync").await.status, 200);
}

#[tokio::test]
async fn connection_without_a_token_may_not_idle() {
    let running = memory(|options| options.head_timeout = Duration::from_millis(200)).await;
    let mut c = running.client().await;
    c.write(&head("GET", "/health", &[])).await;
    assert_eq!(c.reply("GET").await.status, 200);
    c.wait_for_end().await;
}

#[tokio::test]
async fn caller_is_limited_to_its_request_rate() {
    let running = memory(|options| options.rate = NonZeroU32::new(5)).await;
    let mut c = running.client().await;
    let mut answers = Vec::new();
    for _ in 0..100 {
        answers.push(c.get("/sync").await);
    }
    let refused: Vec<_> = answers.iter().filter(|r| r.status == 429).collect();
    assert!(refused.len() > 10 && answers[0].status == 200, "{}", refused.len());
    assert_eq!(refused[0].header("retry-after"), Some("1"));
    c.write(&head("GET", "/health", &[("Authorization", format!("Bearer {TOKEN}"))])).await;
    assert_eq!(c.reply("GET").await.status, 200, "health has no rate limit");
}

/// A proxy with two keys, and their tokens.
async fn two_keys() -> (Running, [String; 2]) {
    two_keys_with(options()).await
}

async fn two_keys_with(options: memsync::proxy::ProxyOptions) -> (Running, [String; 2]) {
    let store = Arc::new(MemoryStore::new());
    let mut tokens = [String::new(), String::new()];
    for token in &mut tokens {
        let made = keys::edit(store.as_ref(), |keys| keys.create_key(&KeySpec::default(), Timestamp::now())).await;
        made.unwrap().token.expose_secret().clone_into(token);
    }
    (Running::start_with(store, options).await, tokens)
}

/// Starts a request and sends `begin` of its body once the proxy asks for it.
async fn unfinished(
    running: &Running,
    token: &str,
    request: (&str, &str),
    more: &[(&str, &str)],
    begin: &[u8],
) -> Client {
    let mut c = running.client().await;
    let mut headers = vec![("Authorization", format!("Bearer {token}")), ("Content-Length", "50000".to_owned())];
    headers.push(("Expect", "100-continue".to_owned()));
    headers.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    c.write(&head(request.0, request.1, &headers)).await;
    if !begin.is_empty() {
        assert_eq!(c.reply(request.0).await.status, 100, "it is being received");
        c.write(begin).await;
    }
    c
}

/// The response, which must come before slow clients are cut off.
async fn soon(answer: impl Future<Output = Reply>) -> Reply {
    tokio::time::timeout(Duration::from_secs(15), answer)
        .await
        .expect("a response within 15 s, in spite of slow clients")
}

#[tokio::test]
async fn slow_batches_of_one_key_do_not_delay_another_key() {
    let (running, [slow, other]) = two_keys().await;
    let mut held = Vec::new();
    for n in 0..20 {
        let kind = [("Content-Type", crate::common::frames::TYPE)];
        // The first requests get memory and are asked for their bodies. The others wait.
        let begin: &[u8] = if n < 4 { b"\0" } else { b"" };
        held.push(unfinished(&running, &slow, ("POST", "/batch"), &kind, begin).await);
    }
    let mut c = running.client().await;
    c.token = other;
    let batch = crate::common::frames::frames(&[(serde_json::json!({"op": "get", "path": "x"}), Vec::new())]);
    let r = soon(c.send("POST", "/batch", &[("Content-Type", crate::common::frames::TYPE)], &batch)).await;
    assert_eq!(r.status, 200);
    drop(held);
}

#[tokio::test]
async fn slow_batches_of_the_proxy_token_do_not_delay_a_key() {
    let (running, [_, other]) = two_keys().await;
    let mut held = Vec::new();
    for n in 0..20 {
        let kind = [("Content-Type", crate::common::frames::TYPE)];
        let begin: &[u8] = if n < 12 { b"\0" } else { b"" };
        held.push(unfinished(&running, TOKEN, ("POST", "/batch"), &kind, begin).await);
    }
    let mut c = running.client().await;
    c.token = other;
    let batch = crate::common::frames::frames(&[(serde_json::json!({"op": "get", "path": "x"}), Vec::new())]);
    let r = soon(c.send("POST", "/batch", &[("Content-Type", crate::common::frames::TYPE)], &batch)).await;
    assert_eq!(r.status, 200);
    drop(held);
}

/// Uploads and responses share one budget.
#[tokio::test]
async fn slow_uploads_of_one_key_delay_only_that_key() {
    let mut options = options();
    // A part is 256 KiB and holds five bodies of 50,000 bytes.
    options.body_memory = 1 << 20;
    options.body_timeout = Duration::from_secs(60);
    let (running, [slow, other]) = two_keys_with(options).await;
    let mut c = running.client().await;
    c.token.clone_from(&other);
    assert_eq!(c.put("/blob/x", "new", &[7; 100_000]).await.status, 201);
    let mut held = Vec::new();
    for n in 0..40 {
        let begin: &[u8] = if n < 5 { b"\0" } else { b"" };
        let target = format!("/blob/slow{n}");
        held.push(unfinished(&running, &slow, ("PUT", &target), &[("Content-MD5", "new")], begin).await);
    }
    let mut waits = running.client().await;
    waits.write(&head("GET", "/blob/x", &[("Authorization", format!("Bearer {slow}"))])).await;
    assert_eq!(soon(c.get("/blob/x")).await.body.len(), 100_000);
    assert_eq!(soon(c.put("/blob/y", "new", &[7; 100_000])).await.status, 201);
    let early = tokio::time::timeout(Duration::from_millis(300), waits.try_reply("GET")).await;
    assert!(early.is_err(), "the memory of its key is used up");
    drop(held);
    assert_eq!(soon(waits.reply("GET")).await.status, 200);
}

#[tokio::test]
async fn slow_packed_bodies_do_not_delay_another_key() {
    let (running, [slow, other]) = two_keys().await;
    let mut held = Vec::new();
    for n in 0..20 {
        // The start of a body that needs the most memory allowed.
        let begin = &zstd_bomb(1 << 30, 23)[..1000];
        let more = [("Content-MD5", "new"), ("Content-Encoding", "zstd")];
        held.push(unfinished(&running, &slow, ("PUT", &format!("/blob/{n}")), &more, begin).await);
    }
    let mut c = running.client().await;
    c.token = other;
    // The large body needs as much memory as a slow one, more than the slow ones could leave.
    for (path, body) in [("/blob/small", pack("zstd", &text(5_000))), ("/blob/large", zstd_bomb(9 << 20, 23))] {
        let r = soon(c.send("PUT", path, &[("Content-MD5", "new"), ("Content-Encoding", "zstd")], &body)).await;
        assert_eq!(r.status, 201, "{path}");
    }
    drop(held);
}
