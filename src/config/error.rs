//! [`ConfigError`], and the origin of settings and tokens for its messages.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingOrigin {
    File { path: PathBuf, line: usize },
    Env(String),
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// The source of a token, in the order of preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// `MEMSYNC_TOKEN`
    Environment,
    /// The file that `MEMSYNC_TOKEN_FILE` names.
    EnvironmentFile(PathBuf),
    /// The systemd credential `token`.
    Credential(PathBuf),
    /// `proxy.token_file`, or `--token-file`
    ConfigFile(PathBuf),
    /// `proxy.token`
    Config,
    /// Typed or piped in.
    Stdin,
    /// In a join link.
    Link,
}

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("MEMSYNC_TOKEN"),
            Self::EnvironmentFile(path) => write!(f, "{} (MEMSYNC_TOKEN_FILE)", path.display()),
            Self::Credential(path) => write!(f, "{} (systemd credential)", path.display()),
            Self::ConfigFile(path) => write!(f, "{} (token file)", path.display()),
            Self::Config => f.write_str("proxy.token"),
            Self::Stdin => f.write_str("standard input"),
            Self::Link => f.write_str("the link"),
        }
    }
}

/// The config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: there is no config yet; write one with `memsync init`, or start with `memsync up`", path.display())]
    NotFound { path: PathBuf },
    #[error("{}: cannot be read: {why}", path.display())]
    Unreadable { path: PathBuf, why: std::io::Error },
    #[error("{origin}: not TOML: {why}")]
    Syntax { origin: SettingOrigin, why: String },
    #[error("{origin}: unknown key `{key}`{}", did_you_mean(.nearest.as_deref()))]
    UnknownKey { origin: SettingOrigin, key: String, nearest: Option<String> },
    #[error("{origin}: {key}: {why}")]
    Bad { origin: SettingOrigin, key: String, why: String },
    #[error("{}: `{key}` is not set; {fix}", path.display())]
    Missing { path: PathBuf, key: &'static str, fix: &'static str },
    #[error("{}: holds a token and others can read it (mode {mode:04o}); run: chmod 600 {}", path.display(), shell_word(path))]
    Exposed { path: PathBuf, mode: u32 },
    #[error("proxy.ca_file {}: {why}; correct the path, or give memsync's user the right to read it", path.display())]
    Ca { path: PathBuf, why: std::io::Error },
    #[error("the token from {from}: {why}")]
    Token { from: TokenSource, why: String },
    #[error(
        "no token: put it in a file that only you can read and set proxy.token_file, or set MEMSYNC_TOKEN_FILE or MEMSYNC_TOKEN"
    )]
    NoToken,
}

pub(super) fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |n| format!("; did you mean `{n}`?"))
}

/// `path`, quoted for a shell if it needs quotes.
pub(crate) fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@%:,".contains(&b)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
