//! Reads secrets from standard input: typed at a terminal without an echo, or piped in.

use std::io::{self, BufRead, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;
use signal_hook::consts::signal::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::{flag, low_level};
use zeroize::Zeroizing;

use super::output;
use crate::cli::exit::CommandFailure;

const MAX_SECRET_BYTES: u64 = 16 << 10;
/// A terminal cuts a line off at this length.
const MAX_LINE_BYTES: usize = 4095;

/// Reads a secret from standard input: one line at a terminal, after `prompt`; otherwise everything.
pub(crate) fn read_secret(prompt: &str) -> anyhow::Result<SecretString> {
    let stdin = io::stdin();
    let mut text = Zeroizing::new(String::new());
    let read = if stdin.is_terminal() {
        let prompt = format!("{prompt} (not shown): ");
        let _hidden = HiddenInput::start(prompt).context("the terminal cannot hide what you type")?;
        stdin.lock().take(MAX_SECRET_BYTES).read_line(&mut text)
    } else {
        stdin.lock().take(MAX_SECRET_BYTES).read_to_string(&mut text)
    };
    read.context("standard input cannot be read")?;
    if stdin.is_terminal() && text.trim_end_matches('\n').len() >= MAX_LINE_BYTES {
        let why = format!(
            "a terminal passes on at most {MAX_LINE_BYTES} bytes of a line; put the secret into a file that only you \
             can read, and redirect standard input from it"
        );
        return Err(CommandFailure::usage(why).into());
    }
    Ok(SecretString::from(text.as_str()))
}

fn show_prompt(prompt: &str) {
    output::note_with(|out| {
        write!(out, "{prompt}")?;
        out.flush()
    });
}

/// Turns the echo of the terminal off until it is dropped, or a signal ends or stops the process.
struct HiddenInput {
    before: Termios,
    /// Once set, signals have their default effect again.
    is_over: Arc<AtomicBool>,
    signals: Handle,
    watcher: Option<JoinHandle<()>>,
}

impl HiddenInput {
    /// Shows `prompt`, and shows it again when the process continues after Ctrl-Z.
    fn start(prompt: String) -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut caught = vec![SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP];
        for signal in &caught {
            flag::register_conditional_default(*signal, Arc::clone(&is_over))?;
        }
        caught.push(SIGCONT);
        let mut signals = Signals::new(caught)?;
        let handle = signals.handle();
        let shown = before.clone();
        hide(&shown)?;
        show_prompt(&prompt);
        let watcher = std::thread::spawn(move || {
            for signal in signals.forever() {
                if signal == SIGCONT {
                    // This fails only when the terminal is gone.
                    let _ = hide(&shown);
                    show_prompt(&prompt);
                    continue;
                }
                restore(&shown);
                // Ends or stops the process. If that fails, the prompt goes on waiting.
                let _ = low_level::emulate_default_handler(signal);
            }
        });
        Ok(Self { before, is_over, signals: handle, watcher: Some(watcher) })
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.signals.close();
        if let Some(watcher) = self.watcher.take() {
            // A panic of the thread was reported already.
            let _ = watcher.join();
        }
        restore(&self.before);
    }
}

/// Turns the echo off, except for the end of the line.
fn hide(before: &Termios) -> io::Result<()> {
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL);
    Ok(tcsetattr(io::stdin(), OptionalActions::Now, &silent)?)
}

/// Sets the terminal as it was. A failure is ignored: it means that the terminal is gone.
fn restore(before: &Termios) {
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
}
