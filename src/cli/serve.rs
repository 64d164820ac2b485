//! `memsync serve`: a Memory Proxy alone.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use super::app::App;
use super::args::Listen;
use super::exit::{Exit, Failure};
use super::machine_store::{self, Place};
use super::memory;
use super::own_proxy::url_elsewhere;
use super::s3;
use super::setup;
use super::signals::{Wish, Wishes, notify};
use super::tls::{Shown, Source};
use crate::config::{TokenSource, read_token_file, token_from_env};
use crate::proxy::keys::{self, UserPattern};
use crate::proxy::{self, VerifierOptions};
use crate::store::{RecordStore, Store};

/// How it was asked for.
pub struct Serve {
    pub listen: Listen,
    pub store: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    /// Bytes.
    pub max_body: u64,
    pub tls: Option<Source>,
    pub metrics_listen: Option<Listen>,
    /// Requests a second of one key.
    pub rate: Option<NonZeroU32>,
    /// Of users that HEARE_AUTH_URL verifies; empty: all.
    pub verified_namespaces: Vec<UserPattern>,
    /// Bytes of each such user.
    pub verified_quota: Option<u64>,
}

/// # Errors
/// When nobody may call, the store cannot be opened, or the address is taken.
pub fn run(app: &App, serve: &Serve) -> anyhow::Result<Exit> {
    if let Ok(config) = app.config() {
        let tls = serve.tls.iter().flat_map(Source::files);
        setup::keep_apart(config, tls.chain(serve.token_file.as_deref()))?;
    }
    let runtime = runtime()?;
    match machine_store::place(app, serve.store.as_deref())? {
        Place::Bucket(bucket) => {
            let store = runtime.block_on(s3::open(&bucket))?;
            let options = options(app, serve, runtime.block_on(has_keys(&store))?)?;
            let place = store.url().to_owned();
            stay(app, serve, &runtime, Arc::new(store), &place, options)
        }
        Place::Dir(dir) => {
            if let Ok(config) = app.config() {
                setup::keep_apart(config, [dir.as_path()])?;
            }
            // Asked before there is a store, so that none is made for nobody.
            let has_keys = match machine_store::records_if_any(&dir)? {
                Some(records) => runtime.block_on(has_keys(&records))?,
                None => false,
            };
            let options = options(app, serve, has_keys)?;
            stay(app, serve, &runtime, machine_store::open(&dir)?, &dir.display().to_string(), options)
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
    let resolve = |listen: &Listen| listen.resolve(&app.around.env).map_err(|why| Failure::new(Exit::Usage, why));
    let listen = resolve(&serve.listen)?;
    let metrics_listen = serve.metrics_listen.as_ref().map(resolve).transpose()?;
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
            let url = url_elsewhere(&app.around.host, address, true);
            tracing::info!("to join: memsync init --proxy {url} --pin {pin}");
            if address.ip().is_loopback() {
                tracing::info!("only this machine reaches it; --listen 0.0.0.0:{} lets others join", address.port());
            }
        }
        if let Some(listen) = metrics_listen {
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

/// Two workers: the store's own thread does the writing. Memory that is free goes back while there is nothing to do.
///
/// # Errors
/// As the system gives no thread.
pub fn runtime() -> anyhow::Result<Runtime> {
    let runtime =
        Builder::new_multi_thread().worker_threads(2).enable_all().build().context("the runtime cannot start")?;
    runtime.spawn(memory::give_back());
    Ok(runtime)
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

/// Who may call.
///
/// # Errors
/// When nobody may, or a token cannot be read.
fn options(app: &App, serve: &Serve, has_keys: bool) -> anyhow::Result<proxy::Options> {
    let set = |name: &str| app.around.env.get(name).filter(|value| !value.is_empty()).cloned();
    let namespaces = Some(serve.verified_namespaces.clone()).filter(|patterns| !patterns.is_empty());
    if namespaces.is_some() && set("HEARE_AUTH_URL").is_none() {
        let why = "--verified-namespaces is for users that a service verifies; set HEARE_AUTH_URL to that service, or leave \
                   the option out (the users of `memsync key` have namespaces of their own)";
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let verifier = set("HEARE_AUTH_URL").map(|url| VerifierOptions {
        namespaces,
        quota: serve.verified_quota,
        ..VerifierOptions::new(url, set("HEARE_AUTH_APP_ID"))
    });
    let token = token(app, serve)?;
    if token.is_none() && verifier.is_none() && !has_keys {
        let why = "a proxy that nobody may call is of no use: make a key with `memsync key create` (with the --store of \
                   this one; those that have expired do not count), or give one token for all with --token-file, MEMSYNC_TOKEN_FILE, MEMSYNC_TOKEN or the \
                   systemd credential `token`, or set HEARE_AUTH_URL to a service that knows the callers";
        return Err(Failure::new(Exit::Usage, why).into());
    }
    Ok(proxy::Options { max_body: serve.max_body, rate: serve.rate, token, verifier, ..proxy::Options::default() })
}

/// Whether there is any key that works.
async fn has_keys(records: &impl RecordStore) -> anyhow::Result<bool> {
    let now = Timestamp::now();
    Ok(keys::load(records).await?.keys.values().any(|key| !key.is_expired(now)))
}

/// `--token-file`, else what the environment has.
fn token(app: &App, serve: &Serve) -> anyhow::Result<Option<SecretString>> {
    if let Some(file) = &serve.token_file {
        return Ok(Some(read_token_file(file, &TokenSource::ConfigFile(file.clone()))?));
    }
    Ok(token_from_env(&app.around.env)?.map(|(token, _)| token))
}
