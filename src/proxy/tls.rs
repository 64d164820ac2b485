//! TLS for the proxy: the certificate that new connections are shown, and the handshake.
//!
//! It reads no files. A certificate can be replaced while the proxy serves; connections that are open keep theirs.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::protocol::Pin;

/// The first byte of every TLS connection: a handshake record (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
/// What a client that speaks plain HTTP reads here.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n\
    content-length: 88\r\n\r\n\
    {\"detail\":\"this port speaks TLS: use https\",\"error_code\":\"TLS_REQUIRED\",\"context\":null}\n";

/// Why a certificate and a key are no identity. Never shows the key.
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
pub struct Identity {
    config: Arc<ServerConfig>,
    pin: Pin,
}

impl Identity {
    /// From PEM: the proxy's certificate first, then those of the authorities in between.
    ///
    /// # Errors
    /// What is wrong with either, or that they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, PemError>>();
        let chain = chain.map_err(|e| IdentityError::Certificate(e.to_string()))?;
        let pin = Pin::of(chain.first().ok_or(IdentityError::NoCertificate)?);
        // The error could show a piece of the file.
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

/// The identity that new connections are shown. Clones share it.
#[derive(Clone)]
pub struct Tls {
    current: Arc<RwLock<Arc<ServerConfig>>>,
    plain_from_here: bool,
}

impl Tls {
    /// `plain_from_here`: connections from this very machine may also speak plain HTTP.
    pub fn new(identity: Identity, plain_from_here: bool) -> Self {
        Self { current: Arc::new(RwLock::new(identity.config)), plain_from_here }
    }

    /// Shows `identity` to connections from now on.
    pub fn replace(&self, identity: Identity) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = identity.config;
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Shakes hands within `patience`.
    ///
    /// # Errors
    /// When the peer stalls, leaves, or speaks something else; who speaks plain HTTP has been told so.
    pub(super) async fn accept(&self, stream: TcpStream, patience: Duration) -> io::Result<Opened> {
        tokio::time::timeout(patience, self.shake_hands(stream)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn shake_hands(&self, mut stream: TcpStream) -> io::Result<Opened> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[0] == HANDSHAKE {
            return Ok(Opened::Encrypted(Box::new(self.acceptor().accept(stream).await?)));
        }
        if self.plain_from_here && is_from_here(&stream)? {
            return Ok(Opened::Plain(stream));
        }
        stream.write_all(SPEAK_TLS).await?;
        stream.shutdown().await?;
        // Closing over unread bytes would take the answer away from the peer.
        let mut sink = [0; 4096];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut sink).await? > 0 {}
        Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on a port that speaks TLS"))
    }
}

/// Whether the peer is a program on this machine: what it sends passes no network.
fn is_from_here(stream: &TcpStream) -> io::Result<bool> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    Ok(peer.is_loopback() || peer == stream.local_addr()?.ip().to_canonical())
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("plain_from_here", &self.plain_from_here).finish_non_exhaustive()
    }
}

/// A connection on which HTTP can be spoken.
pub(super) enum Opened {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plain_http_is_as_long_as_it_says() {
        let text = String::from_utf8(SPEAK_TLS.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<crate::protocol::WireError>(body).is_ok());
    }

    #[test]
    fn what_is_no_identity_says_what_is_wrong() {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let why =
            |chain: &str, key: &str| Identity::from_pem(chain.as_bytes(), key.as_bytes()).err().map(|e| e.to_string());
        assert_eq!(why(&cert, &key.serialize_pem()), None);
        assert!(why("", &key.serialize_pem()).unwrap().contains("no certificate"));
        assert!(why(&cert, "").unwrap().contains("no private key"));
        assert!(why(&cert, &other).unwrap().contains("together"));
    }
}
