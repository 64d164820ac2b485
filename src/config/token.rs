//! The token: its sources, and the characters it may have. It never comes from the command line and is never shown.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::error::{ConfigError, TokenSource};
use super::model::Config;

/// Longest token.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

impl Config {
    /// The token for the proxy, from the first source that is set: `MEMSYNC_TOKEN`, `MEMSYNC_TOKEN_FILE`, the systemd
    /// credential `token`, `proxy.token_file`, `proxy.token`. A wrong token is an error; the next source is not tried.
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

/// The token of the environment: `MEMSYNC_TOKEN`, the file that `MEMSYNC_TOKEN_FILE` names, or the systemd credential
/// `token`. `None` if none is set.
pub(crate) fn token_from_env(
    env: &BTreeMap<String, String>,
) -> Result<Option<(SecretString, TokenSource)>, ConfigError> {
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

/// Reads a token from a file that only the owner may read. The error has the `chmod` to run. A systemd credential is
/// exempt, because its group bits are the mask of an access list.
pub(crate) fn read_token_file(path: &Path, from: &TokenSource) -> Result<SecretString, ConfigError> {
    let fault = |why: io::Error| ConfigError::Token { from: from.clone(), why: why.to_string() };
    let file = File::open(path).map_err(fault)?;
    if !matches!(from, TokenSource::Credential(_))
        && let Some(mode) = exposed_mode(&file).map_err(fault)?
    {
        return Err(ConfigError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    let read = file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text).map_err(fault)?;
    if read as u64 > MAX_TOKEN_BYTES {
        return Err(fault(io::Error::new(io::ErrorKind::InvalidData, "too long for a token")));
    }
    parse_token(&text, from)
}

/// The mode of an open file, if anyone but the owner has access.
pub(super) fn exposed_mode(file: &File) -> io::Result<Option<u32>> {
    let mode = file.metadata()?.mode() & 0o7777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

/// Takes `text` without its line end. A token goes into a header, so only visible ASCII is allowed. The error does not
/// show the token.
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
