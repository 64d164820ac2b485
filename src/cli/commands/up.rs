//! `memsync up`: an embedded proxy and an agent in one process, without configuration.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use secrecy::SecretString;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::init::write_files;
use super::link::explain_join;
use super::run::serve_requests;
use crate::agent::Agent;
use crate::agent::problems::ProblemEffect;
use crate::agent::status::{Status, SyncState};
use crate::cli::agent_client;
use crate::cli::app::App;
use crate::cli::args::UpArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::machine::agent_setup;
use crate::cli::machine::certificate::{CertificateSource, ServedCertificate};
use crate::cli::machine::own_proxy::{self, JoinLink};
use crate::cli::machine::state_files::random_hex;
use crate::cli::process::output;
use crate::cli::process::runtime::server_runtime;
use crate::cli::process::server::{SignalRequests, bind_listener, notify_systemd, raise_open_file_limit};
use crate::cli::view::format;
use crate::config::{
    Config, ConfigDraft, ConfigError, TokenSource, added_folder, parse_token, read_token_file, resolve_links,
    shell_word,
};
use crate::proxy;
use crate::store::sqlite::SqliteStore;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8484);
/// How often the status is checked until the first sync is done.
const FIRST_SYNC_POLL: Duration = Duration::from_millis(100);

/// The document of `up`, printed once everything runs.
#[derive(Serialize)]
struct UpAnswer {
    /// The first of `folders`.
    folder: PathBuf,
    folders: Vec<PathBuf>,
    /// The URL for this machine.
    proxy: String,
    listen: SocketAddr,
    /// True if other machines connect with TLS.
    tls: bool,
    config: PathBuf,
    /// `None` unless stdout is a terminal: the link holds the token, and other output may be a log.
    join: Option<String>,
    /// The command that prints the link.
    join_command: &'static str,
}

pub(super) fn run(app: &App, args: &UpArgs) -> anyhow::Result<Exit> {
    let dir = args.dir.as_ref().map(std::path::absolute).transpose().context("the folder")?;
    let listen = match &args.listen {
        Some(listen) => listen.resolve(&app.machine.env).map_err(CommandFailure::usage)?,
        None => own_proxy::recorded_listen(app)?.unwrap_or(DEFAULT_LISTEN),
    };
    let source = match CertificateSource::of(&args.tls)? {
        Some(source) => Some(source),
        None if args.no_tls => None,
        None => own_proxy::recorded_certificate(app)?,
    };
    raise_open_file_limit();
    server_runtime()?.block_on(async {
        let mut signals = SignalRequests::listen()?;
        check_start(app, dir.as_deref(), listen).await?;
        let listener = bind_listener(listen).await?;
        let listen = listener.local_addr()?;
        let config = match app.config() {
            Ok(config) => config.clone(),
            Err(_) => first_start(app, dir.as_deref(), listen)?,
        };
        agent_setup::refuse_synced(&config, source.iter().flat_map(CertificateSource::files))?;
        // The agent of this process speaks plain http with the proxy, which never leaves the machine.
        let open = |source: &CertificateSource| ServedCertificate::open(app, source.clone(), listen, true);
        let certificate = source.as_ref().map(open).transpose()?;
        own_proxy::record_listen(app, listen)?;
        if source.is_some() || args.no_tls {
            own_proxy::record_certificate(app, source.as_ref())?;
        }
        run_both(app, &config, listener, certificate, &mut signals).await
    })?;
    Ok(Exit::Done)
}

