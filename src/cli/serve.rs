//! `memsync serve`: a Memory Proxy alone.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use super::app::App;
use super::args::Listen;
use super::exit::{Exit, Failure};
use super::s3;
use super::signals::{Wish, Wishes, notify};
use super::tls::{Shown, Source};
use crate::config::{TokenSource, read_token_file, token_from_env};
use crate::proxy;
use crate::store::{Embedded, Store};

/// How it was asked for.
pub struct Serve {
    pub listen: Listen,
    pub store: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    /// Bytes.
    pub max_body: u64,
    pub tls: Option<Source>,
    pub metrics_listen: Option<SocketAddr>,
    /// Requests a second of one key.
    pub rate: Option<NonZeroU32>,
}

/// # Errors
/// When there is no token, the store cannot be opened, or the address is taken.
pub fn run(app: &App, serve: &Serve) -> anyhow::Result<Exit> {
    let base = proxy::Options::new(token(app, serve)?);
    let options = proxy::Options { max_body: serve.max_body, rate: serve.rate, ..base };
    let runtime = runtime()?;
    match (s3::options(app)?, &serve.store) {
        (Some(_), Some(dir)) => {
            let dir = dir.display();
            let why =
                format!("the store is to be {dir} (--store, MEMSYNC_STORE) and an S3 bucket (S3_BUCKET); unset one");
            Err(Failure::new(Exit::Usage, why).into())
        }
        (Some(bucket), None) => {
            let store = runtime.block_on(s3::open(&bucket))?;
            let place = store.place().to_owned();
            stay(app, serve, &runtime, Arc::new(store), &place, options)
        }
        (None, dir) => {
            let dir = dir.as_ref().unwrap_or(&app.dirs.proxy);
            stay(app, serve, &runtime, open(dir)?, &dir.display().to_string(), options)
        }
    }
}

/// Serves `store`, which is at `place`, until a signal says stop.
fn stay<S: Store>(
    app: &App,
    serve: &Serve,
    runtime: &Runtime,
    store: Arc<S>,
    place: &str,
    mut options: proxy::Options,
) -> anyhow::Result<Exit> {
    let listen = serve.listen.resolve(&app.around.env).map_err(|why| Failure::new(Exit::Usage, why))?;
    allow_files();
    runtime.block_on(async {
        let mut wishes = Wishes::listen()?;
        let listener = bind(listen).await?;
        let address = listener.local_addr()?;
        let shown = match serve.tls.clone() {
            Some(source) => Some(Shown::open(app, source, address, false)?),
            None => None,
        };
        options.tls = shown.as_ref().map(|shown| shown.tls.clone());
        let scheme = if shown.is_some() { "https" } else { "http" };
        tracing::info!("serving {place} at {scheme}://{address}");
        if let Some(pin) = shown.as_ref().and_then(|shown| shown.pin) {
            let host = &app.around.host;
            tracing::info!("to join: memsync init --proxy https://{host}:{} --pin {pin}", address.port());
        }
        if let Some(listen) = serve.metrics_listen {
            let listener = bind(listen).await?;
            tracing::info!("metrics for everybody at http://{}/metrics", listener.local_addr()?);
            options.metrics_listener = Some(Arc::new(listener));
        }
        notify(NotifyState::Ready);
        proxy::serve(listener, store, options, async {
            until_stopped(&mut wishes, shown.as_ref()).await;
            notify(NotifyState::Stopping);
        })
        .await
        .context("the proxy failed")
    })?;
    Ok(Exit::Done)
}

/// Reads the certificate again on HUP, until a signal says stop.
async fn until_stopped(wishes: &mut Wishes, shown: Option<&Shown>) {
    loop {
        match wishes.next().await {
            Wish::Stop => return,
            Wish::Reload => shown.iter().for_each(|shown| shown.reload()),
            Wish::SyncNow => {}
        }
    }
}

/// Opens the embedded store.
///
/// # Errors
/// What the store says.
pub fn open(dir: &Path) -> anyhow::Result<Arc<Embedded>> {
    Ok(Arc::new(Embedded::open(dir)?))
}

/// Lets this process open as many files as the system allows it: every connection is one, and the usual soft limit
/// of 1024 is kept for programs that use `select`.
pub fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("the limit of open files stays at {:?}: {e}", limit.current);
    }
}

/// Two workers: the store's own thread does the writing.
///
/// # Errors
/// As the system gives no thread.
pub fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().context("the runtime cannot start")
}

/// Listens at `address`.
///
/// # Errors
/// Says what to do where it is taken or not allowed.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let fix = match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                let port = address.port();
                format!(
                    "another program listens there (`ss -ltnp 'sport = :{port}'` or `lsof -i :{port}` names it); \
                     stop it, or choose another port with --listen"
                )
            }
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need more rights; choose another".to_owned(),
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => "choose another address with --listen".to_owned(),
        };
        Failure::new(Exit::Error, format!("cannot listen at {address}: {e}; {fix}")).into()
    })
}

/// `--token-file`, else what the environment has.
fn token(app: &App, serve: &Serve) -> anyhow::Result<SecretString> {
    if let Some(file) = &serve.token_file {
        return Ok(read_token_file(file, &TokenSource::ConfigFile(file.clone()))?);
    }
    if let Some((token, _)) = token_from_env(&app.around.env)? {
        return Ok(token);
    }
    let why = "a proxy without a token would be open to everybody; make one with \
               `(umask 077; head -c 32 /dev/urandom | base64 > token)` and give it with --token-file token \
               (or MEMSYNC_TOKEN_FILE, MEMSYNC_TOKEN, the systemd credential `token`)";
    Err(Failure::new(Exit::Usage, why).into())
}
