//! `memsync link`: prints the link with which another machine joins the proxy of `memsync up`.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::configured_folder;
use crate::cli::machine::own_proxy::{self, JoinLink};

#[derive(Serialize)]
struct LinkAnswer {
    join: String,
}

/// Prints the link of the folder `dir`, or of the first one.
pub(super) fn run(app: &App, dir: Option<&Path>) -> anyhow::Result<Exit> {
    let config = app.config()?;
    let recorded = own_proxy::recorded_listen(app)?;
    let Some(listen) = recorded.filter(|listen| own_proxy::local_url(*listen) == config.proxy.url) else {
        let why = format!(
            "the proxy {} is not one that `memsync up` runs on this machine; the machine that runs it has the link",
            config.proxy.url
        );
        return Err(CommandFailure::new(Exit::NotConfigured, why).into());
    };
    let folder = match dir {
        Some(dir) => configured_folder(app, dir)?,
        None => &config.folders[0],
    };
    let source = own_proxy::recorded_certificate(app)?;
    let pin = source.as_ref().map(|source| source.pin(app)).transpose()?;
    let (token, _) = config.token(&app.machine.env)?;
    let link = JoinLink::new(&app.machine.host, listen, pin, &folder.namespace, token);
    let at_terminal = io::stdout().is_terminal();
    app.answer(&LinkAnswer { join: link.reveal() }, |out, answer| {
        writeln!(out, "{}", answer.join)?;
        if at_terminal {
            writeln!(out, "\nKeep the link to yourself: it holds the token.")?;
            explain_join(out, listen, pin.is_some())?;
        }
        Ok(())
    })
}

/// Shows the commands for the second machine.
pub(super) fn explain_join(out: &mut dyn Write, listen: SocketAddr, speaks_tls: bool) -> io::Result<()> {
    let port = listen.port();
    let is_local = listen.ip().is_loopback();
    let is_open = !is_local && !speaks_tls;
    if is_local {
        writeln!(out, "The proxy listens on this machine alone. Through an SSH tunnel, on the second machine:")?;
        writeln!(out, "    ssh -N -L {port}:{listen} USER@THIS-MACHINE &")?;
    } else {
        writeln!(out, "On the second machine:")?;
    }
    let allow_http = if is_open { "--allow-http " } else { "" };
    writeln!(out, "    memsync init {allow_http}--join -       # and paste the link")?;
    writeln!(out, "    memsync run")?;
    if is_local {
        writeln!(out, "Or let others reach it, encrypted: `memsync up --listen 0.0.0.0:{port} --tls-self-signed`.")?;
    }
    if is_open {
        writeln!(
            out,
            "Plain http shows the token to anyone who can read the network between the two. Use it only where you\n\
             trust the network; elsewhere start with --tls-self-signed."
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(listen: &str, speaks_tls: bool) -> String {
        let mut out = Vec::new();
        explain_join(&mut out, listen.parse().unwrap(), speaks_tls).unwrap();
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
