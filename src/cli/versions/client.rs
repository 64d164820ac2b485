//! [`VersionsClient`]: asks the proxy for the versions that it keeps. [`ProxyPart`]: its part in an answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, stream};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::machine::agent_setup::http_options;
use crate::cli::process::output;
use crate::cli::process::runtime::client_runtime;
use crate::cli::view::format;
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::capability;
use crate::remote::http::{DatedEntry, HttpRemote};
use crate::remote::{GetReply, Remote, RemoteError, RemoteVersion};

/// Longest wait for a sign of life, because a person waits for the answer.
const MAX_TIMEOUT: Duration = Duration::from_secs(5);

/// Questions that are asked at the same time.
const MAX_QUESTIONS: usize = 8;

/// The proxy of one configured folder.
pub(crate) struct VersionsClient {
    remote: HttpRemote,
    runtime: Runtime,
}

/// The answer of the proxy about the versions of one path.
#[derive(Debug)]
pub(crate) enum ProxyAnswer {
    NotAsked,
    Versions(Vec<RemoteVersion>),
    /// This proxy keeps no versions.
    KeepsNone,
    Failed(anyhow::Error),
}

/// The part of the proxy in an answer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ProxyPart {
    /// False if its versions are missing in the answer.
    answered: bool,
    why: Option<String>,
}

impl VersionsClient {
    /// Sets up the connection for the folder at `root`. It sends nothing yet.
    pub(crate) fn new(app: &App, root: &Path) -> anyhow::Result<Self> {
        let config = app.config()?;
        let namespace = config.folders.iter().find(|f| f.path == root).map_or("", |f| f.namespace.as_str());
        let (token, _) = config.token(&app.machine.env)?;
        let mut options = http_options(config, namespace, token, config.ca_pem()?);
        options.timeout = options.timeout.min(MAX_TIMEOUT);
        let remote = HttpRemote::new(options).map_err(|e| CommandFailure::usage(e.to_string()))?;
        Ok(Self { remote, runtime: client_runtime()? })
    }

    pub(crate) fn list(&self, path: &RelPath) -> ProxyAnswer {
        match self.runtime.block_on(self.remote.versions(path)) {
            Ok(Some(versions)) => ProxyAnswer::Versions(versions),
            Ok(None) => ProxyAnswer::KeepsNone,
            Err(e) => ProxyAnswer::Failed(e.into()),
        }
    }

    /// The index. `None` if this proxy keeps no versions.
    pub(crate) fn index(&self) -> Result<Option<BTreeMap<RelPath, DatedEntry>>, RemoteError> {
        self.runtime.block_on(async {
            let keeps_versions = self.remote.supports(capability::VERSIONS).await?;
            if keeps_versions { self.remote.dated_index().await.map(Some) } else { Ok(None) }
        })
    }

    /// The versions of each path, until the first error.
    pub(crate) fn list_many(&self, paths: &[RelPath]) -> Result<Vec<(RelPath, Vec<RemoteVersion>)>, RemoteError> {
        let ask = |path: RelPath| async move {
            let versions = self.remote.versions(&path).await;
            versions.map(|versions| (path, versions.unwrap_or_default()))
        };
        self.runtime.block_on(async {
            let mut answers = stream::iter(paths.iter().cloned().map(ask)).buffer_unordered(MAX_QUESTIONS);
            let mut found = Vec::new();
            while let Some(answer) = answers.next().await {
                found.push(answer?);
            }
            Ok(found)
        })
    }

    /// Reads the content of a version, which must be `md5`.
    pub(crate) fn fetch(&self, path: &RelPath, version: u64, md5: Md5) -> anyhow::Result<Vec<u8>> {
        let content = self.runtime.block_on(self.read(path, version))?;
        match content {
            Some(content) if Md5::of(&content) == md5 => Ok(content),
            Some(_) => {
                let why = format!("{path}: the proxy sent another text than the version {}", md5.short());
                Err(CommandFailure::new(Exit::Error, why).into())
            }
            None => {
                let why = format!("{path}: the proxy does not keep the version {} any more", md5.short());
                Err(CommandFailure::new(Exit::Error, why).into())
            }
        }
    }

    async fn read(&self, path: &RelPath, version: u64) -> Result<Option<Vec<u8>>, RemoteError> {
        let GetReply::Found(mut blob) = self.remote.get_version(path, version).await? else { return Ok(None) };
        let mut content = Vec::new();
        while let Some(piece) = blob.body.next().await {
            content.extend_from_slice(&piece?);
        }
        Ok(Some(content))
    }
}

impl ProxyAnswer {
    pub(crate) fn versions(&self) -> &[RemoteVersion] {
        match self {
            Self::Versions(versions) => versions,
            Self::NotAsked | Self::KeepsNone | Self::Failed(_) => &[],
        }
    }

    pub(crate) fn part(&self) -> ProxyPart {
        match self {
            Self::Versions(_) => ProxyPart { answered: true, why: None },
            Self::NotAsked => ProxyPart { answered: false, why: None },
            Self::KeepsNone => {
                ProxyPart { answered: true, why: Some("this proxy keeps no earlier versions".to_owned()) }
            }
            Self::Failed(e) => ProxyPart { answered: false, why: Some(format!("{e:#}")) },
        }
    }
}

impl ProxyPart {
    pub(crate) fn has_answered(&self) -> bool {
        self.answered
    }

    /// Says on stderr that the proxy's versions are missing.
    pub(crate) fn note(&self) {
        let Some(why) = &self.why else { return };
        let text = match self.answered {
            true => why.clone(),
            false => format!("only versions on this machine are known, because the proxy did not answer: {why}"),
        };
        output::note(format::printable(&text));
    }
}
