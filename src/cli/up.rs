//! `memsync up`: everything on one machine, without configuration: an embedded proxy and an agent in one process.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::fstat;
use sd_notify::NotifyState;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::app::App;
use super::exit::{Exit, Failure};
use super::link::JoinLink;
use super::locate::real;
use super::run::tend;
use super::signals::{Wishes, notify};
use super::tls::{Shown, Source};
use super::{machine_store, output, serve, setup, show, talk};
use crate::agent::run::Agent;
use crate::config::{
    Config, ConfigError, Draft, TokenSource, create_private, create_private_dir, parse_token, read_token_file,
};
use crate::protocol::Pin;
use crate::proxy;

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8484);
/// Below the state directory: where the proxy of `up` listened last.
const LISTEN: &str = "up-listen";
/// Below the state directory: which certificate the proxy of `up` shows, where it shows one.
const TLS: &str = "up-tls";
/// In its place: none.
const NO_TLS: &str = "none";
/// Between two looks whether the first sync is done.
const TICK: Duration = Duration::from_millis(100);

/// How it was asked for.
pub struct Asked {
    pub dir: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub tls: Option<Source>,
    pub no_tls: bool,
}

/// What is running, for people and programs.
#[derive(Serialize)]
struct Up {
    folder: PathBuf,
    /// As the agent here reaches it.
    proxy: String,
    listen: SocketAddr,
    /// Whether other machines reach it over TLS.
    tls: bool,
    config: PathBuf,
    /// Holds the token: whoever has it can read and write everything. Not told where the output is a journal.
    join: String,
}

