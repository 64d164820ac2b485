//! The signals of a command that stays: TERM and INT stop it, a second one ends it at once; HUP and USR1 are told.
//!
//! HUP is also what the system sends when a terminal closes: to a command that was started at one it means the end.

use std::io::IsTerminal;
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
pub struct Wishes {
    signals: Signals,
    /// It was started at a terminal, whose end is its own.
    at_terminal: bool,
}

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
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("signals cannot be taken")?;
        Ok(Self { signals, at_terminal: std::io::stdin().is_terminal() })
    }

    /// The next wish.
    pub async fn next(&mut self) -> Wish {
        match self.signals.next().await {
            Some(SIGHUP) if !self.at_terminal => Wish::Reload,
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