/// Refuses to start with a config that means something else, or beside a running agent.
async fn check_start(app: &App, dir: Option<&Path>, listen: SocketAddr) -> anyhow::Result<()> {
    match app.config() {
        Ok(config) => check_config(app, config, dir, listen)?,
        Err(e) if matches!(*e, ConfigError::NotFound { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    if agent_client::agent_status(app).await?.is_some() {
        let why = "an agent runs already; stop it first, or see `memsync status`";
        return Err(CommandFailure::new(Exit::Error, why).into());
    }
    Ok(())
}

/// Runs proxy and agent until a signal stops them. The agent stops first, because its last requests need the proxy.
async fn run_both(
    app: &App,
    config: &Config,
    listener: TcpListener,
    certificate: Option<ServedCertificate>,
    signals: &mut SignalRequests,
) -> anyhow::Result<()> {
    let (token, _) = config.token(&app.machine.env)?;
    let listen = listener.local_addr()?;
    let store = Arc::new(SqliteStore::open(&app.dirs.proxy)?);
    let (stop, stopped) = oneshot::channel::<()>();
    let tls = certificate.as_ref().map(|certificate| certificate.tls.clone());
    let options = proxy::ProxyOptions { tls, ..proxy::ProxyOptions::new(token.clone()) };
    let mut proxy = tokio::spawn(proxy::serve(listener, store, options, async {
        // A dropped sender stops the proxy as well.
        let _ = stopped.await;
    }));
    let agent = Agent::start(agent_setup::agent_options(app, config)?).await?;
    app.answer(&up_answer(app, config, listen, certificate.as_ref(), token), write_answer)?;
    notify_systemd(NotifyState::Ready);
    let on_reload = || certificate.iter().for_each(ServedCertificate::reload);
    let noting = async {
        note_first_sync(&agent).await;
        std::future::pending().await
    };
    let ended = tokio::select! {
        () = serve_requests(app, &agent, signals, on_reload) => None,
        ended = &mut proxy => Some(ended),
        ended = noting => ended,
    };
    notify_systemd(NotifyState::Stopping);
    agent.stop().await;
    drop(stop);
    let ended = match ended {
        Some(ended) => ended,
        None => proxy.await,
    };
    ended.context("the proxy failed")?.context("the proxy failed")
}

fn up_answer(
    app: &App,
    config: &Config,
    listen: SocketAddr,
    certificate: Option<&ServedCertificate>,
    token: SecretString,
) -> UpAnswer {
    let first = &config.folders[0];
    UpAnswer {
        folder: first.path.clone(),
        folders: config.folders.iter().map(|f| f.path.clone()).collect(),
        proxy: config.proxy.url.clone(),
        listen,
        tls: certificate.is_some(),
        config: app.dirs.config_file.clone(),
        join: io::stdout().is_terminal().then(|| {
            let tls = certificate.map(|certificate| certificate.pin);
            JoinLink::new(&app.machine.host, listen, tls, &first.namespace, token).reveal()
        }),
        join_command: "memsync link",
    }
}

/// Says so once everything is in sync, or everything but files that wait for the user.
async fn note_first_sync(agent: &Agent) {
    loop {
        let status = agent.status();
        if status.folders.iter().all(|f| f.in_sync || f.state == SyncState::Idle && f.needs_person()) {
            output::note_with(|out| write_first_sync(out, &status));
            return;
        }
        tokio::time::sleep(FIRST_SYNC_POLL).await;
    }
}

/// The line of `up` after the first sync: in sync, or in sync except for the files that wait for the user.
fn write_first_sync(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let files = format::count(status.folders.iter().map(|f| f.files).sum(), "file");
    let problems = status.folders.iter().flat_map(|f| f.problems.iter().map(move |problem| (f, problem)));
    let blocked: Vec<_> = problems.filter(|(_, problem)| problem.effect == ProblemEffect::Blocked).collect();
    if blocked.is_empty() {
        return writeln!(out, "{} {files}.", format::painted(format::GOOD, "In sync:"));
    }
    let count = format::count(blocked.len(), "file");
    writeln!(out, "{} {files}, except {count} that cannot be synced:", format::painted(format::BUSY, "In sync:"))?;
    for (folder, problem) in blocked {
        let path = Path::new(&folder.path).join(&problem.path);
        writeln!(out, "  {}: {}", format::path(&path), format::printable(&problem.problem))?;
    }
    Ok(())
}

/// Makes the folder, the token and the config.
fn first_start(app: &App, dir: Option<&Path>, listen: SocketAddr) -> anyhow::Result<Config> {
    let folder = match dir {
        Some(dir) => dir.to_owned(),
        None => app.default_folder()?,
    };
    let config_file = &app.dirs.config_file;
    let draft = ConfigDraft {
        device: Config::defaults(&app.machine.host).device,
        url: own_proxy::local_url(listen),
        token_file: config_file.with_file_name("token"),
        // Requests to an address of this machine do not leave it.
        allow_http: !listen.ip().is_loopback() && !listen.ip().is_unspecified(),
        ca_file: None,
        pin: None,
        path: folder,
        namespace: String::new(),
    };
    Config::parse(&draft.to_toml(), config_file, &app.machine).map_err(agent_setup::draft_error)?;
    agent_setup::refuse_nested(&draft.path)?;
    write_files(&draft, new_token(&draft.token_file)?.as_ref(), config_file)?;
    Ok(Config::load(config_file, &app.machine)?)
}

/// A random token. `None` if the file holds one already.
fn new_token(file: &Path) -> anyhow::Result<Option<SecretString>> {
    let source = TokenSource::ConfigFile(file.to_owned());
    match read_token_file(file, &source) {
        Ok(_) => Ok(None),
        Err(_) if !file.exists() => Ok(Some(parse_token(&random_hex::<32>()?, &source)?)),
        Err(e) => Err(e.into()),
    }
}

/// Refuses a config with other folders or another proxy. `up` never changes a config.
fn check_config(app: &App, config: &Config, dir: Option<&Path>, listen: SocketAddr) -> anyhow::Result<()> {
    if let Some(dir) = dir
        && !config.folders.iter().any(|f| resolve_links(&f.path) == resolve_links(dir))
    {
        return Err(other_folder(app, config, dir)?.into());
    }
    if config.proxy.url == own_proxy::local_url(listen) {
        return Ok(());
    }
    Err(other_proxy(app, config, listen).into())
}

/// Says how to sync `dir` beside the folders of the config without mixing their files.
fn other_folder(app: &App, config: &Config, dir: &Path) -> anyhow::Result<CommandFailure> {
    let (file, shown) = (&app.dirs.config_file, dir.display());
    let section = added_folder(file, &app.machine, dir, &config.folders)
        .with_context(|| format!("{shown} cannot be synced as well"))?;
    let others: Vec<_> = config.folders.iter().map(|f| f.path.display().to_string()).collect();
    let make = if dir.exists() { String::new() } else { format!("make it (`mkdir -p {}`), ", shell_word(dir)) };
    let why = format!(
        "{} syncs {}, not {shown}. To sync {shown} as well, {make}add these lines at the end of the config, and start \
         `memsync up` without a folder:",
        file.display(),
        others.join(", "),
    );
    let advice = format!("{section}\nThe namespace keeps its files apart from those of the other folders.");
    Ok(CommandFailure::usage(why).with_advice(advice))
}

/// Says how to start with the proxy that the config names.
fn other_proxy(app: &App, config: &Config, listen: SocketAddr) -> CommandFailure {
    let (file, url) = (app.dirs.config_file.display(), &config.proxy.url);
    let here = own_proxy::local_url(listen);
    let why = match own_proxy::listen_of_config(app) {
        Some(before) => {
            let to_move = format!("; to move it, set proxy.url = \"{here}\" there first");
            let to_move = if listen.port() == 0 { "" } else { &to_move };
            format!(
                "{file} uses the proxy that `memsync up` runs at {before}, not at {listen}. `memsync up` without \
                 --listen starts it there{to_move}"
            )
        }
        None => {
            let own = url.strip_prefix("http://").and_then(|address| address.parse::<SocketAddr>().ok());
            let own = own.map_or_else(String::new, |address| {
                format!("; if it is this machine's own, `memsync up --listen {address}` starts it")
            });
            format!(
                "{file} uses the proxy {url}, and `memsync up` would start another one at {here}. `memsync run` syncs \
                 with the proxy {url}{own}"
            )
        }
    };
    CommandFailure::usage(why)
}

fn write_answer(out: &mut dyn Write, up: &UpAnswer) -> io::Result<()> {
    let bold = |text: &str| format::painted(format::BOLD, text);
    for folder in &up.folders {
        writeln!(out, "{}  {}", bold("folder"), format::path(folder))?;
    }
    writeln!(out, "{}   {} (runs in this process)", bold("proxy"), up.proxy)?;
    writeln!(out, "{}  memsync status", bold("status"))?;
    let heading = bold("To join with a second machine.");
    match &up.join {
        Some(link) => {
            writeln!(out, "\n{heading} Keep the link to yourself: it holds the token.\n    {link}")?;
        }
        None => writeln!(out, "\n{heading} `{}` prints the link, which holds the token.", up.join_command)?,
    }
    explain_join(out, up.listen, up.tls)?;
    writeln!(out, "\nCtrl-C stops everything.")
}
