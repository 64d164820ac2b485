//! The proxy over TLS: pinned certificates, their renewal, and plain HTTP on the TLS port.

use std::sync::Arc;
use std::time::Duration;

use memsync::protocol::Pin;
use memsync::proxy::ProxyOptions;
use memsync::proxy::tls::{ServerTls, TlsIdentity};
use memsync::remote::RemoteError;
use memsync::remote::http::{HttpOptions, HttpRemote};
use memsync::testing::MemoryStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::bearer;
use crate::common::proxy::{Running, TOKEN, head, options};

/// A certificate for `localhost`, as PEM, and its identity.
fn certificate() -> (String, TlsIdentity) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let pem = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
    let identity = TlsIdentity::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    (pem, identity)
}

struct Encrypted {
    running: Running,
    pem: String,
    pin: Pin,
    tls: ServerTls,
}

async fn start(change: impl FnOnce(&mut ProxyOptions)) -> Encrypted {
    let (pem, identity) = certificate();
    let pin = identity.pin();
    let tls = ServerTls::new(identity, false);
    let mut options = ProxyOptions { tls: Some(tls.clone()), ..options() };
    change(&mut options);
    Encrypted { running: Running::start_with(Arc::new(MemoryStore::new()), options).await, pem, pin, tls }
}

impl Encrypted {
    fn remote(&self, pin: Pin) -> HttpRemote {
        HttpRemote::new(HttpOptions {
            origin: format!("https://{}", self.running.addr),
            token: TOKEN.replace(' ', "-").into(),
            namespace: String::new(),
            device: String::new(),
            ca_pem: None,
            pin: Some(pin),
            allow_http: false,
            timeout: Duration::from_secs(20),
            max_file_size: 1 << 20,
            concurrency: 1,
        })
        .unwrap()
    }

    /// A connection that trusts the certificate as an authority.
    async fn connect(&self) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.running.addr).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }
}

/// Sends a request and reads until `end` comes or the connection ends.
async fn ask(stream: &mut TlsStream<TcpStream>, request: &[u8], end: &str) -> String {
    stream.write_all(request).await.unwrap();
    read_until(stream, end).await
}

