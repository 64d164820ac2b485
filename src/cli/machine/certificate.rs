//! The certificate of a proxy: files that another program renews, or a self-signed one, made once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::app::App;
use crate::cli::args::TlsArgs;
use crate::cli::exit::CommandFailure;
use crate::config::{make_certificate, read_small_file};
use crate::protocol::Pin;
use crate::proxy::tls::{ServerTls, TlsIdentity};

/// The self-signed certificate in the state directory. The key is in the same file, so that the two always match.
const SELF_SIGNED_FILE: &str = "proxy-tls.pem";
/// The record of a self-signed certificate.
const SELF_SIGNED: &str = "self-signed";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CertificateSource {
    Files { cert: PathBuf, key: PathBuf },
    SelfSigned,
}

impl CertificateSource {
    /// The source that the flags name. `None` for plain http.
    pub(crate) fn of(flags: &TlsArgs) -> anyhow::Result<Option<Self>> {
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        Ok(match (&flags.tls_cert, &flags.tls_key) {
            (Some(cert), Some(key)) => Some(Self::Files { cert: absolute(cert)?, key: absolute(key)? }),
            _ => flags.tls_self_signed.then_some(Self::SelfSigned),
        })
    }

    /// The files that the user named.
    pub(crate) fn files(&self) -> Vec<&Path> {
        match self {
            Self::Files { cert, key } => vec![cert, key],
            Self::SelfSigned => Vec::new(),
        }
    }

    /// The text of a record, for [`CertificateSource::parse`].
    pub(crate) fn record(&self) -> String {
        match self {
            Self::SelfSigned => SELF_SIGNED.to_owned(),
            Self::Files { cert, key } => format!("{}\n{}", cert.display(), key.display()),
        }
    }

    /// Reads the text that [`CertificateSource::record`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once('\n') {
            Some((cert, key)) => Some(Self::Files { cert: cert.into(), key: key.into() }),
            None => (text == SELF_SIGNED).then_some(Self::SelfSigned),
        }
    }

    /// The pin for clients. `None` if an authority vouches for the certificate.
    pub(crate) fn pin(&self, app: &App) -> anyhow::Result<Option<Pin>> {
        match self {
            Self::SelfSigned => Ok(Some(read_identity(self, &self_signed_path(app))?.pin())),
            Self::Files { .. } => Ok(None),
        }
    }
}

/// The certificate that a proxy serves. It can be read again.
pub(crate) struct ServedCertificate {
    source: CertificateSource,
    self_signed: PathBuf,
    pub(crate) tls: ServerTls,
    /// The pin for clients. `None` if an authority vouches for the certificate.
    pub(crate) pin: Option<Pin>,
}

impl ServedCertificate {
    /// Reads the certificate. Makes the self-signed one if it is missing.
    pub(crate) fn open(
        app: &App,
        source: CertificateSource,
        listen: SocketAddr,
        plain_from_here: bool,
    ) -> anyhow::Result<Self> {
        let self_signed = self_signed_path(app);
        if source == CertificateSource::SelfSigned {
            let names = [app.machine.host.clone(), "localhost".to_owned(), listen.ip().to_string()];
            make_certificate(&self_signed, &names)
                .with_context(|| format!("{} cannot be made", self_signed.display()))?;
        }
        let identity = read_identity(&source, &self_signed)?;
        let pin = (source == CertificateSource::SelfSigned).then(|| identity.pin());
        Ok(Self { source, self_signed, tls: ServerTls::new(identity, plain_from_here), pin })
    }

    /// Reads the files again and logs the outcome. If they are wrong, the certificate in use stays.
    pub(crate) fn reload(&self) {
        match read_identity(&self.source, &self.self_signed) {
            Ok(identity) => {
                tracing::info!("certificate read again: {}", identity.pin());
                self.tls.replace(identity);
            }
            Err(e) => tracing::error!("{e:#}; the previous certificate stays in use"),
        }
    }
}

fn self_signed_path(app: &App) -> PathBuf {
    app.dirs.state.join(SELF_SIGNED_FILE)
}

fn read_identity(source: &CertificateSource, self_signed: &Path) -> anyhow::Result<TlsIdentity> {
    let (cert, key) = match source {
        CertificateSource::Files { cert, key } => (cert.as_path(), key.as_path()),
        CertificateSource::SelfSigned => (self_signed, self_signed),
    };
    let read = |path: &Path| {
        read_small_file(path).map_err(|e| {
            let why = format!("{}: {e}; correct the path, or give memsync's user the right to read it", path.display());
            CommandFailure::usage(why)
        })
    };
    let (chain, secret) = (read(cert)?, zeroize::Zeroizing::new(read(key)?));
    let named = || format!("--tls-cert {} --tls-key {}", cert.display(), key.display());
    TlsIdentity::from_pem(&chain, &secret).map_err(|e| CommandFailure::usage(format!("{}: {e}", named())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_reads_back_from_its_record() {
        let files = CertificateSource::Files { cert: "/a b/c.pem".into(), key: "/k.pem".into() };
        for source in [CertificateSource::SelfSigned, files] {
            assert_eq!(CertificateSource::parse(&source.record()), Some(source));
        }
        assert_eq!(CertificateSource::parse("nonsense"), None);
    }
}
