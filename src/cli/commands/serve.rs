//! `memsync serve`: a Memory Proxy alone.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use jiff::Timestamp;
use sd_notify::NotifyState;
use secrecy::SecretString;
use tokio::runtime::Runtime;

use crate::cli::app::App;
use crate::cli::args::{ListenAddress, ServeArgs};
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::machine::agent_setup;
use crate::cli::machine::certificate::{CertificateSource, ServedCertificate};
use crate::cli::machine::own_proxy::remote_url;
use crate::cli::machine::proxy_store::{StoreLocation, open_bucket};
use crate::cli::process::runtime::server_runtime;
use crate::cli::process::server::{
    SignalRequest, SignalRequests, bind_listener, notify_systemd, raise_open_file_limit,
};
use crate::config::{TokenSource, read_token_file, token_from_env};
use crate::proxy::{self, VerifierOptions, keys};
use crate::store::sqlite::{SqliteRecords, SqliteStore};
use crate::store::{RecordStore, Store};

pub(super) fn run(app: &App, args: &ServeArgs) -> anyhow::Result<Exit> {
    let source = CertificateSource::of(&args.tls)?;
    if let Ok(config) = app.config() {
        let tls = source.iter().flat_map(CertificateSource::files);
        agent_setup::refuse_synced(config, tls.chain(args.token_file.as_deref()))?;
    }
    let runtime = server_runtime()?;
    match StoreLocation::find(app, args.store.as_deref())? {
        StoreLocation::Bucket(bucket) => {
            let store = runtime.block_on(open_bucket(&bucket))?;
            let options = proxy_options(app, args, runtime.block_on(has_keys(&store))?)?;
            let place = store.url().to_owned();
            serve(app, args, source, &runtime, ServedStore { store: Arc::new(store), place, options })
        }
        StoreLocation::Dir(dir) => {
            if let Ok(config) = app.config() {
                agent_setup::refuse_synced(config, [dir.as_path()])?;
            }
            // Checked first, so that no store is made for a proxy that cannot start.
            let has_keys = match SqliteRecords::open(&dir)? {
                Some(records) => runtime.block_on(has_keys(&records))?,
                None => false,
            };
            let options = proxy_options(app, args, has_keys)?;
            let store = Arc::new(SqliteStore::open(&dir)?);
            serve(app, args, source, &runtime, ServedStore { store, place: dir.display().to_string(), options })
        }
    }
}

struct ServedStore<S> {
    store: Arc<S>,
    /// For the log.
    place: String,
    options: proxy::ProxyOptions,
}

/// Serves until a signal stops the process.
fn serve<S: Store>(
    app: &App,
    args: &ServeArgs,
    source: Option<CertificateSource>,
    runtime: &Runtime,
    served: ServedStore<S>,
) -> anyhow::Result<Exit> {
    let ServedStore { store, place, mut options } = served;
    let resolve = |listen: &ListenAddress| listen.resolve(&app.machine.env).map_err(CommandFailure::usage);
    let listen = resolve(&args.listen)?;
    let metrics_listen = args.metrics_listen.as_ref().map(resolve).transpose()?;
    raise_open_file_limit();
    runtime.block_on(async {
        let mut signals = SignalRequests::listen()?;
        let listener = bind_listener(listen).await?;
        let address = listener.local_addr()?;
        let certificate = source.map(|source| ServedCertificate::open(app, source, address, false)).transpose()?;
        options.tls = certificate.as_ref().map(|certificate| certificate.tls.clone());
        let scheme = if certificate.is_some() { "https" } else { "http" };
        tracing::info!("serving {place} at {scheme}://{address}");
        log_how_to_join(app, address, certificate.as_ref());
        if let Some(listen) = metrics_listen {
            let listener = bind_listener(listen).await?;
            tracing::info!("metrics, without a token, at http://{}/metrics", listener.local_addr()?);
            options.metrics_listener = Some(Arc::new(listener));
        }
        notify_systemd(NotifyState::Ready);
        proxy::serve(listener, store, options, async {
            until_stopped(&mut signals, certificate.as_ref()).await;
            notify_systemd(NotifyState::Stopping);
        })
        .await
        .context("the proxy failed")
    })?;
    Ok(Exit::Done)
}

/// A self-signed certificate has to be pinned, so the log tells the pin.
fn log_how_to_join(app: &App, address: SocketAddr, certificate: Option<&ServedCertificate>) {
    let Some(pin) = certificate.and_then(|certificate| certificate.pin) else { return };
    let url = remote_url(&app.machine.host, address, true);
    tracing::info!("to join: memsync init --proxy {url} --pin {pin}");
    if address.ip().is_loopback() {
        tracing::info!("only this machine reaches it; --listen 0.0.0.0:{} lets others join", address.port());
    }
}

/// Reads the certificate again on HUP, until a signal stops the process.
async fn until_stopped(signals: &mut SignalRequests, certificate: Option<&ServedCertificate>) {
    loop {
        match signals.next().await {
            SignalRequest::Stop => return,
            SignalRequest::Reload => certificate.iter().for_each(|certificate| certificate.reload()),
            SignalRequest::SyncNow => {}
        }
    }
}

/// The options of the proxy. Refuses to serve without any way to authenticate.
fn proxy_options(app: &App, args: &ServeArgs, has_keys: bool) -> anyhow::Result<proxy::ProxyOptions> {
    let set = |name: &str| app.machine.env.get(name).filter(|value| !value.is_empty()).cloned();
    let namespaces = Some(args.verified_namespaces.clone()).filter(|patterns| !patterns.is_empty());
    if namespaces.is_some() && set("HEARE_AUTH_URL").is_none() {
        let why = "--verified-namespaces is for users that a service verifies; set HEARE_AUTH_URL to that service, or leave \
                   the option out (the users of `memsync key` have namespaces of their own)";
        return Err(CommandFailure::usage(why).into());
    }
    let verifier = set("HEARE_AUTH_URL").map(|url| VerifierOptions {
        namespaces,
        quota: args.verified_quota,
        ..VerifierOptions::new(url, set("HEARE_AUTH_APP_ID"))
    });
    let token = static_token(app, args)?;
    if token.is_none() && verifier.is_none() && !has_keys {
        let why = "a proxy without keys or a token can serve no client: make a key with `memsync key create` (with the --store of \
                   this one; expired keys do not count), or give one token for all with --token-file, MEMSYNC_TOKEN_FILE, MEMSYNC_TOKEN or the \
                   systemd credential `token`, or set HEARE_AUTH_URL to a service that knows the users";
        return Err(CommandFailure::usage(why).into());
    }
    Ok(proxy::ProxyOptions {
        max_body: args.max_body_size,
        rate: args.rate,
        token,
        verifier,
        ..proxy::ProxyOptions::default()
    })
}

/// True if the store has a key that has not expired.
async fn has_keys(records: &impl RecordStore) -> anyhow::Result<bool> {
    let now = Timestamp::now();
    Ok(keys::load(records).await?.keys.values().any(|key| !key.is_expired(now)))
}

/// The token of `--token-file`, else of the environment.
fn static_token(app: &App, args: &ServeArgs) -> anyhow::Result<Option<SecretString>> {
    if let Some(file) = &args.token_file {
        return Ok(Some(read_token_file(file, &TokenSource::ConfigFile(file.clone()))?));
    }
    Ok(token_from_env(&app.machine.env)?.map(|(token, _)| token))
}