/// # Errors
/// When a config is there that means something else, the address is taken, or an agent runs already.
pub fn run(app: &App, asked: &Asked) -> anyhow::Result<Exit> {
    let dir = asked.dir.as_ref().map(std::path::absolute).transpose().context("the folder")?;
    let listen = match asked.listen {
        Some(listen) => listen,
        None => recorded(app)?.unwrap_or(DEFAULT_LISTEN),
    };
    let source = match &asked.tls {
        Some(source) => Some(source.clone()),
        None if asked.no_tls => None,
        None => recorded_tls(app)?,
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
        let shown = match &source {
            // The agent here goes on speaking plain http with it, which leaves this machine no more than before.
            Some(source) => Some(Shown::open(app, source.clone(), listen, true)?),
            None => None,
        };
        remember(app, LISTEN, &listen.to_string())?;
        if source.is_some() || asked.no_tls {
            remember(app, TLS, &source.map_or(NO_TLS.to_owned(), |source| source.record()))?;
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
        proxy: config.proxy.url.clone(),
        listen,
        tls: shown.is_some(),
        config: app.dirs.config_file.clone(),
        join: match is_journal(app.around.env.get("JOURNAL_STREAM"), io::stdout()) {
            // The token goes into no log (invariant 14).
            true => "(the link is shown in a terminal only: run `memsync up` there)".to_owned(),
            false => join_link(&app.around.host, listen, shown.as_ref().map(|shown| shown.pin), token).reveal(),
        },
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

/// Whether `out` is the journal that systemd names in `JOURNAL_STREAM`, as "device:inode". Programs started from a
/// service inherit the variable even where their output goes elsewhere.
fn is_journal(stream: Option<&String>, out: impl AsFd) -> bool {
    match (stream, fstat(out)) {
        (Some(stream), Ok(out)) => *stream == format!("{}:{}", out.st_dev, out.st_ino),
        // What cannot be told apart may be a log.
        (Some(_), Err(_)) => true,
        (None, _) => false,
    }
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
        url: url_here(listen),
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
    Config::parse(&text, config_file, &app.around)?;
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

/// Whether the config that is there means what `up` is asked to do. It is never overwritten.
fn agrees(app: &App, config: &Config, dir: Option<&Path>, listen: SocketAddr) -> anyhow::Result<()> {
    let file = app.dirs.config_file.display();
    if let Some(dir) = dir
        && !config.folders.iter().any(|f| real(&f.path) == real(dir))
    {
        let others: Vec<_> = config.folders.iter().map(|f| f.path.display().to_string()).collect();
        let why = format!(
            "{file} syncs {}, not {}; add a [[folder]] with this path to it and start `memsync up` without a folder",
            others.join(", "),
            dir.display()
        );
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let here = url_here(listen);
    if config.proxy.url == here {
        return Ok(());
    }
    let why = format!(
        "{file} uses the proxy {}, and `memsync up` would start one at {here}. If that proxy runs elsewhere, \
         `memsync run` is what you want; if it is the one of an earlier `memsync up`, set proxy.url = \"{here}\" \
         there, or start with the --listen it was made with",
        config.proxy.url
    );
    Err(Failure::new(Exit::Usage, why).into())
}

/// The proxy's address for the agent on this machine.
fn url_here(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

/// The link for another machine. Behind a loopback address it works through a tunnel to the same port. `tls`: whether
/// it speaks TLS, and with which certificate where no authority vouches for it.
fn join_link(host: &str, listen: SocketAddr, tls: Option<Option<Pin>>, token: SecretString) -> JoinLink {
    let url = if listen.ip().is_unspecified() { format!("http://{host}:{}", listen.port()) } else { url_here(listen) };
    let url = if tls.is_some() { url.replacen("http://", "https://", 1) } else { url };
    JoinLink { url, namespace: String::new(), pin: tls.flatten(), token }
}

fn recorded_tls(app: &App) -> anyhow::Result<Option<Source>> {
    let text = setup::record(&app.dirs.state, TLS)?.filter(|text| text != NO_TLS);
    let Some(text) = text else { return Ok(None) };
    Source::parse(&text).map(Some).ok_or_else(|| {
        let file = app.dirs.state.join(TLS);
        let why = format!("{}: {text:?} names no certificate; remove the file, and say --tls-…", file.display());
        Failure::new(Exit::Error, why).into()
    })
}

fn recorded(app: &App) -> anyhow::Result<Option<SocketAddr>> {
    let Some(text) = setup::record(&app.dirs.state, LISTEN)? else { return Ok(None) };
    let file = app.dirs.state.join(LISTEN);
    text.parse().map(Some).map_err(|_| {
        let why = format!("{}: {text:?} is no address; remove the file, or give --listen", file.display());
        Failure::new(Exit::Error, why).into()
    })
}

fn remember(app: &App, name: &str, text: &str) -> anyhow::Result<()> {
    if setup::record(&app.dirs.state, name).ok().flatten().as_deref() == Some(text) {
        return Ok(());
    }
    setup::keep_record(&app.dirs.state, name, text)
}

fn people(out: &mut dyn Write, up: &Up) -> io::Result<()> {
    let port = up.listen.port();
    let bold = |text: &str| show::painted(show::BOLD, text);
    writeln!(out, "{}  {}", bold("folder"), show::name(&up.folder.display().to_string()))?;
    writeln!(out, "{}   {} (runs in this process)", bold("proxy"), up.proxy)?;
    writeln!(out, "{}  memsync status", bold("status"))?;
    writeln!(out, "\n{} Keep the link to yourself: it holds the token.", bold("To join with a second machine."))?;
    writeln!(out, "    {}", up.join)?;
    if up.listen.ip().is_loopback() {
        writeln!(out, "The proxy listens on this machine alone. Through an SSH tunnel, on the second machine:")?;
        writeln!(out, "    ssh -N -L {port}:{} USER@THIS-MACHINE &", up.listen)?;
        writeln!(out, "    memsync init --join -       # and paste the link")?;
        writeln!(out, "    memsync run")?;
        writeln!(out, "Or let others reach it, encrypted: `memsync up --listen 0.0.0.0:{port} --tls-self-signed`.")?;
    } else if up.tls {
        writeln!(out, "On the second machine:")?;
        writeln!(out, "    memsync init --join -       # and paste the link")?;
        writeln!(out, "    memsync run")?;
    } else {
        writeln!(out, "On the second machine:")?;
        writeln!(out, "    memsync init --allow-http --join -       # and paste the link")?;
        writeln!(out, "    memsync run")?;
        writeln!(
            out,
            "Plain http shows the token to whoever can listen on the network between the two. Only do so where you\n\
             trust it; elsewhere start with --tls-self-signed."
        )?;
    }
    writeln!(out, "\nCtrl-C stops everything.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(listen: &str, pin: Option<Pin>) -> String {
        let listen: SocketAddr = listen.parse().unwrap();
        let join = join_link("desk", listen, pin.map(Some), "s3cret".to_owned().into()).reveal();
        let tls = pin.is_some();
        let up = Up { folder: "/m".into(), proxy: url_here(listen), listen, tls, config: "/c".into(), join };
        let mut out = Vec::new();
        people(&mut out, &up).unwrap();
        anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
    }

    #[test]
    fn the_agent_here_reaches_the_proxy_without_leaving_the_machine() {
        for (listen, url) in [
            ("127.0.0.1:8484", "http://127.0.0.1:8484"),
            ("0.0.0.0:1", "http://127.0.0.1:1"),
            ("[::]:1", "http://[::1]:1"),
            ("10.0.0.5:1", "http://10.0.0.5:1"),
        ] {
            assert_eq!(url_here(listen.parse().unwrap()), url);
        }
    }

    #[test]
    fn only_an_output_that_is_the_journal_hides_the_link() {
        use std::os::unix::fs::MetadataExt;
        let out = tempfile::tempfile().unwrap();
        let meta = out.metadata().unwrap();
        assert!(is_journal(Some(&format!("{}:{}", meta.dev(), meta.ino())), &out));
        assert!(!is_journal(Some(&format!("{}:{}", meta.dev(), meta.ino() + 1)), &out));
        assert!(!is_journal(None, &out));
    }

    #[test]
    fn behind_loopback_a_tunnel_is_explained() {
        let text = up("127.0.0.1:8484", None);
        for part in [
            "ssh -N -L 8484:127.0.0.1:8484",
            "init --join -",
            "memsync+http://127.0.0.1:8484#s3cret",
            "--listen 0.0.0.0:8484",
            "--tls-self-signed",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("--allow-http"), "a tunnel needs no plain http beyond loopback:\n{text}");
    }

    #[test]
    fn an_open_proxy_is_named_by_its_host_and_warned_of() {
        let text = up("0.0.0.0:9000", None);
        assert!(text.contains("--allow-http --join -") && text.contains("memsync+http://desk:9000#s3cret"), "{text}");
        assert!(text.contains("shows the token"), "{text}");
    }

    #[test]
    fn an_encrypted_proxy_brings_its_certificate_along() {
        let pin = Pin::of(b"certificate");
        let text = up("0.0.0.0:9000", Some(pin));
        assert!(text.contains(&format!("memsync+https://desk:9000?pin={pin}#s3cret")), "{text}");
        assert!(!text.contains("--allow-http") && !text.contains("shows the token"), "{text}");
    }
}
