//! The token: where it may come from, and what it may look like. It never comes from argv and is never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::{Config, ConfigError};

/// Nothing that long is a token.
const MAX_TOKEN: u64 = 16 << 10;

/// Where a token was found, in the order of preference.
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

impl Config {
    /// The token for the proxy: of `MEMSYNC_TOKEN`, `MEMSYNC_TOKEN_FILE`, the systemd credential `token`,
    /// `proxy.token_file` and `proxy.token` the first that is there. A source that is there but not right is an
    /// error, never passed over.
    ///
    /// # Errors
    /// [`ConfigError::NoToken`], [`ConfigError::Exposed`], [`ConfigError::Token`].
    pub fn token(&self, env: &BTreeMap<String, String>) -> Result<(SecretString, TokenSource), ConfigError> {
        if let Some((token, from)) = token_from_env(env)? {
            if let TokenSource::EnvironmentFile(path) | TokenSource::Credential(path) = &from
                && let Some(why) = self.why_not_here(path)
            {
                return Err(ConfigError::Token { from, why });
            }
            return Ok((token, from));
        }
        if let Some(path) = &self.proxy.token_file {
            let from = TokenSource::ConfigFile(path.clone());
            return Ok((read_token_file(path, &from)?, from));
        }
        match &self.proxy.token {
            Some(token) => Ok((parse_token(token.expose_secret(), &TokenSource::Config)?, TokenSource::Config)),
            None => Err(ConfigError::NoToken),
        }
    }
}

/// The token of the environment: `MEMSYNC_TOKEN`, the file that `MEMSYNC_TOKEN_FILE` names, or the systemd
/// credential `token`, the first that is there. `None` where none is.
///
/// # Errors
/// [`ConfigError::Exposed`], [`ConfigError::Token`].
pub fn token_from_env(env: &BTreeMap<String, String>) -> Result<Option<(SecretString, TokenSource)>, ConfigError> {
    let set = |name: &str| env.get(name).filter(|v| !v.is_empty());
    if let Some(text) = set("MEMSYNC_TOKEN") {
        let from = TokenSource::Environment;
        return Ok(Some((parse_token(text, &from)?, from)));
    }
    if let Some(path) = set("MEMSYNC_TOKEN_FILE") {
        let from = TokenSource::EnvironmentFile(path.into());
        return Ok(Some((read_token_file(Path::new(path), &from)?, from)));
    }
    if let Some(dir) = set("CREDENTIALS_DIRECTORY") {
        let path = Path::new(dir).join("token");
        if path.symlink_metadata().is_ok() {
            let from = TokenSource::Credential(path.clone());
            return Ok(Some((read_token_file(&path, &from)?, from)));
        }
    }
    Ok(None)
}

/// Reads a token from a file that nobody else may read. (A systemd credential is exempt: its group bits are the
/// mask of an access list that systemd keeps.)
///
/// # Errors
/// [`ConfigError::Exposed`] with the `chmod` to run; [`ConfigError::Token`] for the rest.
pub fn read_token_file(path: &Path, from: &TokenSource) -> Result<SecretString, ConfigError> {
    let fault = |why: std::io::Error| ConfigError::Token { from: from.clone(), why: why.to_string() };
    let file = File::open(path).map_err(fault)?;
    if !matches!(from, TokenSource::Credential(_))
        && let Some(mode) = exposed_mode(&file).map_err(fault)?
    {
        return Err(ConfigError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_TOKEN).read_to_string(&mut text).map_err(fault)?;
    parse_token(&text, from)
}

/// The mode of an open file, where it lets anyone but the owner in.
pub(super) fn exposed_mode(file: &File) -> std::io::Result<Option<u32>> {
    let mode = file.metadata()?.mode() & 0o7777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

/// Takes `text` without its line end; visible ASCII only, for it goes into a header.
///
/// # Errors
/// [`ConfigError::Token`], which does not show the token.
pub fn parse_token(text: &str, from: &TokenSource) -> Result<SecretString, ConfigError> {
    let token = text.trim_end_matches(['\n', '\r']);
    let why = if token.is_empty() {
        "is empty"
    } else if token.bytes().any(|b| b.is_ascii_whitespace()) {
        "has a space or a line break inside it"
    } else if !token.bytes().all(|b| b.is_ascii_graphic()) {
        "has characters other than visible ASCII in it"
    } else {
        return Ok(SecretString::from(token));
    };
    Err(ConfigError::Token { from: from.clone(), why: why.to_owned() })
}
