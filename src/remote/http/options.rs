//! [`HttpOptions`]: the address of the proxy, the settings of the connection, and the HTTP client with them.
//! [`PinVerifier`] trusts exactly one certificate: the one with the pinned fingerprint.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use reqwest::{Certificate, Client, ClientBuilder, Url, redirect};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use secrecy::{ExposeSecret, SecretString};

use crate::protocol::{NamespaceError, Pin, install_provider, is_loopback};

/// The `User-Agent`.
pub(super) const AGENT: &str = concat!("memsync/", env!("CARGO_PKG_VERSION"));

/// An unused connection is closed after this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The address of the proxy and the settings of the connection.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// `https://host[:port][/base/path]`, without user, query and fragment.
    pub origin: String,
    pub token: SecretString,
    /// Empty for the flat dialect. Else a [`Namespace`](crate::protocol::Namespace).
    pub namespace: String,
    /// Sent percent-encoded as `X-Memsync-Device`, unless empty.
    pub device: String,
    /// Certificates in PEM to trust besides the system's. This is the content, not the name of a file.
    pub ca_pem: Option<Vec<u8>>,
    /// The only certificate to trust.
    pub pin: Option<Pin>,
    /// Lets plain http go beyond loopback.
    pub allow_http: bool,
    /// The timeout of a connection attempt, and the idle timeout. A whole transfer may take longer, depending on its size.
    pub timeout: Duration,
    /// Larger blobs are refused, bytes.
    pub max_file_size: u64,
    /// Most requests in flight, at least 1.
    pub concurrency: usize,
}

/// An option that cannot be used. The text names the key of the configuration, never the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("proxy.url is not a URL: {0}")]
    Url(String),
    #[error("proxy.url must begin with https:// or http://")]
    Scheme,
    #[error("proxy.url must not hold a user or password; the token goes into proxy.token_file")]
    Userinfo,
    #[error("proxy.url must end with its path: no `?` or `#`")]
    Suffix,
    #[error("{0}: plain http would show the token to the network; use https, or set proxy.allow_http = true")]
    PlainHttp(String),
    #[error("{0}: plain http shows no certificate to compare with proxy.pin; use https")]
    PinWithoutTls(String),
    #[error("folder.namespace {0:?} is no name of a namespace: {1}")]
    Namespace(String, NamespaceError),
    #[error("the token is empty or has characters that cannot be sent; check proxy.token_file")]
    Token,
    #[error("proxy.ca_file holds no certificate in PEM form: {0}")]
    Ca(String),
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
}

impl HttpOptions {
    /// The origin, if the token may go there.
    pub(super) fn checked_origin(&self) -> Result<Url, OptionsError> {
        let origin = Url::parse(&self.origin).map_err(|e| OptionsError::Url(e.to_string()))?;
        if !matches!(origin.scheme(), "http" | "https") {
            return Err(OptionsError::Scheme);
        }
        if !origin.username().is_empty() || origin.password().is_some() {
            return Err(OptionsError::Userinfo);
        }
        if origin.query().is_some() || origin.fragment().is_some() {
            return Err(OptionsError::Suffix);
        }
        if origin.scheme() == "http" {
            let text = || origin.as_str().trim_end_matches('/').to_owned();
            if !self.allow_http && !is_loopback(origin.host_str().unwrap_or_default()) {
                return Err(OptionsError::PlainHttp(text()));
            }
            if self.pin.is_some() {
                return Err(OptionsError::PinWithoutTls(text()));
            }
        }
        Ok(origin)
    }

    /// The header that carries the token.
    pub(super) fn authorization(&self) -> Result<HeaderValue, OptionsError> {
        let token = self.token.expose_secret();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(OptionsError::Token);
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| OptionsError::Token)?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// The client for `origin`. It follows no redirects, and uses no HTTP proxy for this machine.
    pub(super) fn client(&self, origin: &Url) -> Result<Client, OptionsError> {
        install_provider();
        let extra = match &self.ca_pem {
            Some(pem) => {
                let certs = Certificate::from_pem_bundle(pem).map_err(|e| OptionsError::Ca(e.to_string()))?;
                if certs.is_empty() {
                    return Err(OptionsError::Ca("it is empty".to_owned()));
                }
                certs
            }
            None => Vec::new(),
        };
        let base = || -> ClientBuilder {
            let builder = Client::builder()
                .redirect(redirect::Policy::none())
                .referer(false)
                .connect_timeout(self.timeout)
                .pool_idle_timeout(KEEP_ALIVE)
                .tcp_nodelay(true);
            if is_loopback(origin.host_str().unwrap_or_default()) { builder.no_proxy() } else { builder }
        };
        if let Some(pin) = self.pin {
            let tls = pinned_tls(pin).map_err(|e| OptionsError::Client(e.to_string()))?;
            return base().tls_backend_preconfigured(tls).build().map_err(|e| OptionsError::Client(e.to_string()));
        }
        // Plain http needs no certificates, and reading the system's takes time and memory.
        if origin.scheme() == "http" {
            return base().tls_certs_only(extra).build().map_err(|e| OptionsError::Client(e.to_string()));
        }
        // The client cannot be built without the system's certificates. Then it trusts only `ca_pem`, if any, and the first
        // connection reports it.
        match base().tls_certs_merge(extra.clone()).build() {
            Ok(client) => Ok(client),
            Err(first) => base().tls_certs_only(extra).build().map_err(|second| {
                OptionsError::Client(format!("{first}; without the system's certificates: {second}"))
            }),
        }
    }
}

/// The server has another certificate than the pinned one.
#[derive(Debug, thiserror::Error)]
#[error(
    "its TLS certificate is another ({found}) than proxy.pin names; if the proxy got a new one on purpose, write that \
     into proxy.pin, otherwise something else answers in its place"
)]
pub(super) struct PinMismatch {
    found: Pin,
}

/// Accepts the pinned certificate for any name and at any time. The server must still prove in the handshake that it has
/// the certificate's key.
#[derive(Debug)]
struct PinVerifier {
    pin: Pin,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Pin::of(end_entity);
        if found == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(PinMismatch { found })))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The TLS configuration of a client for a proxy with this certificate.
fn pinned_tls(pin: Pin) -> Result<ClientConfig, rustls::Error> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinVerifier { pin, algorithms }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
