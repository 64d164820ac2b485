//! `memsync init`: writes a first config, once the proxy has accepted the token.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::InitArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::machine::agent_setup;
use crate::cli::machine::own_proxy::{JoinLink, NotALink};
use crate::cli::probe::ProxyProbe;
use crate::cli::process::secret::read_secret;
use crate::config::{
    Config, ConfigDraft, TokenSource, create_private, create_private_dir, parse_token, read_ca_file, read_token_file,
};
use crate::protocol::Pin;

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct InitAnswer<'a> {
    config: &'a Path,
    token_file: &'a Path,
    folder: &'a Path,
    proxy: &'a str,
    capabilities: Vec<String>,
}

/// Checks everything before it writes anything.
pub fn run(app: &App, args: &InitArgs, probe: &dyn ProxyProbe) -> anyhow::Result<Exit> {
    let config_file = app.dirs.config_file.clone();
    if config_file.symlink_metadata().is_ok() {
        let shown = config_file.display();
        let why = format!("{shown} is already there and is left as it is; edit it, or name another with --config");
        return Err(CommandFailure::usage(why).into());
    }
    let folder = match &args.dir {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("{}: no such path", dir.display()))?,
        None => app.default_folder()?,
    };
    agent_setup::refuse_nested(&folder)?;
    let access = proxy_access(args)?;
    let token_file = token_file_of(&access, &config_file)?;
    let ca_file = args.ca_file.as_deref().map(std::path::absolute).transpose().context("--ca-file")?;
    let ca_pem = ca_file.as_deref().map(read_ca_file).transpose()?;
    require_utf8([&folder, &token_file].into_iter().chain(&ca_file))?;
    let mut draft = ConfigDraft {
        device: Config::defaults(&app.machine.host).device,
        url: access.url.clone(),
        token_file,
        allow_http: args.allow_http,
        ca_file,
        pin: access.pin,
        path: folder,
        namespace: access.namespace.clone(),
    };
    let config = Config::parse(&draft.to_toml(), &config_file, &app.machine).map_err(agent_setup::draft_error)?;
    draft.url.clone_from(&config.proxy.url);
    let mut options = agent_setup::http_options(&config, &draft.namespace, access.token.clone(), ca_pem);
    options.timeout = PROBE_TIMEOUT;
    let answer = probe.ask(&options).context("nothing was written")?;
    let token = access.token_file.is_none().then_some(&access.token);
    write_files(&draft, token, &config_file)?;
    let written = InitAnswer {
        config: &config_file,
        token_file: &draft.token_file,
        folder: &draft.path,
        proxy: &draft.url,
        capabilities: answer.capabilities,
    };
    app.answer(&written, write_answer)
}

/// The address, the namespace and the token of the proxy.
struct InitAccess {
    url: String,
    namespace: String,
    pin: Option<Pin>,
    token: SecretString,
    /// The user's own token file.
    token_file: Option<PathBuf>,
}

fn proxy_access(args: &InitArgs) -> anyhow::Result<InitAccess> {
    if let Some(link) = &args.join {
        let link: JoinLink = match link.as_str() {
            "-" => read_secret("Join link")?.expose_secret().parse(),
            link => link.parse(),
        }
        .map_err(|e: NotALink| CommandFailure::usage(e.to_string()))?;
        let namespace = args.namespace.clone().unwrap_or(link.namespace);
        let pin = args.pin.or(link.pin);
        return Ok(InitAccess { url: link.url, namespace, pin, token: link.token, token_file: None });
    }
    let url =
        args.proxy.clone().ok_or_else(|| CommandFailure::usage("name the proxy with --proxy URL or --join LINK"))?;
    let namespace = args.namespace.clone().unwrap_or_default();
    let (token, token_file) = match &args.token_file {
        Some(file) => {
            let file = std::path::absolute(file).with_context(|| format!("--token-file {}", file.display()))?;
            (read_token_file(&file, &TokenSource::ConfigFile(file.clone()))?, Some(file))
        }
        None => (parse_token(read_secret("Token")?.expose_secret(), &TokenSource::Stdin)?, None),
    };
    Ok(InitAccess { url, namespace, pin: args.pin, token, token_file })
}

/// The user's token file, or a new one beside the config.
fn token_file_of(access: &InitAccess, config_file: &Path) -> Result<PathBuf, CommandFailure> {
    if let Some(file) = &access.token_file {
        return Ok(file.clone());
    }
    let file = config_file.with_file_name("token");
    if file.symlink_metadata().is_ok() {
        let shown = file.display();
        let why = format!("{shown} is already there and is left as it is; give it with --token-file, or remove it");
        return Err(CommandFailure::usage(why));
    }
    Ok(file)
}

fn require_utf8<'a>(mut paths: impl Iterator<Item = &'a PathBuf>) -> Result<(), CommandFailure> {
    match paths.find(|path| path.to_str().is_none()) {
        Some(path) => {
            let why = format!("{}: the config cannot hold a path that is not UTF-8; rename it", path.display());
            Err(CommandFailure::usage(why))
        }
        None => Ok(()),
    }
}

/// Writes a first config: the folder, the file of the token if one is given, and the config. The config goes last, so a
/// killed start is repeated in full.
pub(super) fn write_files(draft: &ConfigDraft, token: Option<&SecretString>, config_file: &Path) -> anyhow::Result<()> {
    let cannot_write = |path: &Path| format!("{} cannot be written", path.display());
    create_private_dir(&draft.path).with_context(|| format!("{}: the folder cannot be made", draft.path.display()))?;
    if let Some(token) = token {
        let line = SecretString::from(format!("{}\n", token.expose_secret()));
        create_private(&draft.token_file, line.expose_secret().as_bytes())
            .with_context(|| cannot_write(&draft.token_file))?;
    }
    create_private(config_file, draft.to_toml().as_bytes()).with_context(|| cannot_write(config_file))
}

fn write_answer(out: &mut dyn Write, answer: &InitAnswer<'_>) -> io::Result<()> {
    writeln!(out, "The proxy at {} takes the token.", answer.proxy)?;
    writeln!(out, "Wrote {}.", answer.config.display())?;
    writeln!(out, "Next: `memsync run` syncs {}.", answer.folder.display())
}
