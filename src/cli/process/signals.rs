//! The signals of a command that stays. TERM and INT stop it, and a second one ends it at once. HUP reloads, USR1 syncs.
//!
//! The system also sends HUP when a terminal closes. A command that was started at a terminal stops then.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use futures::StreamExt;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook_tokio::Signals;

/// The exit code after a second TERM or INT.
const SECOND_STOP_EXIT: i32 = 130;

/// The request that a signal stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    Stop,
    Reload,
    SyncNow,
}

/// The signals that arrive from now on.
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
        Ok(Self { signals, at_terminal: std::io::stdin().is_terminal() })
    }

    /// Waits for the next signal.
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
