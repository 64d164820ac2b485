//! `memsync up`: everything on one machine, without configuration: an embedded proxy and an agent in one process.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::app::App;
use super::args::Listen;
use super::exit::{Exit, Failure};
use super::locate::real;
use super::run::tend;
use super::signals::{Wishes, notify};
use super::tls::{Shown, Source};
use super::{join, machine_store, output, own_proxy, serve, setup, show, talk};
use crate::agent::Agent;
use crate::config::{
    Config, ConfigError, Draft, TokenSource, added_folder, create_private, create_private_dir, parse_token,
    read_token_file, shell_word,
};
use crate::proxy;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8484);
/// Between two looks whether the first sync is done.
const TICK: Duration = Duration::from_millis(100);

/// How it was asked for.
pub struct Asked {
    pub dir: Option<PathBuf>,
    pub listen: Option<Listen>,
    pub tls: Option<Source>,
    pub no_tls: bool,
}

/// What is running, for people and programs.
#[derive(Serialize)]
struct Up {
    /// The first of `folders`.
    folder: PathBuf,
    folders: Vec<PathBuf>,
    /// As the agent here reaches it.
    proxy: String,
    listen: SocketAddr,
    /// Whether other machines reach it over TLS.
    tls: bool,
    config: PathBuf,
    /// Holds the token, so it is `None` unless stdout is a terminal: any other output may be a log.
    join: Option<String>,
    /// Prints the link.
    join_command: &'static str,
}