async fn read_until(stream: &mut TlsStream<TcpStream>, end: &str) -> String {
    let mut text = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut piece)).await.expect("within 20 s");
        match read {
            Ok(n) if n > 0 => text.extend_from_slice(&piece[..n]),
            _ => break,
        }
        if !end.is_empty() && String::from_utf8_lossy(&text).contains(end) {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn agent_trusts_only_the_pinned_certificate() {
    let proxy = start(|options| options.token = Some(TOKEN.replace(' ', "-").into())).await;
    let remote = proxy.remote(proxy.pin);
    assert_eq!(remote.health().await.unwrap().status, "ok");
    let (_, other) = certificate();
    match proxy.remote(other.pin()).health().await {
        Err(RemoteError::Unreachable { why, .. }) => {
            assert!(why.contains("proxy.pin") && why.contains(&proxy.pin.to_string()), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

/// A server that shows the right certificate and lacks its key.
#[tokio::test]
async fn copied_certificate_without_its_key_is_refused() {
    let (pem, identity) = certificate();
    let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
    let other = rcgen::KeyPair::generate().unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(other.serialize_pem().as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    #[derive(Debug)]
    struct Always(Arc<rustls::sign::CertifiedKey>);
    impl rustls::server::ResolvesServerCert for Always {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(self.0.clone())
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Always(Arc::new(rustls::sign::CertifiedKey::new(chain, key)))));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let thief = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.map(drop).unwrap_err()
    });
    let remote = HttpRemote::new(HttpOptions {
        origin: format!("https://{addr}"),
        token: "t".into(),
        namespace: String::new(),
        device: String::new(),
        ca_pem: None,
        pin: Some(identity.pin()),
        allow_http: false,
        timeout: Duration::from_secs(20),
        max_file_size: 1,
        concurrency: 1,
    });
    assert!(matches!(remote.unwrap().health().await, Err(RemoteError::Unreachable { .. })));
    thief.await.unwrap();
}

#[tokio::test]
async fn replaced_certificate_is_used_for_new_connections() {
    let mut proxy = start(|_| ()).await;
    let mut before = proxy.connect().await;
    assert!(ask(&mut before, &head("GET", "/health", &[]), "}").await.starts_with("HTTP/1.1 200"));
    let (pem, identity) = certificate();
    let old = std::mem::replace(&mut proxy.pin, identity.pin());
    proxy.tls.replace(identity);
    assert!(ask(&mut before, &head("GET", "/sync", &[bearer()]), "}").await.starts_with("HTTP/1.1 200"));
    proxy.pem = pem;
    let mut after = proxy.connect().await;
    assert!(ask(&mut after, &head("GET", "/health", &[]), "}").await.starts_with("HTTP/1.1 200"));
    assert!(proxy.remote(old).health().await.is_err());
    assert!(proxy.remote(proxy.pin).health().await.is_ok());
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_400() {
    let proxy = start(|_| ()).await;
    let mut c = proxy.running.client().await;
    c.write(&head("PUT", "/blob/x", &[bearer(), ("Content-Length", "3".into())])).await;
    c.write(b"abc").await;
    let r = c.reply("PUT").await;
    assert_eq!((r.status, r.code().as_str()), (400, "TLS_REQUIRED"));
    c.wait_for_end().await;
    let mut c = proxy.running.client().await;
    c.write(b"\x16\x03\x01\x00\x05hello").await;
    c.wait_for_end().await;
}

#[tokio::test]
async fn local_plain_http_may_be_allowed() {
    let (_, identity) = certificate();
    let mut options = options();
    options.tls = Some(ServerTls::new(identity, true));
    let running = Running::start_with(Arc::new(MemoryStore::new()), options).await;
    assert_eq!(running.client().await.get("/sync").await.status, 200);
}

#[tokio::test]
async fn peer_that_stalls_in_the_handshake_is_cut_off() {
    let proxy = start(|options| options.head_timeout = Duration::from_millis(200)).await;
    for said in [&b""[..], b"\x16", b"GET / HT"] {
        let mut c = proxy.running.client().await;
        c.write(said).await;
        c.wait_for_end().await;
    }
    // Long enough for a handshake.
    let proxy = start(|options| options.head_timeout = Duration::from_secs(3)).await;
    let mut c = proxy.connect().await;
    assert_eq!(ask(&mut c, b"GET /health HTTP/1.1\r\nHos", "").await, "");
}

#[tokio::test]
async fn encrypted_event_stream_ends_when_the_proxy_stops() {
    let proxy = start(|options| options.stop_timeout = Duration::from_secs(60)).await;
    let mut events = proxy.connect().await;
    ask(&mut events, &head("GET", "/events", &[bearer()]), ": connected\n\n").await;
    let mut c = proxy.connect().await;
    let put = [bearer(), ("Content-MD5", "new".into()), ("Content-Length", "1".into())];
    let answer = ask(&mut c, &[head("PUT", "/blob/a", &put), b"x".to_vec()].concat(), "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(read_until(&mut events, "id: 1\n").await.contains("\"path\":\"a\""));
    // The request in flight is finished, and idle connections end.
    c.write_all(&head("PUT", "/blob/b", &[&put[..], &[("Expect", "100-continue".into())]].concat())).await.unwrap();
    assert!(read_until(&mut c, "\r\n\r\n").await.contains(" 100 "));
    let Encrypted { running, .. } = proxy;
    let stopping = tokio::spawn(running.stop());
    read_until(&mut events, "\n0\r\n\r\n").await;
    c.write_all(b"y").await.unwrap();
    assert!(read_until(&mut c, "").await.contains("HTTP/1.1 201"));
    stopping.await.unwrap();
}
