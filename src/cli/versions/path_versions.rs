//! [`PathVersions`]: everything known about the earlier texts of one path, and their contents.

use std::collections::BTreeMap;
use std::io;

use anyhow::Context;

use super::client::{ProxyAnswer, ProxyPart, VersionsClient};
use super::joined::{EarlierVersion, PresentContent, earlier_on_proxy, join_equal};
use super::target::VersionName;
use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::{ConfiguredFolder, FolderPath, versions_at};
use crate::cli::machine::state_files;
use crate::cli::view::format;
use crate::digest::Md5;
use crate::disk::Disk;
use crate::local::change::{ChangeFault, PathContent};
use crate::local::history::VersionKind;
use crate::local::source::digest;

/// The digits of a whole ID. An ID of this length that is found here is not looked for on the proxy.
const ID_DIGITS: usize = 8;

/// The earlier texts of one path.
pub(crate) struct PathVersions<'a> {
    app: &'a App,
    place: &'a FolderPath,
    /// Each time that the file had a text. Newest first in each source.
    versions: Vec<EarlierVersion>,
    present: PresentContent,
    answer: ProxyAnswer,
    client: Option<VersionsClient>,
}

impl<'a> PathVersions<'a> {
    /// Reads the history of this machine. It does not ask the proxy yet.
    pub(crate) fn kept(app: &'a App, place: &'a FolderPath) -> anyhow::Result<Self> {
        let mut versions = kept_versions(&place.open, &place.at)?;
        versions.retain(|version| version.path == place.at);
        let here = match place.open.folder.path_content(&place.at) {
            Ok(PathContent::File(md5)) => Some(md5),
            Ok(PathContent::Nothing) | Err(ChangeFault::NotAFile(_)) => None,
            Err(e) => return Err(e).with_context(|| format::path(&place.absolute())),
        };
        let present = PresentContent { here, agreed: agreed_content(app, place)? };
        Ok(Self { app, place, versions, present, answer: ProxyAnswer::NotAsked, client: None })
    }

    /// As [`PathVersions::kept`], with the versions on the proxy. A proxy that does not answer is no error.
    pub(crate) fn all(app: &'a App, place: &'a FolderPath) -> anyhow::Result<Self> {
        let mut versions = Self::kept(app, place)?;
        versions.ask_proxy()?;
        Ok(versions)
    }

    pub(crate) fn ask_proxy(&mut self) -> anyhow::Result<()> {
        if !matches!(self.answer, ProxyAnswer::NotAsked) {
            return Ok(());
        }
        let path = self.place.rel_path()?;
        self.answer = match VersionsClient::new(self.app, &self.place.open.root) {
            Ok(client) => self.client.insert(client).list(&path),
            Err(e) => ProxyAnswer::Failed(e),
        };
        self.versions.extend(earlier_on_proxy(&self.place.at, self.answer.versions(), self.present));
        Ok(())
    }

    /// One version for each content, newest first.
    pub(crate) fn joined(&self) -> Vec<EarlierVersion> {
        join_equal(self.versions.clone())
    }

    pub(crate) fn proxy_part(&self) -> ProxyPart {
        self.answer.part()
    }

    /// The version with this name. Asks the proxy if it may be there.
    pub(crate) fn find(&mut self, name: &VersionName) -> anyhow::Result<EarlierVersion> {
        let found = match name {
            VersionName::Kept(n) => self.versions.iter().find(|v| v.n == Some(*n)).cloned(),
            VersionName::Id(id) => self.find_id(id)?,
            VersionName::Newest => {
                self.ask_proxy()?;
                let is_present = |md5| self.present.here == Some(md5);
                self.joined().into_iter().find(|v| !is_present(v.md5) && !v.is_newer() && !self.is_only_merged(v.md5))
            }
        };
        found.ok_or_else(|| self.why_not_found(name))
    }

    /// True for the other machine's side of a merge: history has it, and it was never in place here.
    fn is_only_merged(&self, md5: Md5) -> bool {
        let mut kept = self.versions.iter().filter(|v| v.md5 == md5 && v.n.is_some()).peekable();
        kept.peek().is_some() && kept.all(|v| v.kind == VersionKind::Merged.name())
    }

    fn find_id(&mut self, id: &str) -> anyhow::Result<Option<EarlierVersion>> {
        let has_id = |md5: Md5| md5.to_string().starts_with(id);
        let matching = |versions: &Self| -> Vec<EarlierVersion> {
            versions.joined().into_iter().filter(|v| has_id(v.md5)).collect()
        };
        let mut found = matching(self);
        if found.is_empty() || id.len() < ID_DIGITS {
            self.ask_proxy()?;
            found = matching(self);
        }
        if found.len() > 1 {
            let ids: Vec<_> = found.iter().map(|v| v.md5.to_string()).collect();
            let why = format!("{}: several versions begin with {id}: {}", self.shown(), ids.join(", "));
            return Err(CommandFailure::usage(why).into());
        }
        match found.pop() {
            None => Ok(self.present.here.filter(|md5| has_id(*md5)).map(|md5| self.current(md5))),
            found => Ok(found),
        }
    }

