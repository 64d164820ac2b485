//! Secrets from standard input: typed at a terminal without being shown, or piped in.

use std::io::{self, BufRead, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::{flag, low_level};
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};
use super::output;

/// Longest secret that is read, in bytes.
const MAX_BYTES: u64 = 16 << 10;
/// A terminal cuts a line off at this length, in bytes.
const MAX_TYPED_BYTES: usize = 4095;

/// Reads a secret from standard input: one line at a terminal, after `prompt`, otherwise everything.
///
/// # Errors
/// When standard input cannot be read, or a terminal has cut the line off.
pub fn read_secret(prompt: &str) -> anyhow::Result<SecretString> {
    let stdin = io::stdin();
    let mut text = Zeroizing::new(String::new());
    let read = if stdin.is_terminal() {
        let _hidden = HiddenInput::start().context("the terminal cannot hide what is typed")?;
        output::notes(|out| {
            write!(out, "{prompt} (not shown): ")?;
            out.flush()
        });
        stdin.lock().take(MAX_BYTES).read_line(&mut text)
    } else {
        stdin.lock().take(MAX_BYTES).read_to_string(&mut text)
    };
    read.context("standard input cannot be read")?;
    if stdin.is_terminal() && text.trim_end_matches('\n').len() >= MAX_TYPED_BYTES {
        let why = format!(
            "a terminal passes on at most {MAX_TYPED_BYTES} bytes of a line; put the secret into a file that only you \
             can read, and redirect standard input from it"
        );
        return Err(Failure::new(Exit::Usage, why).into());
    }
    Ok(SecretString::from(text.as_str()))
}

/// Keeps the terminal from showing what is typed. Drop and signals that end the process show it again.
struct HiddenInput {
    before: Termios,
    /// Lets the signals end the process by themselves.
    is_over: Arc<AtomicBool>,
    signals: Handle,
    restorer: Option<JoinHandle<()>>,
}

impl HiddenInput {
    fn start() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ending = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];
        for signal in ending {
            flag::register_conditional_default(signal, Arc::clone(&is_over))?;
        }
        let mut signals = Signals::new(ending)?;
        let handle = signals.handle();
        let shown = before.clone();
        let restorer = std::thread::spawn(move || {
            for signal in signals.forever() {
                restore(&shown);
                // It ends the process. A failure leaves the prompt waiting, as if the signal had not come.
                let _ = low_level::emulate_default_handler(signal);
            }
        });
        let hidden = Self { before, is_over, signals: handle, restorer: Some(restorer) };
        let mut silent = hidden.before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // The end of the line still moves the cursor.
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Now, &silent)?;
        Ok(hidden)
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.signals.close();
        if let Some(restorer) = self.restorer.take() {
            // A panic of the thread is reported already.
            let _ = restorer.join();
        }
        restore(&self.before);
    }
}

/// Sets the terminal as it was. A terminal that is gone needs nothing.
fn restore(before: &Termios) {
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
}
