//! [`FolderVersions`]: the earlier texts of all files of a folder, as far as a question needs them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::at_time::{PresentText, TextAtTime, text_at};
use super::client::{ProxyAnswer, ProxyPart, VersionsClient};
use super::joined::{EarlierVersion, PresentContent, earlier_on_proxy, join_equal};
use super::path_versions::kept_versions;
use crate::cli::app::App;
use crate::cli::conflict_copies::{RegularFiles, list_files, modified};
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::folder::ConfiguredFolder;
use crate::cli::machine::state_files;
use crate::digest::Md5;
use crate::disk::FileStat;
use crate::local::change::PathContent;
use crate::local::history::VersionKind;
use crate::path::RelPath;
use crate::remote::RemoteVersion;
use crate::remote::http::DatedEntry;
use crate::state::BaseEntry;

/// Most deleted files that the proxy is asked about, the newest first.
const MAX_DELETED: usize = 1000;

/// The earlier texts of the files below one folder.
pub(crate) struct FolderVersions<'a> {
    open: &'a ConfiguredFolder,
    /// The folder to look at, on the wire. `None`: all of it.
    dir: Option<RelPath>,
    files: RegularFiles,
    /// The name on the disk of each file.
    names: BTreeMap<RelPath, String>,
    /// The content on which this machine and the proxy last agreed, and the stat of a file with it.
    agreed: BTreeMap<RelPath, (Md5, Option<FileStat>)>,
    kept: BTreeMap<RelPath, Vec<EarlierVersion>>,
    index: BTreeMap<RelPath, DatedEntry>,
    client: Option<VersionsClient>,
    answer: ProxyAnswer,
}

/// Deleted files, the last deleted first.
pub(crate) struct DeletedFiles {
    pub(crate) files: Vec<DeletedFile>,
    /// Number of older ones that were not looked at.
    pub(crate) left_out: usize,
}

/// A deleted file with its newest text.
pub(crate) struct DeletedFile {
    pub(crate) version: EarlierVersion,
    /// Another file that has this text now.
    pub(crate) moved_to: Option<String>,
}

/// The files of a folder at a moment, against those of now.
#[derive(Default)]
pub(crate) struct FilesAtTime {
    /// Files that had another text, or are missing now.
    pub(crate) changed: Vec<EarlierVersion>,
    /// Number of files that have the same text now.
    pub(crate) unchanged: usize,
    /// Files without a known text at that time.
    pub(crate) newer: Vec<String>,
    /// Files that cannot be read, with the reason.
    pub(crate) unreadable: Vec<(String, String)>,
}

impl<'a> FolderVersions<'a> {
    /// Reads the folder, its state and its history, and asks the proxy for its index. `at`: a path relative to the folder.
    pub(crate) fn load(app: &App, open: &'a ConfiguredFolder, at: &str) -> anyhow::Result<Self> {
        let files = list_files(open)?;
        let on_wire = |name: &String| Some((RelPath::from_disk(name).ok()?, name.clone()));
        let names = files.keys().filter_map(on_wire).collect();
        let state = state_files::read_state(app, &open.root)?;
        let entries = state.map(|view| view.entries).unwrap_or_default();
        let content = |(path, entry): (RelPath, BaseEntry)| Some((path, (entry.base.content()?, entry.stat)));
        let agreed = entries.into_iter().filter_map(content).collect();
        let mut kept = BTreeMap::<RelPath, Vec<EarlierVersion>>::new();
        for version in kept_versions(open, at)? {
            if let Ok(path) = RelPath::from_disk(&version.path) {
                kept.entry(path).or_default().push(version);
            }
        }
        let dir = RelPath::from_disk(at).ok();
        let (index, client, answer) = (BTreeMap::new(), None, ProxyAnswer::NotAsked);
        let mut folder = Self { open, dir, files, names, agreed, kept, index, client, answer };
        folder.ask_for_index(app);
        Ok(folder)
    }

    fn ask_for_index(&mut self, app: &App) {
        let index = VersionsClient::new(app, &self.open.root).and_then(|client| {
            let index = client.index()?;
            self.client = Some(client);
            Ok(index)
        });
        self.answer = match index {
            Ok(Some(index)) => {
                self.index = index;
                ProxyAnswer::Versions(Vec::new())
            }
            Ok(None) => ProxyAnswer::KeepsNone,
            Err(e) => ProxyAnswer::Failed(e),
        };
    }

