//! Builds the settings of the agent from the config, the token and the directories.

use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;

use super::records::device_id;
use super::state_files;
use crate::agent::AgentOptions;
use crate::agent::setup::FolderSetup;
use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::config::{Config, ConfigError, FolderConfig, resolve_links};
use crate::local::nesting::check_nesting;
use crate::remote::http::{HttpOptions, HttpRemote};

/// The settings of the agent for all configured folders. Makes the state directory and the device id if they are missing.
pub(crate) fn agent_options(app: &App, config: &Config) -> anyhow::Result<AgentOptions> {
    let session = device_id(app)?;
    let socket = app.dirs.socket_to_bind().context("there is no place for the control socket")?;
    Ok(AgentOptions {
        device: config.device.clone(),
        proxy_url: config.proxy.url.clone(),
        state_dir: app.dirs.state.clone(),
        socket,
        folders: folders(app, config, &session)?,
    })
}

/// The settings of each configured folder. Checks the token, the certificates and the settings.
pub(crate) fn folders(app: &App, config: &Config, session: &str) -> anyhow::Result<Vec<FolderSetup>> {
    let (token, _) = config.token(&app.machine.env)?;
    let access = ProxySecrets { token, ca_pem: config.ca_pem()? };
    let checked = |f: &FolderConfig| {
        refuse_nested(&f.path)?;
        let setup = folder_setup(app, config, f, &access, session);
        // This client is only a check. The folder makes its own.
        match HttpRemote::new(setup.http.clone()) {
            Ok(_) => Ok(setup),
            Err(e) => Err(CommandFailure::new(Exit::Usage, format!("{}: {e}", setup.root.display())).into()),
        }
    };
    config.folders.iter().map(checked).collect()
}

/// As [`folders`], to look at folders without the proxy. Reads no token and no certificate, and writes nothing.
pub(crate) fn folders_without_secrets(app: &App, config: &Config) -> Vec<FolderSetup> {
    let access = ProxySecrets { token: SecretString::default(), ca_pem: None };
    config.folders.iter().map(|f| folder_setup(app, config, f, &access, "")).collect()
}

struct ProxySecrets {
    token: SecretString,
    /// Certificates to trust, PEM.
    ca_pem: Option<Vec<u8>>,
}

fn folder_setup(
    app: &App,
    config: &Config,
    folder: &FolderConfig,
    access: &ProxySecrets,
    session: &str,
) -> FolderSetup {
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
        device: config.device.clone(),
        http: HttpOptions {
            origin: config.proxy.url.clone(),
            token: access.token.clone(),
            namespace: folder.namespace.clone(),
            device: config.device.clone(),
            ca_pem: access.ca_pem.clone(),
            pin: config.proxy.pin,
            allow_http: config.proxy.allow_http,
            timeout: config.proxy.timeout,
            max_file_size: config.sync.max_file_size,
            concurrency: config.sync.concurrency,
        },
        session_id: session.to_owned(),
    }
}

/// Refuses a folder inside or around another synced folder.
pub(crate) fn refuse_nested(folder: &Path) -> Result<(), CommandFailure> {
    check_nesting(&resolve_links(folder)).map_err(|e| CommandFailure::new(Exit::Usage, e.to_string()))
}

/// Refuses files of the proxy inside a synced folder.
pub(crate) fn refuse_synced<'a>(
    config: &Config,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<(), CommandFailure> {
    let why = files.into_iter().find_map(|file| config.why_not_here(file));
    why.map_or(Ok(()), |why| Err(CommandFailure::new(Exit::Usage, why)))
}

/// The error of a config that is not written yet. It names the option, because there is no line to name.
pub(crate) fn draft_error(error: ConfigError) -> anyhow::Error {
    match error {
        ConfigError::Bad { key, why, .. } => CommandFailure::new(Exit::Usage, format!("{key}: {why}")).into(),
        error => error.into(),
    }
}
