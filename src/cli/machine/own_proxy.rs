//! The proxy that `memsync up` runs: its address, its certificate, and the [`JoinLink`] with which another machine joins.
//!
//! Address and certificate are recorded, so that later starts and `memsync link` need no flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use super::certificate::CertificateSource;
use super::state_files::{read_record, write_record};
use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::config::{TokenSource, parse_token};
use crate::protocol::{BadPin, Pin};

const LISTEN_RECORD: &str = "up-listen";
const TLS_RECORD: &str = "up-tls";
/// The content of the TLS record for plain http.
const NO_TLS: &str = "none";
const LINK_SCHEME: &str = "memsync+";

/// The address at which the proxy of `up` listened last.
pub(crate) fn recorded_listen(app: &App) -> anyhow::Result<Option<SocketAddr>> {
    let Some(text) = read_record(&app.dirs.state, LISTEN_RECORD)? else { return Ok(None) };
    let file = app.dirs.state.join(LISTEN_RECORD);
    text.parse().map(Some).map_err(|_| {
        let why = format!("{}: {text:?} is no address; remove the file, or give --listen", file.display());
        CommandFailure::new(Exit::Error, why).into()
    })
}

/// The certificate that the proxy of `up` used last. `None` for plain http.
pub(crate) fn recorded_certificate(app: &App) -> anyhow::Result<Option<CertificateSource>> {
    let text = read_record(&app.dirs.state, TLS_RECORD)?.filter(|text| text != NO_TLS);
    let Some(text) = text else { return Ok(None) };
    CertificateSource::parse(&text).map(Some).ok_or_else(|| {
        let file = app.dirs.state.join(TLS_RECORD);
        let why = format!("{}: {text:?} names no certificate; remove the file, and give --tls-…", file.display());
        CommandFailure::new(Exit::Error, why).into()
    })
}

pub(crate) fn record_listen(app: &App, listen: SocketAddr) -> anyhow::Result<()> {
    write_record(&app.dirs.state, LISTEN_RECORD, &listen.to_string())
}

/// `None` for plain http.
pub(crate) fn record_certificate(app: &App, source: Option<&CertificateSource>) -> anyhow::Result<()> {
    let text = source.map_or(NO_TLS.to_owned(), CertificateSource::record);
    write_record(&app.dirs.state, TLS_RECORD, &text)
}

/// The address of the proxy of `up`, if the config uses that proxy.
pub(crate) fn listen_of_config(app: &App) -> Option<SocketAddr> {
    let config = app.config().ok()?;
    recorded_listen(app).ok().flatten().filter(|listen| local_url(*listen) == config.proxy.url)
}

/// The command that starts the agent: `memsync up` if that starts the proxy as well.
pub(crate) fn start_command(app: &App) -> &'static str {
    if listen_of_config(app).is_some() { "memsync up" } else { "memsync run" }
}

