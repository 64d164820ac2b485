//! A command at its own terminal. Tests read the screen and type, as a person does.

use std::io::{Read, Write};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use pty_process::Size;
use pty_process::blocking::{Pty, open};
use rustix::termios::{LocalModes, tcgetattr};

use crate::common::killed::{Killed, eventually};

pub(crate) const CTRL_C: &str = "\u{3}";
pub(crate) const CTRL_Z: &str = "\u{1a}";

pub(crate) struct Terminal {
    pub child: Killed,
    pty: Arc<Pty>,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Starts `command` with a new terminal as its controlling one.
    pub(crate) fn start(mut command: Command) -> Self {
        command.env("TERM", "xterm");
        let (pty, pts) = open().unwrap();
        pty.resize(Size::new(50, 200)).unwrap();
        let child = pty_process::blocking::Command::from(command).spawn(pts).unwrap();
        let (pty, shown) = (Arc::new(pty), Arc::new(Mutex::new(Vec::new())));
        let (master, screen) = (Arc::clone(&pty), Arc::clone(&shown));
        let reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            // Reading fails once the command has closed the terminal.
            while let Ok(n @ 1..) = (&*master).read(&mut piece) {
                screen.lock().unwrap().extend_from_slice(&piece[..n]);
            }
        });
        Self { child: Killed(child), pty, shown, reader }
    }

    /// Everything that was shown, with escape codes.
    pub(crate) fn screen(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until the screen has shown `text`.
    #[track_caller]
    pub(crate) fn shows(&self, text: &str) {
        let mut ended = false;
        eventually(&format!("the screen shows {text:?}"), || {
            let shown = self.screen().contains(text);
            assert!(shown || !ended, "it ended without {text:?}:\n{}", self.screen());
            ended = self.reader.is_finished();
            shown
        });
    }

    pub(crate) fn types(&self, text: &str) {
        (&*self.pty).write_all(text.as_bytes()).unwrap();
    }

    /// True: the terminal shows typed characters.
    pub(crate) fn echoes(&self) -> bool {
        tcgetattr(&*self.pty).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// Waits for the end of the command. Returns its exit status and everything that was shown.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> (ExitStatus, String) {
        let status = self.child.ended();
        eventually("the screen is read to its end", || self.reader.is_finished());
        (status, self.screen())
    }
}
