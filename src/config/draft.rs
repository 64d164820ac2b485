//! Writing a first config: the text, and files that only their owner may read.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::protocol::Pin;

/// A config to be written for one folder. What is not in it keeps its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    pub device: String,
    pub url: String,
    pub token_file: PathBuf,
    pub allow_http: bool,
    pub ca_file: Option<PathBuf>,
    pub pin: Option<Pin>,
    pub path: PathBuf,
    pub namespace: String,
}

impl Draft {
    /// The text of `config.toml`. The paths must be UTF-8, as TOML is.
    pub fn to_toml(&self) -> String {
        let quote = |text: &str| toml::Value::from(text).to_string();
        let path = |path: &Path| quote(&path.to_string_lossy());
        let mut text = format!(
            "# Every key and its default: config.example.toml\ndevice = {}\n\n[proxy]\nurl = {}\ntoken_file = {}\n",
            quote(&self.device),
            quote(&self.url),
            path(&self.token_file),
        );
        if let Some(ca_file) = &self.ca_file {
            text.push_str(&format!("ca_file = {}\n", path(ca_file)));
        }
        if let Some(pin) = &self.pin {
            text.push_str(&format!("pin = {}\n", quote(&pin.to_string())));
        }
        if self.allow_http {
            text.push_str("allow_http = true\n");
        }
        text.push_str(&format!("\n[[folder]]\npath = {}\n", path(&self.path)));
        if !self.namespace.is_empty() {
            text.push_str(&format!("namespace = {}\n", quote(&self.namespace)));
        }
        text
    }
}

/// Creates `path`, which must not exist, with mode 0600 and `bytes` in it, durably. Missing folders are created
/// as by [`create_private_dir`].
///
/// # Errors
/// `AlreadyExists`, or as the system calls; a file that could not be written whole is removed again.
pub fn create_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    create_private_dir(dir)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Err(e) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        // The write's failure is the one to tell; an empty file left behind would block the next attempt.
        drop(std::fs::remove_file(path));
        return Err(e);
    }
    File::open(dir)?.sync_all()
}

/// Creates a folder and those above it that are missing, with mode 0700. One that exists is left as it is.
///
/// # Errors
/// As `mkdir(2)`.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