    /// True if the proxy knows files below the path, and none at it.
    pub(crate) fn has_files_below(&self) -> bool {
        let Some(dir) = &self.dir else { return true };
        !self.index.contains_key(dir) && self.index.keys().any(|path| self.is_inside(path))
    }

    pub(crate) fn proxy_part(&self) -> ProxyPart {
        self.answer.part()
    }

    /// The deleted files, the last deleted first. Files that another machine has written and that have not come here yet are
    /// not deleted.
    pub(crate) fn deleted(&mut self) -> DeletedFiles {
        let mut missing: Vec<(Option<Timestamp>, RelPath)> = Vec::new();
        let known: BTreeSet<&RelPath> = self.kept.keys().chain(self.index.keys()).collect();
        for path in known.into_iter().filter(|path| self.is_inside(path) && !self.names.contains_key(*path)) {
            let newest = self.kept.get(path).and_then(|versions| versions.first());
            let removed = newest.filter(|version| version.kind == VersionKind::Removed.name());
            let entry = self.index.get(path);
            let is_deleted = match entry {
                Some(entry) => entry.is_deleted || self.agreed_md5(path) == Some(entry.md5),
                None => removed.is_some(),
            };
            if is_deleted {
                let removed = removed.and_then(|version| version.until);
                missing.push((entry.and_then(|entry| entry.at).max(removed), path.clone()));
            }
        }
        missing.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let left_out = missing.len().saturating_sub(MAX_DELETED);
        let paths: Vec<RelPath> = missing.into_iter().map(|(_, path)| path).take(MAX_DELETED).collect();
        let texts = self.texts_now();
        let mut versions = self.versions_of(&paths);
        let newest = |path: &RelPath| {
            let newest = join_equal(versions.remove(path)?).into_iter().find(|version| !version.is_newer())?;
            Some(DeletedFile { moved_to: texts.get(&newest.md5).cloned(), version: newest })
        };
        DeletedFiles { files: paths.iter().filter_map(newest).collect(), left_out }
    }

    /// The texts of the files at `moment`.
    pub(crate) fn at_time(&mut self, moment: Timestamp) -> FilesAtTime {
        let known: BTreeSet<RelPath> =
            self.names.keys().chain(self.kept.keys()).chain(self.index.keys()).cloned().collect();
        let mut found = FilesAtTime::default();
        let mut changed = Vec::new();
        for path in known.into_iter().filter(|path| self.is_inside(path)) {
            let here = match self.present(&path) {
                Ok(here) => here,
                Err(e) => {
                    found.unreadable.push((self.name_of(&path), format!("{e:#}")));
                    continue;
                }
            };
            let entry = self.index.get(&path);
            let is_older = |entry: &&DatedEntry| entry.at.is_some_and(|at| at <= moment);
            match entry.filter(is_older) {
                Some(entry) if !entry.is_deleted && here == Some(entry.md5) => found.unchanged += 1,
                Some(entry) if entry.is_deleted && here.is_none() => {}
                _ => changed.push((path, here)),
            }
        }
        let versions = self.versions_of(&changed.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>());
        for (path, here) in changed {
            let present = here.map(|md5| self.present_text(&path, md5));
            let versions = versions.get(&path).map_or(&[][..], Vec::as_slice);
            match text_at(versions, present, moment) {
                TextAtTime::Earlier(version) => found.changed.push(version.clone()),
                TextAtTime::Present => found.unchanged += 1,
                TextAtTime::Unknown if present.is_some() => found.newer.push(self.name_of(&path)),
                TextAtTime::Unknown => {}
            }
        }
        found
    }

    /// The content of a version that no file here has.
    pub(crate) fn fetch(&self, version: &EarlierVersion) -> anyhow::Result<Vec<u8>> {
        let why = || CommandFailure::new(Exit::Error, format!("{}: the version is gone; run this again", version.path));
        let (client, number) = self.client.as_ref().zip(version.on_proxy).ok_or_else(why)?;
        client.fetch(&RelPath::from_disk(&version.path)?, number, version.md5)
    }

