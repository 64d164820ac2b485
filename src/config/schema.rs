//! The schema of the config: the type of each key, and the limits of its value.

use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;
use tracing::level_filters::LevelFilter;

use super::model::Config;
use super::value::{RawValue, check_device};
use crate::agent::ConflictPolicy;
use crate::local::ignore::IgnoreRules;
use crate::protocol::{BadPin, Namespace};
use crate::state::StateFormat;

const MIN_DURATION: Duration = Duration::from_millis(100);

/// A fault of a setting, without its origin.
pub(super) enum SettingFault {
    UnknownKey,
    Bad(String),
}

impl From<String> for SettingFault {
    fn from(why: String) -> Self {
        Self::Bad(why)
    }
}

/// Sets one key. `folder` is the number of the `[[folder]]`, for keys of that section.
pub(super) fn apply_setting(
    c: &mut Config,
    home: Option<&Path>,
    key: &str,
    folder: usize,
    value: RawValue<'_>,
) -> Result<(), SettingFault> {
    match key {
        "device" => c.device = check_device(value.text()?)?,
        "log_level" => {
            c.log_level = value.choice(&[
                ("off", LevelFilter::OFF),
                ("error", LevelFilter::ERROR),
                ("warn", LevelFilter::WARN),
                ("info", LevelFilter::INFO),
                ("debug", LevelFilter::DEBUG),
                ("trace", LevelFilter::TRACE),
            ])?;
        }
        "log_file" => c.log_file = value.flag()?,
        "proxy.url" => c.proxy.url = check_url(value.text()?)?,
        "proxy.token_file" => c.proxy.token_file = Some(value.path(home)?),
        "proxy.token" => {
            c.proxy.token = Some(SecretString::from(value.text().map_err(|_| "must be a string in quotes".to_owned())?))
        }
        "proxy.ca_file" => c.proxy.ca_file = Some(value.path(home)?),
        "proxy.pin" => c.proxy.pin = Some(value.text()?.parse().map_err(|e: BadPin| e.to_string())?),
        "proxy.allow_http" => c.proxy.allow_http = value.flag()?,
        "proxy.timeout" => c.proxy.timeout = value.duration(MIN_DURATION)?,
        "sync.interval" => c.sync.interval = value.duration(MIN_DURATION)?,
        "sync.debounce" => c.sync.debounce = value.duration(Duration::ZERO)?,
        "sync.rescan" => c.sync.rescan = value.duration(MIN_DURATION)?,
        "sync.concurrency" => c.sync.concurrency = value.count(64)?,
        "sync.max_file_size" => c.sync.max_file_size = value.size()?,
        "sync.max_delete" => c.sync.max_delete = value.share()?,
        "sync.conflict" => {
            c.sync.conflict = value.choice(&[("merge", ConflictPolicy::Merge), ("copy", ConflictPolicy::Copy)])?
        }
        "history.keep" => c.history.keep = value.duration(MIN_DURATION)?,
        "history.max_size" => c.history.max_size = value.size()?,
        "state.format" => {
            c.state.format = value.choice(&[("json", StateFormat::Json), ("msgpack", StateFormat::MsgPack)])?
        }
        "state.pretty" => c.state.pretty = value.flag()?,
        "folder.path" => c.folders[folder].path = value.path(home)?,
        "folder.namespace" => c.folders[folder].namespace = check_namespace(value.text()?)?,
        "folder.ignore" => c.folders[folder].ignore = check_ignore(value.list()?)?,
        _ => return Err(SettingFault::UnknownKey),
    }
    Ok(())
}

/// An http or https URL without a query. Removes a trailing `/`.
fn check_url(text: &str) -> Result<String, String> {
    if !text.contains("://") {
        return Err(format!(
            "\"{text}\" has no scheme; write https://{text}, or http://{text} for one without \
             encryption"
        ));
    }
    let url = reqwest::Url::parse(text)
        .map_err(|e| format!("\"{text}\" is not a URL ({e}); write it like https://memory.example.org"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("\"{text}\" is not an http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL may not contain a name or a password; put the token into a token file".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the URL of a proxy has no `?` or `#` part".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn check_namespace(text: &str) -> Result<String, String> {
    let named = Namespace::parse(text).map_err(|e| format!("\"{text}\" is no namespace: {e}"))?;
    Ok(named.as_str().to_owned())
}

fn check_ignore(patterns: Vec<String>) -> Result<Vec<String>, String> {
    match IgnoreRules::new(&patterns, None) {
        Ok(_) => Ok(patterns),
        Err(e) => Err(format!("the pattern \"{}\" is not right: {}", e.pattern, e.why)),
    }
}
