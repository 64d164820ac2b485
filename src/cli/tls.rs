//! Where a proxy's certificate comes from: files that somebody else renews, or one of its own, made once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::app::App;
use super::exit::{Exit, Failure};
use crate::config::{make_certificate, read_small_file};
use crate::protocol::Pin;
use crate::proxy::tls::{Identity, Tls};

/// Below the state directory: certificate and key, in one file so that they always belong together.
const OWN: &str = "proxy-tls.pem";
/// The word for a certificate of its own where the choice is recorded.
const SELF_SIGNED: &str = "self-signed";

/// Which certificate to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Files { cert: PathBuf, key: PathBuf },
    SelfSigned,
}

impl Source {
    /// What the flags ask for.
    ///
    /// # Errors
    /// A path that cannot be made absolute.
    pub fn of(flags: &super::args::Tls) -> anyhow::Result<Option<Self>> {
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        Ok(match (&flags.tls_cert, &flags.tls_key) {
            (Some(cert), Some(key)) => Some(Self::Files { cert: absolute(cert)?, key: absolute(key)? }),
            _ => flags.tls_self_signed.then_some(Self::SelfSigned),
        })
    }

    /// The files that it names.
    pub fn files(&self) -> Vec<&Path> {
        match self {
            Self::Files { cert, key } => vec![cert, key],
            Self::SelfSigned => Vec::new(),
        }
    }

    /// As one record, read back by [`Source::parse`].
    pub fn record(&self) -> String {
        match self {
            Self::SelfSigned => SELF_SIGNED.to_owned(),
            Self::Files { cert, key } => format!("{}\n{}", cert.display(), key.display()),
        }
    }

    /// What [`Source::record`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('\n') {
            Some((cert, key)) => Some(Self::Files { cert: cert.into(), key: key.into() }),
            None => (text == SELF_SIGNED).then_some(Self::SelfSigned),
        }
    }
}

/// What the proxy shows, and where it is read again.
pub struct Shown {
    source: Source,
    own: PathBuf,
    pub tls: Tls,
    /// What a client must be told to trust, where no authority vouches for the certificate.
    pub pin: Option<Pin>,
}

impl Shown {
    /// Reads the certificate; one of its own is made where there is none yet.
    ///
    /// # Errors
    /// When a file cannot be read, made or used.
    pub fn open(app: &App, source: Source, listen: SocketAddr, plain_from_here: bool) -> anyhow::Result<Self> {
        let own = app.dirs.state.join(OWN);
        if source == Source::SelfSigned {
            let names = [app.around.host.clone(), "localhost".to_owned(), listen.ip().to_string()];
            make_certificate(&own, &names).with_context(|| format!("{} cannot be made", own.display()))?;
        }
        let identity = identity(&source, &own)?;
        let pin = (source == Source::SelfSigned).then(|| identity.pin());
        Ok(Self { source, own, tls: Tls::new(identity, plain_from_here), pin })
    }

    /// Reads the files again, and says in the log what came of it: with a bad pair the old one stays.
    pub fn reload(&self) {
        match identity(&self.source, &self.own) {
            Ok(identity) => {
                tracing::info!("certificate read again: {}", identity.pin());
                self.tls.replace(identity);
            }
            Err(e) => tracing::error!("{e:#}; the certificate that was there before stays in use"),
        }
    }
}

/// The pin with which a client trusts the certificate of `source`; `None` where an authority vouches for it.
///
/// # Errors
/// When the certificate cannot be read.
pub fn pin(app: &App, source: &Source) -> anyhow::Result<Option<Pin>> {
    match source {
        Source::SelfSigned => Ok(Some(identity(source, &app.dirs.state.join(OWN))?.pin())),
        Source::Files { .. } => Ok(None),
    }
}

fn identity(source: &Source, own: &Path) -> anyhow::Result<Identity> {
    let (cert, key) = match source {
        Source::Files { cert, key } => (cert.as_path(), key.as_path()),
        Source::SelfSigned => (own, own),
    };
    let read = |path: &Path| {
        read_small_file(path).map_err(|e| {
            let why = format!("{}: {e}; correct the path, or give memsync's user the right to read it", path.display());
            Failure::new(Exit::Usage, why)
        })
    };
    let (chain, secret) = (read(cert)?, zeroize::Zeroizing::new(read(key)?));
    let named = || format!("--tls-cert {} --tls-key {}", cert.display(), key.display());
    Identity::from_pem(&chain, &secret).map_err(|e| Failure::new(Exit::Usage, format!("{}: {e}", named())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_reads_back_as_it_was_recorded() {
        let files = Source::Files { cert: "/a b/c.pem".into(), key: "/k.pem".into() };
        for source in [Source::SelfSigned, files] {
            assert_eq!(Source::parse(&source.record()), Some(source));
        }
        assert_eq!(Source::parse("nonsense"), None);
    }
}