/// # Errors
/// When a config is there that means something else, the address is taken, or an agent runs already.
pub fn run(app: &App, asked: &Asked) -> anyhow::Result<Exit> {
    let dir = asked.dir.as_ref().map(std::path::absolute).transpose().context("the folder")?;
    let listen = match &asked.listen {
        Some(listen) => listen.resolve(&app.around.env).map_err(|why| Failure::new(Exit::Usage, why))?,
        None => own_proxy::recorded_listen(app)?.unwrap_or(DEFAULT_LISTEN),
    };
    let source = match &asked.tls {
        Some(source) => Some(source.clone()),
        None if asked.no_tls => None,
        None => own_proxy::recorded_tls(app)?,
    };
    serve::allow_files();
    serve::runtime()?.block_on(async {
        let mut wishes = Wishes::listen()?;
        match app.config() {
            Ok(config) => agrees(app, config, dir.as_deref(), listen)?,
            Err(e) if matches!(*e, ConfigError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        if talk::status(app).await?.is_some() {
            let why = "an agent runs already; stop it first, or see `memsync status`";
            return Err(Failure::new(Exit::Error, why).into());
        }
        let listener = serve::bind(listen).await?;
        let listen = listener.local_addr()?;
        let config = match app.config() {
            Ok(config) => config.clone(),
            Err(_) => first_start(app, dir.as_deref(), listen)?,
        };
        setup::keep_apart(&config, source.iter().flat_map(Source::files))?;
        let shown = match &source {
            // The agent here goes on speaking plain http with it, which leaves this machine no more than before.
            Some(source) => Some(Shown::open(app, source.clone(), listen, true)?),
            None => None,
        };
        own_proxy::record_listen(app, listen)?;
        if source.is_some() || asked.no_tls {
            own_proxy::record_tls(app, source.as_ref())?;
        }
        together(app, &config, listener, shown, &mut wishes).await
    })?;
    Ok(Exit::Done)
}

/// Runs proxy and agent until a signal stops them: the agent first, which still has something to say to the proxy.
async fn together(
    app: &App,
    config: &Config,
    listener: TcpListener,
    shown: Option<Shown>,
    wishes: &mut Wishes,
) -> anyhow::Result<()> {
    let (token, _) = config.token(&app.around.env)?;
    let listen = listener.local_addr()?;
    let store = machine_store::open(&app.dirs.proxy)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let options =
        proxy::Options { tls: shown.as_ref().map(|shown| shown.tls.clone()), ..proxy::Options::new(token.clone()) };
    let mut proxy = tokio::spawn(proxy::serve(listener, store, options, async {
        // Dropping the sender stops it as well.
        let _ = stopped.await;
    }));
    let agent = Agent::start(setup::agent(app, config)?).await?;
    let up = Up {
        folder: config.folders[0].path.clone(),
        folders: config.folders.iter().map(|f| f.path.clone()).collect(),
        proxy: config.proxy.url.clone(),
        listen,
        tls: shown.is_some(),
        config: app.dirs.config_file.clone(),
        join: io::stdout().is_terminal().then(|| {
            let pin = shown.as_ref().map(|shown| shown.pin);
            own_proxy::join_link(&app.around.host, listen, pin, &config.folders[0].namespace, token).reveal()
        }),
        join_command: "memsync link",
    };
    app.answer(&up, people)?;
    notify(NotifyState::Ready);
    let also = || shown.iter().for_each(Shown::reload);
    let ended = tokio::select! {
        () = tend(app, &agent, wishes, also) => None,
        () = first_sync(&agent) => {
            tokio::select! {
                () = tend(app, &agent, wishes, also) => None,
                ended = &mut proxy => Some(ended),
            }
        }
        ended = &mut proxy => Some(ended),
    };
    notify(NotifyState::Stopping);
    agent.stop().await;
    drop(stop);
    let ended = match ended {
        Some(ended) => ended,
        None => proxy.await,
    };
    ended.context("the proxy failed")?.context("the proxy failed")
}

/// Says so, once everything is in sync.
async fn first_sync(agent: &Agent) {
    loop {
        let status = agent.status();
        if status.in_sync {
            let files: usize = status.folders.iter().map(|f| f.files).sum();
            output::note(format_args!("{} {}.", show::painted(show::GOOD, "In sync:"), show::count(files, "file")));
            return;
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Makes folder, token and config. A start that was killed half-way is taken up where it ended: the config is last.
fn first_start(app: &App, dir: Option<&Path>, listen: SocketAddr) -> anyhow::Result<Config> {
    let folder = match dir {
        Some(dir) => dir.to_owned(),
        None => app.default_folder()?,
    };
    let config_file = &app.dirs.config_file;
    let token_file = config_file.with_file_name("token");
    let draft = Draft {
        device: Config::defaults(&app.around.host).device,
        url: own_proxy::url_here(listen),
        token_file: token_file.clone(),
        // What goes to an address of this machine does not leave it.
        allow_http: !listen.ip().is_loopback() && !listen.ip().is_unspecified(),
        ca_file: None,
        pin: None,
        path: folder.clone(),
        namespace: String::new(),
    };
    let text = draft.to_toml();
    // Judged by the same rules as a file, before anything is made.
    Config::parse(&text, config_file, &app.around).map_err(setup::refused_draft)?;
    setup::refuse_nested(&folder)?;
    create_private_dir(&folder).with_context(|| format!("{}: the folder cannot be made", folder.display()))?;
    match read_token_file(&token_file, &TokenSource::ConfigFile(token_file.clone())) {
        Ok(_) => {}
        Err(_) if !token_file.exists() => {
            let token = parse_token(&setup::random_hex::<32>()?, &TokenSource::ConfigFile(token_file.clone()))?;
            let line = SecretString::from(format!("{}\n", token.expose_secret()));
            create_private(&token_file, line.expose_secret().as_bytes())
                .with_context(|| format!("{} cannot be written", token_file.display()))?;
        }
        Err(e) => return Err(e.into()),
    }
    create_private(config_file, text.as_bytes())
        .with_context(|| format!("{} cannot be written", config_file.display()))?;
    Ok(Config::load(config_file, &app.around)?)
}

/// Checks that the config that is there means what `up` is asked to do. It is never overwritten.
fn agrees(app: &App, config: &Config, dir: Option<&Path>, listen: SocketAddr) -> anyhow::Result<()> {
    if let Some(dir) = dir
        && !config.folders.iter().any(|f| real(&f.path) == real(dir))
    {
        return Err(other_folder(app, config, dir)?.into());
    }
    if config.proxy.url == own_proxy::url_here(listen) {
        return Ok(());
    }
    Err(other_proxy(app, config, listen).into())
}

/// Says how the folder `dir` is synced beside those of the config, without mixing their files.
fn other_folder(app: &App, config: &Config, dir: &Path) -> anyhow::Result<Failure> {
    let (file, shown) = (&app.dirs.config_file, dir.display());
    let section = added_folder(file, &app.around, dir, &config.folders)
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
    Ok(Failure::new(Exit::Usage, why).with_advice(advice))
}

/// Says how to start with the proxy that the config names.
fn other_proxy(app: &App, config: &Config, listen: SocketAddr) -> Failure {
    let (file, url) = (app.dirs.config_file.display(), &config.proxy.url);
    let here = own_proxy::url_here(listen);
    let why = match own_proxy::listen_of_config(app, config) {
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
    Failure::new(Exit::Usage, why)
}

fn people(out: &mut dyn Write, up: &Up) -> io::Result<()> {
    let bold = |text: &str| show::painted(show::BOLD, text);
    for folder in &up.folders {
        writeln!(out, "{}  {}", bold("folder"), show::name(&folder.display().to_string()))?;
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
    join::explain(out, up.listen, up.tls)?;
    writeln!(out, "\nCtrl-C stops everything.")
}