    fn is_inside(&self, path: &RelPath) -> bool {
        let Some(dir) = &self.dir else { return true };
        path == dir || path.as_str().strip_prefix(dir.as_str()).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The path as it is on the disk.
    fn name_of(&self, path: &RelPath) -> String {
        self.names.get(path).cloned().unwrap_or_else(|| path.to_string())
    }

    /// Every time that one of `paths` had a text. An error of the proxy makes it a proxy that did not answer.
    fn versions_of(&mut self, paths: &[RelPath]) -> BTreeMap<RelPath, Vec<EarlierVersion>> {
        let known: Vec<RelPath> = paths.iter().filter(|path| self.index.contains_key(*path)).cloned().collect();
        let listed = self.client.as_ref().map_or(Ok(Vec::new()), |client| client.list_many(&known));
        let mut on_proxy: HashMap<RelPath, Vec<RemoteVersion>> = HashMap::new();
        match listed {
            Ok(listed) => on_proxy.extend(listed),
            Err(e) => self.answer = ProxyAnswer::Failed(e.into()),
        }
        let mut found = BTreeMap::new();
        for path in paths {
            let present = PresentContent { here: self.present(path).ok().flatten(), agreed: self.agreed_md5(path) };
            let name = self.name_of(path);
            let versions = on_proxy.get(path).map_or(&[][..], Vec::as_slice);
            let mut all = earlier_on_proxy(&name, versions, present);
            all.extend(self.kept.get(path).into_iter().flatten().cloned());
            found.insert(path.clone(), all);
        }
        found
    }

    /// The MD5 of the file at the path.
    fn present(&self, path: &RelPath) -> anyhow::Result<Option<Md5>> {
        let Some(name) = self.names.get(path) else { return Ok(None) };
        match self.open.folder.path_content(name)? {
            PathContent::File(md5) => Ok(Some(md5)),
            PathContent::Nothing => Ok(None),
        }
    }

    fn agreed_md5(&self, path: &RelPath) -> Option<Md5> {
        self.agreed.get(path).map(|(md5, _)| *md5)
    }

    fn present_text(&self, path: &RelPath, md5: Md5) -> PresentText {
        let on_proxy = self.index.get(path).filter(|entry| !entry.is_deleted && entry.md5 == md5);
        let is_unsynced = self.agreed_md5(path) != Some(md5);
        let changed_here = || self.files.get(self.names.get(path)?).filter(|_| is_unsynced).and_then(modified);
        PresentText { md5, written: on_proxy.and_then(|entry| entry.at).or_else(changed_here) }
    }

    /// The texts of all files as they are now, each with one file that has it.
    fn texts_now(&self) -> HashMap<Md5, String> {
        let mut texts = HashMap::new();
        for (path, name) in &self.names {
            let stat = self.files.get(name).map(FileStat::from);
            let md5 = match self.agreed.get(path) {
                Some((md5, known)) if *known == stat => Some(*md5),
                // The text of an unreadable file counts as a text that no file has.
                _ => self.present(path).ok().flatten(),
            };
            texts.extend(md5.map(|md5| (md5, name.clone())));
        }
        texts
    }
}

/// The devices that wrote the present texts of files, as far as the proxy knows them. `paths` are relative to the folder.
pub(crate) fn devices_of(
    app: &App,
    open: &ConfiguredFolder,
    paths: &[&str],
) -> anyhow::Result<BTreeMap<String, String>> {
    let on_wire: BTreeMap<RelPath, &str> =
        paths.iter().filter_map(|at| Some((RelPath::from_disk(at).ok()?, *at))).collect();
    let client = VersionsClient::new(app, &open.root)?;
    let mut devices = BTreeMap::new();
    for (path, versions) in client.list_many(&on_wire.keys().cloned().collect::<Vec<_>>())? {
        let at = on_wire[&path];
        let PathContent::File(md5) = open.folder.path_content(at)? else { continue };
        let written = versions.into_iter().find(|version| version.md5 == md5 && !version.is_deleted);
        devices.extend(written.and_then(|version| version.device).map(|device| (at.to_owned(), device)));
    }
    Ok(devices)
}
