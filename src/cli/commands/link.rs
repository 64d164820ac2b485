//! `memsync link`: prints the link with which another machine joins the proxy of `memsync up`.

use std::io::{self, IsTerminal};
use std::path::Path;

use serde::Serialize;

use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::lookup::configured_folder;
use crate::cli::machine::own_proxy;
use crate::cli::view::join::explain_join;

#[derive(Serialize)]
struct LinkAnswer {
    join: String,
}

/// Prints the link of the folder `dir`, or of the first one.
pub(super) fn run(app: &App, dir: Option<&Path>) -> anyhow::Result<Exit> {
    let config = app.config()?;
    // A damaged record is reported here, because `listen_of_config` takes it for a missing one.
    own_proxy::recorded_listen(app)?;
    let Some(listen) = own_proxy::listen_of_config(app, config) else {
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
    let link = own_proxy::join_link(&app.machine.host, listen, pin, &folder.namespace, token);
    let at_terminal = io::stdout().is_terminal();
    app.answer(&LinkAnswer { join: link.reveal() }, |out, answer| {
        writeln!(out, "{}", answer.join)?;
        if at_terminal {
            writeln!(out, "\nKeep the link to yourself: it holds the token.")?;
            explain_join(out, listen, pin.is_some())?;
        }
        Ok(())
    })?;
    Ok(Exit::Done)
}
