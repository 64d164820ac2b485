//! The parts of a world: a child process with its log, a request to the proxy, the files of a folder.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::killed::{DEADLINE, Killed, eventually};
use super::world::{Files, TOKEN};

/// A child process whose stderr goes to a file.
pub(super) struct Process {
    pub child: Killed,
    log: PathBuf,
}

impl Process {
    pub(super) fn start(mut command: Command, log: PathBuf) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Self { child: Killed(command.spawn().unwrap()), log }
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line with `text` in the log. `None`: the process ended first.
    #[track_caller]
    pub(super) fn line(&mut self, text: &str) -> Option<String> {
        let mut found = None;
        let mut ended = false;
        eventually(text, || {
            // The log is read after this check, so that the last lines of an ended process count.
            ended = self.child.try_wait().unwrap().is_some();
            // A line without its end may have half a port number.
            found = self.log().split_inclusive('\n').find(|l| l.contains(text) && l.ends_with('\n')).map(str::to_owned);
            ended || found.is_some()
        });
        found
    }
}

/// Sends a GET to a proxy. Returns status and body.
pub(super) fn get(port: u16, target: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer {TOKEN}\r\n");
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head") + 4;
    let head = String::from_utf8(answer.drain(..end).collect()).unwrap().to_ascii_lowercase();
    assert!(head.contains(&format!("content-length: {}\r\n", answer.len())), "all of the body: {head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// The regular files below `root` by path, without `.memsync` and without files that vanish meanwhile.
pub(crate) fn files_below(root: &Path) -> Files {
    let mut files = Files::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(root.join(&dir)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().into_string().expect("UTF-8 names in tests");
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && path != ".memsync" => dirs.push(path),
                Ok(kind) if kind.is_file() => {
                    if let Ok(content) = fs::read(entry.path()) {
                        files.insert(path, content);
                    }
                }
                _ => {}
            }
        }
    }
    files
}
