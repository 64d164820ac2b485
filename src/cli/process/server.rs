//! The process of a command that stays: its signals, its listener, its open files.
//!
//! TERM and INT stop it, and a second one ends it at once. HUP reloads, USR1 syncs. The system also sends HUP when a
//! terminal closes. A command that was started at a terminal stops then.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use futures::StreamExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook_tokio::Signals;
use tokio::net::TcpListener;

use crate::cli::exit::{CommandFailure, Exit};

/// The exit code after a second TERM or INT.
const SECOND_STOP_EXIT: i32 = 130;

/// The request that a signal stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    Stop,
    Reload,
    SyncNow,
}

pub(crate) struct SignalRequests {
    signals: Signals,
    at_terminal: bool,
}

impl SignalRequests {
    /// Takes over the signals. Call it inside a runtime.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order, the first signal finds the flag unset.
            flag::register_conditional_shutdown(signal, SECOND_STOP_EXIT, Arc::clone(&stopping))
                .and_then(|_| flag::register(signal, Arc::clone(&stopping)))
                .context("signals cannot be handled")?;
        }
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("signals cannot be handled")?;
        Ok(Self { signals, at_terminal: io::stdin().is_terminal() })
    }

    pub(crate) async fn next(&mut self) -> SignalRequest {
        match self.signals.next().await {
            Some(SIGHUP) if !self.at_terminal => SignalRequest::Reload,
            Some(SIGUSR1) => SignalRequest::SyncNow,
            _ => SignalRequest::Stop,
        }
    }
}

/// Reports to systemd, if it started this process.
pub(crate) fn notify_systemd(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::debug!("systemd could not be notified: {e}");
    }
}

/// Listens at `address`. If the address is taken or not allowed, the error has a remedy.
pub(crate) async fn bind_listener(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let fix = match e.kind() {
            io::ErrorKind::AddrInUse => {
                let port = address.port();
                format!(
                    "another program listens there (`ss -ltnp 'sport = :{port}'` or `lsof -i :{port}` names it); \
                     stop it, or choose another port with --listen"
                )
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need more rights; choose another port with --listen".to_owned()
            }
            io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => "choose another address with --listen".to_owned(),
        };
        CommandFailure::new(Exit::Error, format!("cannot listen at {address}: {e}; {fix}")).into()
    })
}

/// Raises the soft limit of open files to the hard one. Each connection takes one, and the usual soft limit is 1024.
pub(crate) fn raise_open_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("the limit of open files stays at {:?}: {e}", limit.current);
    }
}
