//! TLS for the proxy: its certificate and the handshake.
//!
//! It reads no files. The certificate can be replaced while the proxy serves; open connections keep theirs.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::protocol::Pin;

/// The first byte of every TLS connection: a handshake record (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// The response to plain HTTP.
const TLS_REQUIRED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n\
    content-length: 88\r\n\r\n\
    {\"detail\":\"this port speaks TLS: use https\",\"error_code\":\"TLS_REQUIRED\",\"context\":null}\n";

/// A certificate and a key that cannot be used. The text never contains the key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate file holds no certificate in PEM form")]
    NoCertificate,
    #[error("the certificate file is not PEM: {0}")]
    Certificate(String),
    #[error("the key file holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1, not encrypted)")]
    NoKey,
    #[error("certificate and key cannot be used together: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A certificate chain and the key of its first certificate.
pub struct TlsIdentity {
    config: Arc<ServerConfig>,
    pin: Pin,
}

impl TlsIdentity {
    /// From PEM: the proxy's certificate first, then those of intermediate authorities.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, PemError>>();
        let chain = chain.map_err(|e| IdentityError::Certificate(e.to_string()))?;
        let pin = Pin::of(chain.first().ok_or(IdentityError::NoCertificate)?);
        // The error could quote the file.
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| IdentityError::NoKey)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), pin })
    }

    /// The fingerprint of its certificate.
    pub fn pin(&self) -> Pin {
        self.pin
    }
}

/// The current identity. Clones share it.
#[derive(Clone)]
pub struct ServerTls {
    current: Arc<RwLock<Arc<ServerConfig>>>,
    allows_local_plain: bool,
}

impl ServerTls {
    /// `allows_local_plain`: connections from this machine may also speak plain HTTP.
    pub fn new(identity: TlsIdentity, allows_local_plain: bool) -> Self {
        Self { current: Arc::new(RwLock::new(identity.config)), allows_local_plain }
    }

    /// New connections get `identity` from now on.
    pub fn replace(&self, identity: TlsIdentity) {
        *self.current.write() = identity.config;
    }

    /// Performs the handshake within `timeout`. Plain HTTP gets a response that asks for https.
    pub(super) async fn accept(&self, stream: TcpStream, timeout: Duration) -> io::Result<OpenStream> {
        tokio::time::timeout(timeout, self.handshake(stream)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn handshake(&self, mut stream: TcpStream) -> io::Result<OpenStream> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[0] == HANDSHAKE_RECORD {
            let acceptor = TlsAcceptor::from(self.current.read().clone());
            return Ok(OpenStream::Encrypted(Box::new(acceptor.accept(stream).await?)));
        }
        if self.allows_local_plain && is_local(&stream)? {
            return Ok(OpenStream::Plain(stream));
        }
        stream.write_all(TLS_REQUIRED).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection, and the peer could lose the response.
        let mut buffer = [0; 4096];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await? > 0 {}
        Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a port that speaks TLS"))
    }
}

/// True if the peer is a program on this machine, so that its bytes pass no network.
fn is_local(stream: &TcpStream) -> io::Result<bool> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    Ok(peer.is_loopback() || peer == stream.local_addr()?.ip().to_canonical())
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("allows_local_plain", &self.allows_local_plain).finish_non_exhaustive()
    }
}

/// A connection that is ready for HTTP.
pub(super) enum OpenStream {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_to_plain_http_has_its_stated_length() {
        let text = String::from_utf8(TLS_REQUIRED.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<crate::protocol::WireError>(body).is_ok());
    }

    #[test]
    fn invalid_identity_says_error() {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let error = |chain: &str, key: &str| {
            TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes()).err().map(|e| e.to_string())
        };
        assert_eq!(error(&cert, &key.serialize_pem()), None);
        assert!(error("", &key.serialize_pem()).unwrap().contains("no certificate"));
        assert!(error(&cert, "").unwrap().contains("no private key"));
        assert!(error(&cert, &other).unwrap().contains("together"));
    }
}
