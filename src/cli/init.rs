//! `memsync init`: writes a first config, once the proxy has taken the token.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::app::App;
use super::args::Init;
use super::exit::{Exit, Failure};
use super::link::JoinLink;
use super::probe::{ProxyProbe, Target};
use super::secret::read_secret;
use super::setup;
use crate::config::{
    Config, Draft, TokenSource, create_private, create_private_dir, parse_token, read_ca_file, read_token_file,
};
use crate::protocol::Pin;

/// How long the proxy may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was written.
#[derive(Serialize)]
struct Written {
    config: PathBuf,
    token_file: PathBuf,
    folder: PathBuf,
    proxy: String,
    capabilities: Vec<String>,
}

/// # Errors
/// When a config is already there, the proxy does not answer or refuses the token, or a file cannot be written;
/// nothing is written then.
pub fn run(app: &App, init: &Init, probe: &dyn ProxyProbe) -> anyhow::Result<Exit> {
    let config_file = app.dirs.config_file.clone();
    if config_file.symlink_metadata().is_ok() {
        let shown = config_file.display();
        let why = format!("{shown} is already there and is left as it is; edit it, or name another with --config");
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let folder = match &init.dir {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("{}: no such path", dir.display()))?,
        None => app.default_folder()?,
    };
    setup::refuse_nested(&folder)?;
    let Access { url, namespace, pin, token, file } = access(init)?;
    let own_token_file = config_file.with_file_name("token");
    let token_file = file.clone().unwrap_or_else(|| own_token_file.clone());
    if file.is_none() && own_token_file.symlink_metadata().is_ok() {
        let shown = own_token_file.display();
        let why = format!("{shown} is already there and is left as it is; give it with --token-file, or remove it");
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let ca_file = init.ca_file.as_deref().map(std::path::absolute).transpose().context("--ca-file")?;
    let ca_pem = ca_file.as_deref().map(read_ca_file).transpose()?;
    for path in [&folder, &token_file].into_iter().chain(&ca_file) {
        if path.to_str().is_none() {
            let why = format!("{}: a path that is not UTF-8 cannot stand in the config; rename it", path.display());
            return Err(Failure::new(Exit::Usage, why).into());
        }
    }
    let mut draft = Draft {
        device: Config::defaults(&app.around.host).device,
        url,
        token_file: token_file.clone(),
        allow_http: init.allow_http,
        ca_file,
        pin,
        path: folder.clone(),
        namespace,
    };
    // Judged by the same rules as a file, before anything is sent to the proxy.
    let judged = Config::parse(&draft.to_toml(), &config_file, &app.around).map_err(setup::refused_draft)?;
    draft.url = judged.proxy.url;

    let target = Target {
        url: draft.url.clone(),
        namespace: draft.namespace.clone(),
        token: token.clone(),
        ca_pem,
        pin,
        allow_http: draft.allow_http,
        timeout: PATIENCE,
    };
    let answer = probe.ask(&target).context("nothing was written")?;

    create_private_dir(&folder).with_context(|| format!("{}: the folder cannot be made", folder.display()))?;
    if file.is_none() {
        let line = SecretString::from(format!("{}\n", token.expose_secret()));
        create_private(&token_file, line.expose_secret().as_bytes()).with_context(|| cannot_write(&token_file))?;
    }
    create_private(&config_file, draft.to_toml().as_bytes()).with_context(|| cannot_write(&config_file))?;
    let written =
        Written { config: config_file, token_file, folder, proxy: draft.url, capabilities: answer.capabilities };
    app.answer(&written, people)?;
    Ok(Exit::Done)
}

fn people(out: &mut dyn Write, written: &Written) -> io::Result<()> {
    writeln!(out, "The proxy at {} takes the token.", written.proxy)?;
    writeln!(out, "Wrote {}.", written.config.display())?;
    writeln!(out, "Next: `memsync run` syncs {}.", written.folder.display())
}

fn cannot_write(path: &Path) -> String {
    format!("{} cannot be written", path.display())
}

/// Where the proxy is and what opens it.
struct Access {
    url: String,
    namespace: String,
    pin: Option<Pin>,
    token: SecretString,
    /// The token's own file, where one was named.
    file: Option<PathBuf>,
}

fn access(init: &Init) -> anyhow::Result<Access> {
    if let Some(link) = &init.join {
        let link: JoinLink = match link.as_str() {
            "-" => read_secret("Join link")?.expose_secret().parse(),
            link => link.parse(),
        }
        .map_err(|e: super::link::NotALink| Failure::new(Exit::Usage, e.to_string()))?;
        let namespace = init.namespace.clone().unwrap_or(link.namespace);
        let pin = init.pin.or(link.pin);
        return Ok(Access { url: link.url, namespace, pin, token: link.token, file: None });
    }
    let url = init
        .proxy
        .clone()
        .ok_or_else(|| Failure::new(Exit::Usage, "name the proxy with --proxy URL or --join LINK"))?;
    let namespace = init.namespace.clone().unwrap_or_default();
    let (token, file) = match &init.token_file {
        Some(file) => {
            let file = std::path::absolute(file).with_context(|| format!("--token-file {}", file.display()))?;
            (read_token_file(&file, &TokenSource::ConfigFile(file.clone()))?, Some(file))
        }
        None => (parse_token(read_secret("Token")?.expose_secret(), &TokenSource::Stdin)?, None),
    };
    Ok(Access { url, namespace, pin: init.pin, token, file })
}
