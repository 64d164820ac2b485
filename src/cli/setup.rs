//! From config, places and token to what the agent is started with.

use std::io;
use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;

use super::app::App;
use super::exit::{Exit, Failure};
use super::locate::real;
use super::state_files;
use crate::agent::AgentOptions;
use crate::agent::setup::FolderSetup;
use crate::config::{Config, ConfigError, Format, create_private, create_private_dir};
use crate::disk::real::RealDisk;
use crate::disk::whole::replace_private;
use crate::disk::{Disk, DiskFile};
use crate::local::nesting::check_nesting;
use crate::remote::http::{HttpOptions, HttpRemote};
use crate::state;

/// Below the state directory: which machine this is, for as long as the directory lives.
const DEVICE_ID: &str = "device-id";
/// Longest file read here, bytes.
const MAX_RECORD: usize = 4096;

/// What the agent needs for all configured folders. Makes the state directory and the device id where they are
/// missing.
///
/// # Errors
/// When the token or the certificates cannot be read or used, or the state directory cannot be written.
pub fn agent(app: &App, config: &Config) -> anyhow::Result<AgentOptions> {
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

/// What syncing each configured folder needs.
///
/// # Errors
/// As [`agent`].
pub fn folders(app: &App, config: &Config, session: &str) -> anyhow::Result<Vec<FolderSetup>> {
    let (token, _) = config.token(&app.around.env)?;
    let ca_pem = config.ca_pem()?;
    let checked = |f: &crate::config::Folder| {
        refuse_nested(&f.path)?;
        let setup = folder(app, config, f, &token, ca_pem.clone(), session);
        // Whoever syncs makes its own; here it shows that the settings can be used at all.
        match HttpRemote::new(setup.http.clone()) {
            Ok(_) => Ok(setup),
            Err(e) => Err(Failure::new(Exit::Usage, format!("{}: {e}", setup.root.display())).into()),
        }
    };
    config.folders.iter().map(checked).collect()
}

/// Refuses a folder below or above one that is a memory folder already.
///
/// # Errors
/// Which one it is.
pub fn refuse_nested(folder: &Path) -> Result<(), Failure> {
    check_nesting(&real(folder)).map_err(|e| Failure::new(Exit::Usage, e.to_string()))
}

/// As [`folders`], for a look without the proxy: reads neither token nor certificates, and writes nothing.
pub fn folders_at_rest(app: &App, config: &Config) -> Vec<FolderSetup> {
    let none = SecretString::default();
    config.folders.iter().map(|f| folder(app, config, f, &none, None, "")).collect()
}

/// The error of a config that is not written yet: names the option, as there is no line to name.
pub fn refused_draft(error: ConfigError) -> anyhow::Error {
    match error {
        ConfigError::Bad { key, why, .. } => Failure::new(Exit::Usage, format!("{key}: {why}")).into(),
        error => error.into(),
    }
}

fn folder(
    app: &App,
    config: &Config,
    folder: &crate::config::Folder,
    token: &SecretString,
    ca_pem: Option<Vec<u8>>,
    session: &str,
) -> FolderSetup {
    let files = state_files::find(app, &folder.path);
    let container = files.container.file_name().unwrap_or_default().to_string_lossy().into_owned();
    FolderSetup {
        path: folder.path.clone(),
        // Resolved once, here: should the path become a symlink to another place later, the agent notices.
        root: real(&folder.path),
        state_dir: app.dirs.state.clone(),
        container,
        lock: files.lock,
        status_file: files.status,
        device: config.device.clone(),
        namespace: folder.namespace.clone(),
        ignore: folder.ignore.clone(),
        http: HttpOptions {
            origin: config.proxy.url.clone(),
            token: token.clone(),
            namespace: folder.namespace.clone(),
            device: config.device.clone(),
            ca_pem,
            pin: config.proxy.pin,
            allow_http: config.proxy.allow_http,
            timeout: config.proxy.timeout,
            max_file_size: config.sync.max_file_size,
            concurrency: config.sync.concurrency,
        },
        format: match config.state.format {
            Format::Json => state::StateFormat::Json,
            Format::MessagePack => state::StateFormat::MsgPack,
        },
        pretty: config.state.pretty,
        session_id: session.to_owned(),
        interval: config.sync.interval,
        debounce: config.sync.debounce,
        rescan: config.sync.rescan,
        concurrency: config.sync.concurrency,
        max_file_size: config.sync.max_file_size,
        max_delete: config.sync.max_delete,
        history_keep: config.history.keep,
        history_max: config.history.max_size,
    }
}

/// Refuses a file or folder of the proxy's that is in a synced folder.
///
/// # Errors
/// Which of them is.
pub fn keep_apart<'a>(config: &Config, files: impl IntoIterator<Item = &'a Path>) -> Result<(), Failure> {
    let why = files.into_iter().find_map(|file| config.why_not_here(file));
    why.map_or(Ok(()), |why| Err(Failure::new(Exit::Usage, why)))
}

/// The id of this machine; a random one is made with the first call.
///
/// # Errors
/// When it cannot be read or written.
pub fn device_id(app: &App) -> anyhow::Result<String> {
    create_private_dir(&app.dirs.state)
        .with_context(|| format!("{}: the state directory cannot be made", app.dirs.state.display()))?;
    let path = app.dirs.state.join(DEVICE_ID);
    let fresh = format!("{}\n", random_hex::<16>()?);
    let made = match record(&app.dirs.state, DEVICE_ID)?.as_deref() {
        // An earlier version left it so when it was killed.
        Some("") => replace_private(&path, fresh.as_bytes()),
        Some(_) => Ok(()),
        None => create_private(&path, fresh.as_bytes()),
    };
    match made {
        // Another start was quicker.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.with_context(|| path.display().to_string())?,
    }
    let id = record(&app.dirs.state, DEVICE_ID)?.unwrap_or_default();
    anyhow::ensure!(!id.is_empty(), "{}: is empty; remove it, and another is made", path.display());
    Ok(id)
}

/// The text of a small file in a folder of ours, without the space around it; `None` where there is none.
///
/// # Errors
/// When it cannot be read.
pub fn record(dir: &Path, name: &str) -> anyhow::Result<Option<String>> {
    let read = || {
        let mut file = RealDisk::open(&real(dir))?.open(name)?;
        let (mut text, mut buf) = (Vec::new(), [0; 512]);
        while text.len() < MAX_RECORD {
            match file.read(&mut buf)? {
                0 => break,
                n => text.extend_from_slice(&buf[..n]),
            }
        }
        String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
    };
    match read() {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| dir.join(name).display().to_string()),
    }
}

/// `N` random bytes in hex, fit for a secret.
///
/// # Errors
/// When the system gives none.
pub fn random_hex<const N: usize>() -> anyhow::Result<String> {
    let mut bytes = [0; N];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Writes a small file in a folder of ours, whole or not at all, in the place of one that may be there.
///
/// # Errors
/// When it cannot be written.
pub fn keep_record(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = dir.join(name);
    replace_private(&path, format!("{text}\n").as_bytes()).with_context(|| path.display().to_string())
}
