//! The exit codes, and the code of each error.

use std::process::ExitCode;
use std::sync::Arc;

use crate::agent::status::SyncState;
use crate::config::ConfigError;
use crate::remote::RemoteError;

/// An exit code. If several apply, the highest is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// In sync or done.
    Done = 0,
    Error = 1,
    /// Wrong usage or a wrong config.
    Usage = 2,
    /// Not configured, or the command needs a running agent.
    NotConfigured = 3,
    /// Changes are pending, or a file waits for the user.
    Pending = 4,
    /// The proxy or the disk fails for now. The agent retries.
    Temporary = 5,
    /// The proxy refused the token.
    Refused = 6,
    /// Halted until the user approves.
    Halted = 7,
    /// Conflicts wait for the user.
    Conflicts = 8,
    /// The file does not have the content that the command requires.
    ConditionFailed = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CommandFailure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    /// Lines to copy, printed below the message.
    pub(crate) advice: Option<String>,
}

impl CommandFailure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), advice: None }
    }

    /// Wrong usage or a wrong config.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds lines for the user to copy.
    pub(crate) fn with_advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

impl Exit {
    /// The code of the first cause that has one.
    pub fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(Self::of_cause).unwrap_or(Self::Error)
    }

    /// The code of a request that failed because of the state of a folder.
    pub(crate) fn of_state(state: SyncState) -> Self {
        match state {
            SyncState::Offline => Self::Temporary,
            SyncState::AuthRequired => Self::Refused,
            SyncState::Halted => Self::Halted,
            SyncState::Idle | SyncState::Syncing | SyncState::Paused | SyncState::Stopped => Self::Error,
        }
    }

    fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if let Some(failure) = cause.downcast_ref::<CommandFailure>() {
            return Some(failure.exit);
        }
        let config = cause.downcast_ref::<ConfigError>();
        if let Some(error) = config.or_else(|| cause.downcast_ref::<Arc<ConfigError>>().map(Arc::as_ref)) {
            return Some(match error {
                ConfigError::NotFound { .. } => Self::NotConfigured,
                _ => Self::Usage,
            });
        }
        cause.downcast_ref::<RemoteError>().map(|error| match error {
            RemoteError::Auth { .. } => Self::Refused,
            RemoteError::Unreachable { .. }
            | RemoteError::Slow { .. }
            | RemoteError::Throttled { .. }
            | RemoteError::Server { .. } => Self::Temporary,
            _ => Self::Error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn exit_of_an_error_is_found_below_its_context() {
        let auth = RemoteError::Auth { url: "u".to_owned(), status: 401 };
        assert_eq!(Exit::of(&Err::<(), _>(auth).context("while checking").unwrap_err()), Exit::Refused);
        let gone = RemoteError::Unreachable { url: "u".to_owned(), why: "w".to_owned() };
        assert_eq!(Exit::of(&gone.into()), Exit::Temporary);
        let missing = ConfigError::NotFound { path: "c".into() };
        assert_eq!(Exit::of(&Arc::new(missing).into()), Exit::NotConfigured);
        assert_eq!(Exit::of(&ConfigError::NoToken.into()), Exit::Usage);
        assert_eq!(Exit::of(&CommandFailure::new(Exit::Halted, "m").into()), Exit::Halted);
        assert_eq!(Exit::of(&anyhow::anyhow!("else")), Exit::Error);
        assert!(Exit::Conflicts > Exit::Halted && Exit::Halted > Exit::Refused, "status uses the highest");
    }
}
