//! The proxy that `memsync up` runs: its address, its certificate, and the link to join it.
//!
//! Address and certificate are recorded, so that later starts and `memsync link` need no flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use secrecy::SecretString;

use super::certificate::CertificateSource;
use super::join_link::JoinLink;
use super::records::{read_record, write_record};
use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::config::Config;
use crate::protocol::Pin;

const LISTEN_RECORD: &str = "up-listen";
const TLS_RECORD: &str = "up-tls";
/// The content of the TLS record for plain http.
const NO_TLS: &str = "none";

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
pub(crate) fn listen_of_config(app: &App, config: &Config) -> Option<SocketAddr> {
    recorded_listen(app).ok().flatten().filter(|listen| local_url(*listen) == config.proxy.url)
}

/// The command that starts the agent: `memsync up` if that starts the proxy as well.
pub(crate) fn start_command(app: &App, config: &Config) -> &'static str {
    if listen_of_config(app, config).is_some() { "memsync up" } else { "memsync run" }
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

/// The link with which another machine joins a folder. `tls` is `None` for plain http, else the certificate to pin, if
/// any.
pub(crate) fn join_link(
    host: &str,
    listen: SocketAddr,
    tls: Option<Option<Pin>>,
    namespace: &str,
    token: SecretString,
) -> JoinLink {
    let url = remote_url(host, listen, tls.is_some());
    JoinLink { url, namespace: namespace.to_owned(), pin: tls.flatten(), token }
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
}
