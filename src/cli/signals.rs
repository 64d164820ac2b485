//! The signals of a command that stays: TERM and INT stop it, a second one ends it at once; HUP and USR1 are told.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use futures::StreamExt;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook_tokio::Signals;

/// The exit code of a process that was told twice to stop.
const TOLD_TWICE: i32 = 130;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Stop,
    Reload,
    SyncNow,
}

/// The signals, from now on.
pub struct Wishes(Signals);

impl Wishes {
    /// Takes the signals over. Needs a runtime.
    ///
    /// # Errors
    /// As `sigaction(2)`.
    pub fn listen() -> anyhow::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the first signal finds the flag unset.
            flag::register_conditional_shutdown(signal, TOLD_TWICE, Arc::clone(&stopping))
                .and_then(|_| flag::register(signal, Arc::clone(&stopping)))
                .context("signals cannot be taken")?;
        }
        Ok(Self(Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("signals cannot be taken")?))
    }

    /// The next wish.
    pub async fn next(&mut self) -> Wish {
        match self.0.next().await {
            Some(SIGHUP) => Wish::Reload,
            Some(SIGUSR1) => Wish::SyncNow,
            _ => Wish::Stop,
        }
    }
}

/// Tells systemd, where it listens.
pub fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::debug!("systemd was not told: {e}");
    }
}
