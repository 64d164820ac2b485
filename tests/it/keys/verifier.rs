//! Tokens that an external service verifies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use memsync::proxy::{ProxyOptions, VerifierOptions};
use memsync::testing::MemoryStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Log, client};
use crate::common::proxy::{Client, Running, head};

/// A verifier that counts its questions.
struct Service {
    url: String,
    asked: Arc<AtomicUsize>,
    last: Arc<std::sync::Mutex<String>>,
    /// Questions wait until this allows answers.
    answers: watch::Sender<bool>,
    /// Questions in flight now, and their highest number so far.
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Service {
    /// Gives every question the same `answer`: status line, headers and body. An empty one is never sent.
    async fn start(answer: &'static str) -> Self {
        Self::start_with(move |_| answer).await
    }

    /// Like [`Service::start`], with an answer that depends on the question.
    async fn start_with(answer: impl Fn(&str) -> &'static str + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/auth", listener.local_addr().unwrap());
        let service = Self {
            url,
            asked: Arc::default(),
            last: Arc::default(),
            answers: watch::Sender::new(true),
            open: Arc::default(),
            most: Arc::default(),
        };
        let (asked, last, answers) = (service.asked.clone(), service.last.clone(), service.answers.subscribe());
        let (open, most) = (service.open.clone(), service.most.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (asked, last, answer) = (asked.clone(), last.clone(), answer.clone());
                let (open, most, mut answers) = (open.clone(), most.clone(), answers.clone());
                tokio::spawn(async move {
                    let mut question = Vec::new();
                    while !question.ends_with(b"}") && stream.read_buf(&mut question).await.is_ok_and(|n| n > 0) {}
                    let question = String::from_utf8(question).unwrap();
                    let answer = answer(&question);
                    *last.lock().unwrap() = question;
                    most.fetch_max(1 + open.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                    asked.fetch_add(1, Ordering::SeqCst);
                    if answer.is_empty() {
                        std::future::pending::<()>().await;
                    }
                    // The test has ended.
                    let _ = answers.wait_for(|now| *now).await;
                    // Counted before the proxy can send the next question.
                    open.fetch_sub(1, Ordering::SeqCst);
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        service
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn proxy(&self, change: impl Fn(&mut VerifierOptions)) -> Running {
        proxy(self.url.clone(), change).await
    }
}

async fn proxy(url: String, change: impl Fn(&mut VerifierOptions)) -> Running {
    let mut verifier = VerifierOptions::new(url, None);
    change(&mut verifier);
    let options = ProxyOptions { verifier: Some(verifier), ..ProxyOptions::default() };
    Running::start_with(Arc::new(MemoryStore::new()), options).await
}

const ANA: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 29\r\nConnection: close\r\n\r\n{\"user_id\":\"ana\",\"plan\":null}";
const NOBODY: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

async fn status(running: &Running, token: &str) -> u16 {
    client(running, token).await.get("/sync").await.status
}

#[tokio::test]
async fn valid_token_is_verified_once_per_cache_period() {
    let service = Service::start(ANA).await;
    let running = service.proxy(|v| v.app_id = Some("memory".to_owned())).await;
    let calls = (0..20).map(|_| {
        let addr = running.addr;
        tokio::spawn(async move {
            let mut c = Client::connect(addr).await;
            c.token = "theirs".to_owned();
            c.put("/blob/x", "new", b"x").await.status
        })
    });
    let statuses: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert!(statuses.contains(&201) && statuses.iter().all(|s| [201, 412].contains(s)), "{statuses:?}");
    assert_eq!((status(&running, "theirs").await, service.asked()), (200, 1));
    let question = service.last.lock().unwrap().clone();
    assert!(question.starts_with("POST /auth/verify HTTP/1.1\r\n"), "{question}");
    assert!(question.ends_with(r#"{"api_key":"theirs","app_id":"memory"}"#), "{question}");
    assert_eq!((status(&running, "another").await, service.asked()), (200, 2));
    assert!(!service.last.lock().unwrap().contains("theirs"));

    let forgetful = service.proxy(|v| v.cache_valid = Duration::ZERO).await;
    for n in 3..6 {
        assert_eq!((status(&forgetful, "theirs").await, service.asked()), (200, n));
    }
    assert!(service.last.lock().unwrap().ends_with(r#"{"api_key":"theirs"}"#));
}

const BEN: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 29\r\nConnection: close\r\n\r\n{\"user_id\":\"ben\",\"plan\":null}";
const HOSTILE: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 29\r\nConnection: close\r\n\r\n{\"user_id\":\"../\",\"plan\":null}";

#[tokio::test]
async fn verified_user_is_limited_to_its_namespaces() {
    let whose = |question: &str| match question {
        q if q.contains("of-ana") => ANA,
        q if q.contains("of-ben") => BEN,
        _ => HOSTILE,
    };
    let service = Service::start_with(whose).await;
    let running = service
        .proxy(|v| {
            v.namespaces = Some(vec!["users/{user_id}/*".parse().unwrap(), "shared".parse().unwrap()]);
            v.quota = Some(100);
        })
        .await;
    let put = async |token: &str, target: &str, size: usize| {
        let mut c = client(&running, token).await;
        let r = c.send("PUT", target, &[("If-Match-Version", "0")], &vec![b'x'; size]).await;
        (r.status, if r.status < 300 { String::new() } else { r.code() })
    };
    let forbidden = || (403, "NAMESPACE_FORBIDDEN".to_owned());
    assert_eq!(put("of-ana", "/users/ana/notes/blob/a", 60).await, (201, String::new()));
    assert_eq!(put("of-ben", "/users/ana/notes/blob/b", 1).await, forbidden());
    assert_eq!(put("of-ben", "/users/ben/notes/blob/b", 60).await, (201, String::new()));
    assert_eq!(put("of-hostile", "/users/ana/notes/blob/c", 1).await, forbidden());
    assert_eq!(client(&running, "of-ben").await.get("/sync/users/ana/notes").await.status, 403);
    assert_eq!(client(&running, "of-ana").await.get("/sync").await.status, 403, "nor is the flat namespace theirs");
    assert_eq!(put("of-ana", "/users/ana/more/blob/a", 60).await, (507, "QUOTA_EXCEEDED".to_owned()));
    assert_eq!(put("of-ana", "/shared/blob/a", 40).await, (201, String::new()));
}

#[tokio::test]
async fn invalid_token_is_refused_and_cached() {
    let service = Service::start(NOBODY).await;
    let running = service.proxy(|v| v.cache_invalid = Duration::from_secs(600)).await;
    for _ in 0..3 {
        assert_eq!((status(&running, "bad").await, service.asked()), (401, 1));
    }
    let forgetful = service.proxy(|v| v.cache_invalid = Duration::ZERO).await;
    assert_eq!((status(&forgetful, "bad").await, status(&forgetful, "bad").await, service.asked()), (401, 401, 3));
    // A token in the form of a key is not sent to the service.
    let key = format!("mk_{}_{}", "0".repeat(10), "0".repeat(64));
    assert_eq!((status(&running, &key).await, service.asked()), (401, 3));
}

#[tokio::test]
async fn broken_verifier_gives_503() {
    for answer in [
        "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 302 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"name\":\"ana\"}",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{\"user_id\":\"ana\"}",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\nConnection: close\r\n\r\n{\"user_id\":\"ana\"}",
        "SSH-2.0-OpenSSH\r\n",
        "",
    ] {
        let service = Service::start(answer).await;
        // Only a silent service causes a wait.
        let timeout = if answer.is_empty() { Duration::from_millis(300) } else { Duration::from_secs(20) };
        let running = service.proxy(|v| v.timeout = timeout).await;
        let r = client(&running, "theirs").await.get("/sync").await;
        assert_eq!((r.status, r.code().as_str()), (503, "AUTH_UNAVAILABLE"), "{answer}");
        assert!(r.header("retry-after").is_some());
        assert_eq!(status(&running, "theirs").await, 503);
        assert_eq!(service.asked(), 2, "a failure is not cached");
    }
    let unreachable = proxy("http://127.0.0.1:1".to_owned(), |_| {}).await;
    assert_eq!(status(&unreachable, "theirs").await, 503, "nothing listens there");
}

#[tokio::test]
async fn verifier_gets_at_most_sixteen_questions_at_once() {
    let service = Service::start(ANA).await;
    service.answers.send_replace(false);
    let running = service.proxy(|v| v.timeout = Duration::from_secs(60)).await;
    let mut callers = Vec::new();
    for n in 0..60 {
        let mut c = running.client().await;
        c.write(&head("GET", "/sync", &[("Authorization", format!("Bearer token-{n}"))])).await;
        callers.push(c);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while service.asked() < 16 {
        assert!(tokio::time::Instant::now() < deadline, "{} were asked about", service.asked());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    service.answers.send_replace(true);
    for mut c in callers {
        assert_eq!(c.reply("GET").await.status, 200);
    }
    assert_eq!((service.asked(), service.most.load(Ordering::SeqCst)), (60, 16));
}

#[tokio::test]
async fn slow_verifier_delays_requests_only_briefly() {
    let service = Service::start("").await;
    let running = service.proxy(|v| v.timeout = Duration::from_secs(3)).await;
    let calls = (0..60).map(|n| {
        let addr = running.addr;
        tokio::spawn(async move {
            let mut c = Client::connect(addr).await;
            c.token = format!("token-{n}");
            c.get("/sync").await.status
        })
    });
    let statuses: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    assert!(service.asked() < 60, "questions that wait for a permit time out first");
}

/// Invented tokens of clients that hang up do not delay tokens that were valid before.
#[tokio::test]
async fn guesser_that_hangs_up_is_counted_and_delays_no_user() {
    let service = Service::start_with(|question| if question.contains("\"good\"") { ANA } else { "" }).await;
    let running = service.proxy(|v| (v.timeout, v.cache_valid) = (Duration::from_secs(20), Duration::ZERO)).await;
    assert_eq!(status(&running, "good").await, 200);
    // As many as may be in flight at once, and some that wait.
    let mut guessers = Vec::new();
    for n in 0..18 {
        let mut c = running.client().await;
        c.write(&head("GET", "/sync", &[("Authorization", format!("Bearer made-up-{n}"))])).await;
        guessers.push(c);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while service.asked() < 1 + 16 {
        assert!(tokio::time::Instant::now() < deadline, "{} were asked about", service.asked());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(status(&running, "good").await, 200, "it has turns of its own");
    drop(guessers);

    // Hanging up counts as a failure. After a few the address is blocked, and its tokens are not verified.
    let options = ProxyOptions {
        verifier: Some(VerifierOptions {
            timeout: Duration::from_secs(2),
            ..VerifierOptions::new(service.url.clone(), None)
        }),
        failed_attempts: std::num::NonZeroU32::new(3).unwrap(),
        ..ProxyOptions::default()
    };
    let strict = Running::start_with(Arc::new(MemoryStore::new()), options).await;
    for n in 0..4 {
        let (before, mut c) = (service.asked(), strict.client().await);
        c.write(&head("GET", "/sync", &[("Authorization", format!("Bearer gone-{n}"))])).await;
        while service.asked() == before {
            assert!(tokio::time::Instant::now() < deadline, "it was asked about");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    while status(&strict, "yet-another").await != 429 {
        assert!(tokio::time::Instant::now() < deadline, "clients that hung up are counted");
    }
    let asked = service.asked();
    assert_eq!((status(&strict, "one-more").await, service.asked()), (429, asked));
}

#[tokio::test(flavor = "current_thread")]
async fn verified_token_is_not_logged() {
    let log = Log::default();
    let _guard = log.listen();
    let service = Service::start(ANA).await;
    let running = service.proxy(|_| {}).await;
    assert_eq!(status(&running, "s3cret-of-ana").await, 200);
    let useless = proxy("http://user:pa55word@127.0.0.1:1".to_owned(), |_| {}).await;
    assert_eq!(status(&useless, "s3cret-of-bo").await, 503);
    let log = log.text();
    assert!(log.contains("the verifier at 127.0.0.1 is of no use"), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
    let ours: Vec<_> = log.lines().filter(|line| line.contains("memsync")).collect();
    assert!(!ours.iter().any(|line| line.contains("pa55word")), "{ours:?}");
}

#[tokio::test]
async fn invalid_verifier_address_prevents_the_start() {
    let verifier = Some(VerifierOptions::new("auth.example.org".to_owned(), None));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ProxyOptions { verifier, ..ProxyOptions::default() };
    let ended = memsync::proxy::serve(listener, Arc::new(MemoryStore::new()), options, std::future::pending()).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}
