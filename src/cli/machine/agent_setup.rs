//! Builds the settings of the agent from the config, the token and the directories.

use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;

use super::state_files::{self, device_id};
use crate::agent::AgentOptions;
use crate::agent::setup::FolderSetup;
use crate::cli::app::App;
use crate::cli::exit::CommandFailure;
use crate::config::{Config, ConfigError, FolderConfig, resolve_links};
use crate::local::nesting::check_nesting;
use crate::remote::http::{HttpOptions, HttpRemote};

/// The settings of the agent for all configured folders. Makes the state directory and the device id if they are missing.
pub(crate) fn agent_options(app: &App, config: &Config) -> anyhow::Result<AgentOptions> {
    let folders = folders(app, config)?;
    Ok(AgentOptions {
        device: config.device.clone(),
        proxy_url: config.proxy.url.clone(),
        state_dir: app.dirs.state.clone(),
        socket: app.dirs.socket_to_bind().context("there is no place for the control socket")?,
        folders,
    })
}

/// The settings of each configured folder. Checks the token, the certificates and the settings. Makes the state directory
/// and the device id if they are missing.
pub(crate) fn folders(app: &App, config: &Config) -> anyhow::Result<Vec<FolderSetup>> {
    let session_id = device_id(app)?;
    let (token, _) = config.token(&app.machine.env)?;
    let ca_pem = config.ca_pem()?;
    let mut setups = folders_without_secrets(app, config);
    for (setup, folder) in setups.iter_mut().zip(&config.folders) {
        refuse_nested(&folder.path)?;
        setup.http = http_options(config, &folder.namespace, token.clone(), ca_pem.clone());
        setup.session_id.clone_from(&session_id);
        // This client is only a check. The folder makes its own.
        HttpRemote::new(setup.http.clone())
            .map_err(|e| CommandFailure::usage(format!("{}: {e}", setup.root.display())))?;
    }
    Ok(setups)
}

/// As [`folders`], to look at folders without the proxy. Reads no token and no certificate, and writes nothing.
pub(crate) fn folders_without_secrets(app: &App, config: &Config) -> Vec<FolderSetup> {
    let setup = |folder: &FolderConfig| {
        let files = state_files::find(app, &folder.path);
        FolderSetup {
            folder: folder.clone(),
            sync: config.sync.clone(),
            history: config.history.clone(),
            state: config.state.clone(),
            // Resolved once: if the path becomes a symlink to another folder later, the agent notices.
            root: resolve_links(&folder.path),
            state_dir: app.dirs.state.clone(),
            container: files.container_name(),
            lock: files.lock,
            status_file: files.status,
            activity_dir: files.activity,
            device: config.device.clone(),
            http: http_options(config, &folder.namespace, SecretString::default(), None),
            session_id: String::new(),
        }
    };
    config.folders.iter().map(setup).collect()
}

/// The settings of the connection. `ca_pem` has the certificates of `proxy.ca_file`.
pub(crate) fn http_options(
    config: &Config,
    namespace: &str,
    token: SecretString,
    ca_pem: Option<Vec<u8>>,
) -> HttpOptions {
    HttpOptions {
        origin: config.proxy.url.clone(),
        token,
        namespace: namespace.to_owned(),
        device: config.device.clone(),
        ca_pem,
        pin: config.proxy.pin,
        allow_http: config.proxy.allow_http,
        timeout: config.proxy.timeout,
        max_file_size: config.sync.max_file_size,
        concurrency: config.sync.concurrency,
    }
}

/// Refuses a folder inside or around another synced folder.
pub(crate) fn refuse_nested(folder: &Path) -> Result<(), CommandFailure> {
    check_nesting(&resolve_links(folder)).map_err(|e| CommandFailure::usage(e.to_string()))
}

/// Refuses files of the proxy inside a synced folder.
pub(crate) fn refuse_synced<'a>(
    config: &Config,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<(), CommandFailure> {
    let why = files.into_iter().find_map(|file| config.why_not_here(file));
    why.map_or(Ok(()), |why| Err(CommandFailure::usage(why)))
}

/// The error of a config that is not written yet. It names the option, because there is no line to name.
pub(crate) fn draft_error(error: ConfigError) -> anyhow::Error {
    match error {
        ConfigError::Bad { key, why, .. } => CommandFailure::usage(format!("{key}: {why}")).into(),
        error => error.into(),
    }
}