/// The proxy's URL for the agent on this machine.
pub(crate) fn local_url(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

/// The proxy's URL for other machines. They reach a loopback address through a tunnel to the same port.
pub(crate) fn remote_url(host: &str, listen: SocketAddr, speaks_tls: bool) -> String {
    let url = if listen.ip().is_unspecified() { format!("http://{host}:{}", listen.port()) } else { local_url(listen) };
    if speaks_tls { url.replacen("http://", "https://", 1) } else { url }
}

/// The proxy's address and the token in one line:
/// `memsync+https://host[:port][/base][?namespace=NS&pin=sha256:…]#TOKEN`. Programs never send the part of a URL behind
/// the `#`.
#[derive(Debug, Clone)]
pub(crate) struct JoinLink {
    /// The proxy, without a trailing `/`.
    pub(crate) url: String,
    pub(crate) namespace: String,
    /// The certificate of the proxy, if no authority vouches for it.
    pub(crate) pin: Option<Pin>,
    pub(crate) token: SecretString,
}

/// The text is no link. The error never shows the text, which may hold a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no join link ({0}); copy the whole line, which looks like memsync+https://host:port#token")]
pub(crate) struct NotALink(String);

impl JoinLink {
    /// The link to join a folder of this machine. `tls` is `None` for plain http, else the certificate to pin, if any.
    pub(crate) fn new(
        host: &str,
        listen: SocketAddr,
        tls: Option<Option<Pin>>,
        namespace: &str,
        token: SecretString,
    ) -> Self {
        let url = remote_url(host, listen, tls.is_some());
        Self { url, namespace: namespace.to_owned(), pin: tls.flatten(), token }
    }

    /// The link in full, the token in clear.
    pub(crate) fn reveal(&self) -> String {
        let mut link = format!("{LINK_SCHEME}{}", self.url);
        let namespace = Some(namespace_pair(&self.namespace)).filter(|_| !self.namespace.is_empty());
        let pin = self.pin.map(|pin| format!("pin={pin}"));
        for (pair, mark) in namespace.into_iter().chain(pin).zip(["?", "&"]) {
            link.push_str(&format!("{mark}{pair}"));
        }
        // A token is visible ASCII, so only the escape character itself needs escaping.
        format!("{link}#{}", self.token.expose_secret().replace('%', "%25"))
    }
}

impl FromStr for JoinLink {
    type Err = NotALink;

    fn from_str(text: &str) -> Result<Self, NotALink> {
        let not = |why: &str| NotALink(why.to_owned());
        let rest = text.trim().strip_prefix(LINK_SCHEME).ok_or_else(|| not("it does not begin with memsync+"))?;
        let (address, token) = rest.split_once('#').ok_or_else(|| not("the #token at its end is missing"))?;
        let mut url = Url::parse(address).map_err(|e| not(&e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(not("it is neither http nor https"));
        }
        let value = |key: &str| url.query_pairs().find(|(k, _)| k == key).map(|(_, v)| v.into_owned());
        let namespace = value("namespace").unwrap_or_default();
        // A wrong pin is an error: ignoring it would accept any certificate.
        let pin: Option<Pin> =
            value("pin").map(|pin| pin.parse()).transpose().map_err(|e: BadPin| not(&e.to_string()))?;
        if pin.is_some() && url.scheme() != "https" {
            return Err(not("it pins a certificate, and http has none"));
        }
        url.set_query(None);
        let token = parse_token(&token.replace("%25", "%"), &TokenSource::Link).map_err(|e| not(&e.to_string()))?;
        Ok(Self { url: url.as_str().trim_end_matches('/').to_owned(), namespace, pin, token })
    }
}

fn namespace_pair(namespace: &str) -> String {
    Url::parse_with_params("http://x", [("namespace", namespace)])
        .ok()
        .and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_url_stays_on_this_machine() {
        for (listen, url) in [
            ("127.0.0.1:8484", "http://127.0.0.1:8484"),
            ("0.0.0.0:1", "http://127.0.0.1:1"),
            ("[::]:1", "http://[::1]:1"),
            ("10.0.0.5:1", "http://10.0.0.5:1"),
        ] {
            assert_eq!(local_url(listen.parse().unwrap()), url);
        }
    }

    #[test]
    fn remote_url_names_the_host_of_an_open_proxy() {
        for (listen, speaks_tls, url) in [
            ("127.0.0.1:8484", false, "http://127.0.0.1:8484"),
            ("0.0.0.0:1", true, "https://desk:1"),
            ("[::]:1", false, "http://desk:1"),
            ("10.0.0.5:1", true, "https://10.0.0.5:1"),
        ] {
            assert_eq!(remote_url("desk", listen.parse().unwrap(), speaks_tls), url);
        }
    }

    #[test]
    fn link_reads_back_as_written() {
        for (url, namespace, token) in [
            ("http://10.0.0.1:8484", "", "abc"),
            ("https://p.example/base", "team/notes & more", "a#b%25c?d"),
            ("http://[::1]:1", "ü", "x%y"),
        ] {
            for pin in [None, Some(Pin::of(b"x")).filter(|_| url.starts_with("https"))] {
                let link = JoinLink {
                    url: url.to_owned(),
                    namespace: namespace.to_owned(),
                    pin,
                    token: token.to_owned().into(),
                };
                let back: JoinLink = link.reveal().parse().unwrap();
                assert_eq!(
                    (back.url.as_str(), back.namespace.as_str(), back.pin, back.token.expose_secret()),
                    (url, namespace, pin, token)
                );
            }
        }
    }

    #[test]
    fn refusal_does_not_show_the_token() {
        for bad in [
            "",
            "https://h#s3cret",
            "memsync+https://h",
            "memsync+ftp://h#s3cret",
            "memsync+https://#s3cret",
            "memsync+https://h#s3 cret",
            "memsync+https://h#",
            "memsync+https://h?pin=sha256:12#s3cret",
            "memsync+https://h?pin=#s3cret",
            &format!("memsync+http://h?pin={}#s3cret", Pin::of(b"x")),
        ] {
            let error = bad.parse::<JoinLink>().unwrap_err().to_string();
            assert!(!error.contains("s3"), "{bad}: {error}");
        }
        let link: JoinLink = "memsync+https://h#s3cret\n".parse().unwrap();
        assert!(!format!("{link:?}").contains("s3cret"));
    }
}
