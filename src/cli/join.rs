//! `memsync link`: the link with which another machine joins the proxy of `memsync up`.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

use super::app::App;
use super::exit::{Exit, Failure};
use super::{locate, own_proxy, tls};

#[derive(Serialize)]
struct Answer {
    join: String,
}

/// Prints the link of the folder `dir`, or of the first one. It holds the token, so nothing prints it unasked but to a
/// terminal.
///
/// # Errors
/// When this machine runs no proxy of its own, or the token or the certificate cannot be read.
pub fn run(app: &App, dir: Option<&Path>) -> anyhow::Result<Exit> {
    let config = app.config()?;
    let Some(listen) = own_proxy::listen_of_config(app, config) else {
        let why = format!(
            "the proxy {} is not one that `memsync up` runs on this machine; the machine that runs it has the link",
            config.proxy.url
        );
        return Err(Failure::new(Exit::NotConfigured, why).into());
    };
    let folder = match dir {
        Some(dir) => locate::configured(app, dir)?,
        None => &config.folders[0],
    };
    let source = own_proxy::recorded_tls(app)?;
    let pin = source.as_ref().map(|source| tls::pin(app, source)).transpose()?;
    let (token, _) = config.token(&app.around.env)?;
    let link = own_proxy::join_link(&app.around.host, listen, pin, &folder.namespace, token);
    let explained = io::stdout().is_terminal();
    app.answer(&Answer { join: link.reveal() }, |out, answer| {
        writeln!(out, "{}", answer.join)?;
        if explained {
            writeln!(out, "\nKeep the link to yourself: it holds the token.")?;
            explain(out, listen, pin.is_some())?;
        }
        Ok(())
    })?;
    Ok(Exit::Done)
}

/// Says how the second machine joins with the link.
pub fn explain(out: &mut dyn Write, listen: SocketAddr, speaks_tls: bool) -> io::Result<()> {
    let port = listen.port();
    if listen.ip().is_loopback() {
        writeln!(out, "The proxy listens on this machine alone. Through an SSH tunnel, on the second machine:")?;
        writeln!(out, "    ssh -N -L {port}:{listen} USER@THIS-MACHINE &")?;
    } else {
        writeln!(out, "On the second machine:")?;
    }
    let is_open = !listen.ip().is_loopback() && !speaks_tls;
    writeln!(
        out,
        "    memsync init {}--join -       # and paste the link",
        if is_open { "--allow-http " } else { "" }
    )?;
    writeln!(out, "    memsync run")?;
    if listen.ip().is_loopback() {
        writeln!(out, "Or let others reach it, encrypted: `memsync up --listen 0.0.0.0:{port} --tls-self-signed`.")?;
    }
    if is_open {
        writeln!(
            out,
            "Plain http shows the token to anyone who can listen on the network between the two. Only do so where you\n\
             trust it; elsewhere start with --tls-self-signed."
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(listen: &str, speaks_tls: bool) -> String {
        let mut out = Vec::new();
        explain(&mut out, listen.parse().unwrap(), speaks_tls).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tunnel_is_explained_behind_loopback() {
        let text = explained("127.0.0.1:8484", false);
        for part in ["ssh -N -L 8484:127.0.0.1:8484", "init --join -", "--listen 0.0.0.0:8484", "--tls-self-signed"] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("--allow-http"), "a tunnel needs no plain http beyond loopback:\n{text}");
    }

    #[test]
    fn open_proxy_comes_with_a_warning_unless_encrypted() {
        let text = explained("0.0.0.0:9000", false);
        assert!(text.contains("--allow-http --join -") && text.contains("shows the token"), "{text}");
        let text = explained("0.0.0.0:9000", true);
        assert!(!text.contains("--allow-http") && !text.contains("shows the token"), "{text}");
    }
}
