//! The proxy that `memsync up` runs on this machine: where it listens, its certificate, and the link to join it.
//!
//! Both facts are kept below the state directory, so that later starts and `memsync link` need no flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use secrecy::SecretString;

use super::app::App;
use super::exit::{Exit, Failure};
use super::link::JoinLink;
use super::setup;
use super::tls::Source;
use crate::config::Config;
use crate::protocol::Pin;

/// The record of the address.
const LISTEN: &str = "up-listen";
/// The record of the certificate.
const TLS: &str = "up-tls";
/// In the record of the certificate: there is none.
const NO_TLS: &str = "none";

/// The address at which the proxy of `up` listened last.
///
/// # Errors
/// When the record cannot be read or understood.
pub fn recorded_listen(app: &App) -> anyhow::Result<Option<SocketAddr>> {
    let Some(text) = setup::record(&app.dirs.state, LISTEN)? else { return Ok(None) };
    let file = app.dirs.state.join(LISTEN);
    text.parse().map(Some).map_err(|_| {
        let why = format!("{}: {text:?} is no address; remove the file, or give --listen", file.display());
        Failure::new(Exit::Error, why).into()
    })
}

/// The certificate that the proxy of `up` showed last; `None` for plain http.
///
/// # Errors
/// When the record cannot be read or understood.
pub fn recorded_tls(app: &App) -> anyhow::Result<Option<Source>> {
    let text = setup::record(&app.dirs.state, TLS)?.filter(|text| text != NO_TLS);
    let Some(text) = text else { return Ok(None) };
    Source::parse(&text).map(Some).ok_or_else(|| {
        let file = app.dirs.state.join(TLS);
        let why = format!("{}: {text:?} names no certificate; remove the file, and say --tls-…", file.display());
        Failure::new(Exit::Error, why).into()
    })
}

/// Records the address.
///
/// # Errors
/// As writing does.
pub fn record_listen(app: &App, listen: SocketAddr) -> anyhow::Result<()> {
    record(app, LISTEN, &listen.to_string())
}

/// Records the certificate; `None` for plain http.
///
/// # Errors
/// As writing does.
pub fn record_tls(app: &App, source: Option<&Source>) -> anyhow::Result<()> {
    record(app, TLS, &source.map_or(NO_TLS.to_owned(), Source::record))
}

fn record(app: &App, name: &str, text: &str) -> anyhow::Result<()> {
    if setup::record(&app.dirs.state, name).ok().flatten().as_deref() == Some(text) {
        return Ok(());
    }
    setup::keep_record(&app.dirs.state, name, text)
}

/// The address of the proxy of `up` where it is the one that the config names, so that `memsync up` starts both.
pub fn listen_of_config(app: &App, config: &Config) -> Option<SocketAddr> {
    recorded_listen(app).ok().flatten().filter(|listen| url_here(*listen) == config.proxy.url)
}

/// The command that starts the agent of this machine: `memsync up` where it starts the proxy as well.
pub fn start_command(app: &App, config: &Config) -> &'static str {
    if listen_of_config(app, config).is_some() { "memsync up" } else { "memsync run" }
}

/// The proxy's URL for the agent on this machine.
pub fn url_here(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

/// The proxy's URL for other machines. A loopback address works there through a tunnel to the same port.
pub fn url_elsewhere(host: &str, listen: SocketAddr, speaks_tls: bool) -> String {
    let url = if listen.ip().is_unspecified() { format!("http://{host}:{}", listen.port()) } else { url_here(listen) };
    if speaks_tls { url.replacen("http://", "https://", 1) } else { url }
}

/// The link with which another machine joins `config`'s first folder. `tls`: the certificate to pin, if any, where the
/// proxy speaks TLS.
pub fn join_link(
    host: &str,
    listen: SocketAddr,
    tls: Option<Option<Pin>>,
    namespace: &str,
    token: SecretString,
) -> JoinLink {
    let url = url_elsewhere(host, listen, tls.is_some());
    JoinLink { url, namespace: namespace.to_owned(), pin: tls.flatten(), token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_reaches_the_proxy_without_leaving_the_machine() {
        for (listen, url) in [
            ("127.0.0.1:8484", "http://127.0.0.1:8484"),
            ("0.0.0.0:1", "http://127.0.0.1:1"),
            ("[::]:1", "http://[::1]:1"),
            ("10.0.0.5:1", "http://10.0.0.5:1"),
        ] {
            assert_eq!(url_here(listen.parse().unwrap()), url);
        }
    }

    #[test]
    fn url_elsewhere_names_the_host_of_an_open_proxy() {
        for (listen, speaks_tls, url) in [
            ("127.0.0.1:8484", false, "http://127.0.0.1:8484"),
            ("0.0.0.0:1", true, "https://desk:1"),
            ("[::]:1", false, "http://desk:1"),
            ("10.0.0.5:1", true, "https://10.0.0.5:1"),
        ] {
            assert_eq!(url_elsewhere("desk", listen.parse().unwrap(), speaks_tls), url);
        }
    }
}
