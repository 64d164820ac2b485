//! Certificates: a known authority, an unknown one, another name, and a machine without any.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use memsync::remote::RemoteError;
use memsync::remote::http::{HttpOptions, HttpRemote, OptionsError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::remote_http::options;
use crate::remote_http::server::{DEADLINE, Server, reply};

/// A certificate authority for this test, valid for a century. Its key no longer exists.
const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUabOxXN9UsvSxUaCo10tB5RMgNDEwCgYIKoZIzj0EAwIw
GjEYMBYGA1UEAwwPbWVtc3luYyB0ZXN0IENBMCAXDTI2MTEyMDEwMjkwMFoYDzIx
MjYxMDI3MTAyOTAwWjAaMRgwFgYDVQQDDA9tZW1zeW5jIHRlc3QgQ0EwWTATBgcq
hkjOPQIBBggqhkjOPQMBBwNCAAQt6rUtfy23EgcjMGfShh3aW+HXh4p00TqkWmtC
1U+JY+VTeRkukEeAI949W+5GVTW/6iiThG/4vfGjwgUXHmp+o2MwYTAdBgNVHQ4E
FgQU+RViS0skIHu6lLQdru70qQPgZT8wHwYDVR0jBBgwFoAU+RViS0skIHu6lLQd
ru70qQPgZT8wDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAgQwCgYIKoZI
zj0EAwIDSAAwRQIhAIlQ5hswMeMmOtFVJ4ePIkgWRS7goneGbuOpQalWJfeWAiBa
Js4W+1wnJGNVg4GOmNtW+0TM6vt9+2QYoV9gu8JOJQ==
-----END CERTIFICATE-----
";
/// A certificate of that authority, for `localhost` only.
const CERT: &str = "\
-----BEGIN CERTIFICATE-----
MIIBqjCCAVCgAwIBAgIUBsKVpoIfHItu50phnGxy3itF0ocwCgYIKoZIzj0EAwIw
GjEYMBYGA1UEAwwPbWVtc3luYyB0ZXN0IENBMCAXDTI2MTEyMDEwMjkwMFoYDzIx
MjYxMDI3MTAyOTAwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAAR08Zql2WqwtOYF5rFkSePszb7yUwtiXsg5v+wNhTO3Jax2
iw07k+rKwX6wg3F3Qy6HpYQELRujdfsVQ1xv43vlo3gwdjAJBgNVHRMEAjAAMBQG
A1UdEQQNMAuCCWxvY2FsaG9zdDATBgNVHSUEDDAKBggrBgEFBQcDATAdBgNVHQ4E
FgQUDnnukFE1zOW5weQZlbeIpQ4H2bYwHwYDVR0jBBgwFoAU+RViS0skIHu6lLQd
ru70qQPgZT8wCgYIKoZIzj0EAwIDSAAwRQIgHb1PzI6cAjDwGUZSm01XixvTJRRP
wf0WImVkywGl8mACIQDHVUFImubpLIaEGf6LtxoAV87Ho2ZW2/9nDqWR4gnlrA==
-----END CERTIFICATE-----
";
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgLlE2eD28Q6rVzanu
ZWFKVz4uXq1EA1Z/RhSR1ge/slqhRANCAAR08Zql2WqwtOYF5rFkSePszb7yUwti
Xsg5v+wNhTO3Jax2iw07k+rKwX6wg3F3Qy6HpYQELRujdfsVQ1xv43vl
-----END PRIVATE KEY-----
";

/// Answers connections over TLS like `/health`, until the test process ends.
fn serve() -> SocketAddr {
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(CERT.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let socket = socket.unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            // A client that refused the certificate has closed.
            drop(stream.write_all(&reply(200, &[], br#"{"status":"ok","storage":"connected"}"#).bytes));
            drop(stream.flush());
        }
    });
    address
}

async fn why(options: HttpOptions) -> String {
    match HttpRemote::new(options).unwrap().health().await {
        Err(RemoteError::Unreachable { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn certificate_needs_a_known_authority_and_the_name() {
    let address = serve();
    let origin = format!("https://localhost:{}", address.port());
    let ca = HttpOptions { ca_pem: Some(CA.into()), ..options(&origin) };
    assert_eq!(HttpRemote::new(ca.clone()).unwrap().health().await.unwrap().status, "ok");
    let unknown = why(options(&origin)).await;
    assert!(unknown.contains("proxy.ca_file"), "{unknown}");
    let name = why(HttpOptions { origin: format!("https://127.0.0.1:{}", address.port()), ..ca.clone() }).await;
    assert!(name.contains("another name"), "{name}");
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("https://{}", plain.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut socket, _) = plain.accept().unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").unwrap();
        // Keep the connection until the client closes.
        drop(socket.read_to_end(&mut Vec::new()));
    });
    let no_tls = why(HttpOptions { origin, ..ca }).await;
    assert!(no_tls.contains("does not speak TLS"), "{no_tls}");
}

#[test]
fn ca_file_needs_a_certificate() {
    for bad in ["", "hello", KEY, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let result = HttpRemote::new(HttpOptions { ca_pem: Some(bad.into()), ..options("https://localhost") });
        assert!(matches!(result, Err(OptionsError::Ca(_) | OptionsError::Client(_))), "{bad}: {result:?}");
    }
}

const BARE: &str = "MEMSYNC_TEST_WITHOUT_BUNDLE";

/// The test runs itself in a process without a system bundle and with a web proxy in the environment. Loopback traffic
/// must not use that proxy.
#[tokio::test]
async fn client_works_without_system_certificates() {
    #[expect(clippy::disallowed_methods, reason = "tells the child of this test from its parent")]
    let parent = std::env::var_os(BARE).is_none();
    if parent {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "remote_http::tls::client_works_without_system_certificates", "--nocapture"])
            .env(BARE, "1")
            .env("SSL_CERT_FILE", "/nonexistent/bundle.pem")
            .env("SSL_CERT_DIR", "/nonexistent")
            .envs(
                ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
                    .map(|v| (v, "http://127.0.0.1:9")),
            )
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let plain = Server::start(&[], |_| reply(404, &[], b"")).await;
    assert_eq!(crate::remote_http::remote(&plain).health().await.unwrap().status, "ok");
    let origin = format!("https://localhost:{}", serve().port());
    let unknown = why(options(&origin)).await;
    assert!(unknown.contains("proxy.ca_file"), "{unknown}");
    let ca = HttpOptions { ca_pem: Some(CA.into()), ..options(&origin) };
    assert_eq!(HttpRemote::new(ca).unwrap().health().await.unwrap().status, "ok");
}