    /// The file as it is now, as a version.
    fn current(&self, md5: Md5) -> EarlierVersion {
        let size = self.place.open.folder.disk().stat(&self.place.at).map_or(0, |meta| meta.size);
        EarlierVersion::current(&self.place.at, md5, size)
    }

    fn why_not_found(&mut self, name: &VersionName) -> anyhow::Error {
        let path = self.shown();
        let kept = self.versions.iter().filter(|v| v.n.is_some()).count();
        if let ProxyAnswer::Failed(e) = std::mem::replace(&mut self.answer, ProxyAnswer::NotAsked)
            && !matches!(name, VersionName::Kept(_))
        {
            let here = if kept == 0 { "no earlier version is kept here" } else { "this version is not kept here" };
            return e.context(format!("{path}: {here}, and the proxy, which may have it, did not answer"));
        }
        let why = match name {
            VersionName::Kept(n) if kept > 0 => format!(
                "{path}: this machine keeps versions 1 to {kept}, no {n}; `memsync history {path}` lists those on the \
                 proxy too"
            ),
            VersionName::Kept(_) => {
                format!(
                    "{path}: this machine keeps no version of it; `memsync history {path}` lists those on the proxy"
                )
            }
            VersionName::Id(id) if !self.versions.is_empty() => {
                format!("{path}: there is no version {id}; `memsync history {path}` lists all versions")
            }
            VersionName::Id(_) | VersionName::Newest => {
                format!("{path}: no earlier version is kept; `memsync history` lists all versions on this machine")
            }
        };
        CommandFailure::usage(why).into()
    }

    fn shown(&self) -> String {
        format::path(&self.place.absolute())
    }

    /// The content of a version of this path.
    pub(crate) fn content(&mut self, version: &EarlierVersion) -> anyhow::Result<Vec<u8>> {
        if let Some(file) = &version.file {
            match self.read_kept(file, version.md5) {
                Ok(content) => return Ok(content),
                // It was pruned meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.ask_proxy()?,
                Err(e) => return Err(e).with_context(|| format!("{}/{file}", self.place.open.root.display())),
            }
        }
        let gone = || {
            let why = format!("{}: the version {} is gone; run this again", self.shown(), version.id());
            CommandFailure::new(Exit::Error, why)
        };
        let remote = self.versions.iter().find(|v| v.md5 == version.md5 && v.on_proxy.is_some());
        let number = remote.and_then(|v| v.on_proxy).ok_or_else(gone)?;
        let client = self.client.as_ref().ok_or_else(gone)?;
        client.fetch(&self.place.rel_path()?, number, version.md5)
    }

    /// The content of the file as it is now. `None` if there is no file.
    pub(crate) fn present_content(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(md5) = self.present.here else { return Ok(None) };
        self.read_kept(&self.place.at, md5).map(Some).with_context(|| self.shown())
    }

    fn read_kept(&self, file: &str, md5: Md5) -> io::Result<Vec<u8>> {
        let content = self.place.open.folder.read_up_to(file, u64::MAX)?.unwrap_or_default();
        if Md5::of(&content) == md5 {
            return Ok(content);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the file changed while it was read"))
    }
}

/// The content of a path on which this machine and the proxy last agreed.
fn agreed_content(app: &App, place: &FolderPath) -> anyhow::Result<Option<Md5>> {
    let Ok(path) = place.rel_path() else { return Ok(None) };
    let state = state_files::read_state(app, &place.open.root)?;
    Ok(state.and_then(|view| view.entries.get(&path)?.base.content()))
}

/// The versions at `at` that are kept on this machine, newest first, with their numbers for each path.
pub(crate) fn kept_versions(open: &ConfiguredFolder, at: &str) -> anyhow::Result<Vec<EarlierVersion>> {
    let mut counts = BTreeMap::<String, usize>::new();
    let (mut found, mut buf) = (Vec::new(), Vec::new());
    for version in versions_at(&open.folder, at)? {
        let n = *counts.entry(version.path.clone()).and_modify(|n| *n += 1).or_insert(1);
        match digest(open.folder.disk(), &version.file, &mut buf) {
            Ok(Some(read)) => found.push(EarlierVersion::kept(version, read.md5, n)),
            Ok(None) => tracing::warn!("{}: it changes while it is read", version.file),
            // It was pruned meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => tracing::warn!("{}/{}: cannot be read: {e}", open.root.display(), version.file),
        }
    }
    Ok(found)
}
