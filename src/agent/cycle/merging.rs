//! CONFLICT: the folder and the proxy hold different content of a path. Where a merge is clean, its result takes the place
//! of the local file. Otherwise the proxy's content keeps the name, and the local file becomes a conflict copy.

use std::io;

use futures::StreamExt;

use crate::agent::world::World;
use crate::digest::Md5;
use crate::disk::{Disk, read_file_up_to};
use crate::failpoint;
use crate::local::FileMove;
use crate::local::stage::StagedFile;
use crate::merge::{MAX_MERGE_BYTES, MergeOutcome, MergeRules, MergeSides, merge};
use crate::path::RelPath;
use crate::remote::{GetReply, Remote, RemoteBlob, RemoteError, RemoteVersion};
use crate::state::{BaseChange, BaseEntry, MAX_SHADOW_TEXT};
use crate::sync::Base;

use super::parts::CycleParts;
use super::step::{StepError, StepOutcome, StepWork};
use super::upload::read_error;

/// Versions in local history that are searched for the base, the newest first.
const MAX_SEARCHED: usize = 50;

/// The end of a conflict.
enum ConflictEnd {
    /// The remote content is a later version of the local one.
    TakeRemote,
    /// A clean merge, with the local text.
    Merged {
        result: Vec<u8>,
        local: Vec<u8>,
    },
    KeepBoth,
}

impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// How the path is merged. `None`: not at all, or too often without an end.
    pub(super) fn merge_rules(&self, path: &RelPath) -> Option<MergeRules> {
        let rules = self.ports.options.merge.as_ref()?.rules(path)?;
        (!self.memory.merges.is_exhausted(path, self.ports.world.elapsed())).then_some(rules)
    }
}

/// The shadow: the texts on which both sides agree, for a later merge with a proxy that keeps no versions.
impl<D: Disk, R: Remote, W: World> CycleParts<D, R, W> {
    /// The paths on which both sides agree by `changes`, with their content, as far as a merge may need their texts.
    pub(super) fn texts_to_keep(&self, changes: &[BaseChange]) -> Vec<(RelPath, Md5)> {
        let Some(map) = self.ports.options.merge.as_ref() else { return Vec::new() };
        if self.ports.remote.keeps_versions() != Some(false) {
            return Vec::new();
        }
        let agreed = |change: &BaseChange| match change {
            BaseChange::Set(path, BaseEntry { base: Base::Synced(md5), .. }) => {
                let is_text = self.observed.size(path) <= MAX_SHADOW_TEXT as u64 && map.rules(path).is_some();
                is_text.then(|| (path.clone(), *md5))
            }
            _ => None,
        };
        changes.iter().filter_map(agreed).collect()
    }

    /// Keeps the texts of files. A file that has changed since is not kept. Without a text, both versions are kept later.
    pub(super) fn keep_texts(&mut self, agreed: &[(RelPath, Md5)]) {
        for (path, md5) in agreed {
            if let Err(e) = self.keep_text(path, *md5) {
                tracing::warn!("{path}: its text is not kept for merges: {e}");
                return;
            }
        }
    }

    fn keep_text(&mut self, path: &RelPath, md5: Md5) -> io::Result<()> {
        let Self { ports, observed, shadow, .. } = self;
        let mut file = match ports.folder.disk().open(&observed.tree.disk_name(path)) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => return Ok(()),
            Err(e) => return Err(e),
        };
        let text = read_file_up_to(&mut file, MAX_SHADOW_TEXT)?.filter(|text| Md5::of(text) == md5);
        let entries = ports.container.entries();
        let needed = || entries.values().filter_map(|entry| entry.base.content()).collect();
        match text.filter(|text| is_text(text)) {
            Some(text) => shadow.keep(&text, needed),
            None => Ok(()),
        }
    }
}

fn is_text(content: &[u8]) -> bool {
    !content.contains(&0) && str::from_utf8(content).is_ok()
}

impl<D: Disk, R: Remote> StepWork<D, R> {
    /// CONFLICT of the local content with that of the proxy.
    pub(super) async fn conflict_with(&self, local: Md5, blob: RemoteBlob) -> Result<StepOutcome<D>, StepError> {
        let (version, device) = (blob.version, blob.device.clone());
        let remote = self.fetch(blob).await?;
        let (path, at, base) = (self.step.path.clone(), self.disk_name.clone(), Base::Synced(remote.md5));
        let change = match self.end_conflict(local, &remote).await? {
            ConflictEnd::TakeRemote => FileMove::Replace { path, at, staged: remote, expect: local },
            ConflictEnd::Merged { result, local: text } => {
                let staged = self.stage_text(result)?;
                let inputs = Box::new([remote, self.stage_text(text)?]);
                failpoint::pass("merge.staged");
                FileMove::Merge { path, at, staged, expect: local, inputs }
            }
            ConflictEnd::KeepBoth => FileMove::Conflict { path, at, staged: remote },
        };
        Ok(StepOutcome::Move { step: Box::new(change), base, version, device })
    }

    async fn end_conflict(&self, local: Md5, remote: &StagedFile<D>) -> Result<ConflictEnd, StepError> {
        let Some(rules) = self.merge else { return Ok(ConflictEnd::KeepBoth) };
        let path = &self.step.path;
        let versions = self.answered(self.remote.versions(path).await)?.flatten().unwrap_or_default();
        if self.versions_since_agreement(&versions).iter().any(|v| v.md5 == local && !v.is_deleted) {
            return Ok(ConflictEnd::TakeRemote);
        }
        let (Some(mine), Some(theirs)) = (self.read_local(local)?, read_staged(remote)?) else {
            return Ok(ConflictEnd::KeepBoth);
        };
        let base = match self.base {
            None => None,
            Some(md5) => match self.find_base(md5, &versions).await? {
                None => {
                    tracing::debug!("{path}: not merged, because the text before both changes is not known");
                    return Ok(ConflictEnd::KeepBoth);
                }
                found => found,
            },
        };
        let sides = MergeSides { base: base.as_deref(), local: &mine, remote: &theirs };
        match merge(rules, sides) {
            MergeOutcome::Clean(result) if result.len() as u64 <= self.max_file_size => {
                Ok(ConflictEnd::Merged { result, local: mine })
            }
            MergeOutcome::Clean(_) => Ok(ConflictEnd::KeepBoth),
            MergeOutcome::Conflict(reason) => {
                tracing::debug!("{path}: not merged: {reason}");
                Ok(ConflictEnd::KeepBoth)
            }
        }
    }

    /// The versions that came after the content on which both sides last agreed, or whose deletion they both saw. An older
    /// version is an edit: the user went back to it. If the list does not reach back as far, no version counts.
    fn versions_since_agreement<'v>(&self, versions: &'v [RemoteVersion]) -> &'v [RemoteVersion] {
        let Some(agreed) = self.base.or(self.seen) else { return versions };
        let end = versions.iter().position(|version| version.md5 == agreed);
        end.map_or(&[], |end| &versions[..end])
    }

    /// The answer to a request whose failure only prevents a merge. `None`: the proxy refuses such requests, or answers
    /// nonsense. Another request may succeed later after any other error, so that one fails the step.
    fn answered<T>(&self, answer: Result<T, RemoteError>) -> Result<Option<T>, StepError> {
        use RemoteError::{Auth, Name, NotAProxy, Protocol, Refused, TooLarge};
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(e @ (Refused { .. } | TooLarge { .. } | Protocol { .. } | NotAProxy { .. } | Name { .. })) => {
                tracing::warn!("{}: not merged: {e}", self.step.path);
                Ok(None)
            }
            Err(e @ Auth { status: 403, .. }) => {
                tracing::warn!("{}: not merged: {e}", self.step.path);
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The local content; `None` if it is too large to merge.
    fn read_local(&self, local: Md5) -> Result<Option<Vec<u8>>, StepError> {
        let mut file = self.folder.disk().open(&self.disk_name).map_err(read_error)?;
        let text = read_file_up_to(&mut file, MAX_MERGE_BYTES).map_err(StepError::Local)?;
        match &text {
            Some(text) if Md5::of(text) != local => Err(StepError::Changed),
            _ => Ok(text),
        }
    }

    /// The text with this digest: among the versions of the proxy, in local history, or in the shadow.
    async fn find_base(&self, base: Md5, versions: &[RemoteVersion]) -> Result<Option<Vec<u8>>, StepError> {
        let is_base = |v: &&RemoteVersion| v.md5 == base && !v.is_deleted && v.size <= MAX_MERGE_BYTES as u64;
        if let Some(version) = versions.iter().find(is_base) {
            let got = self.remote.get_version(&self.step.path, version.version).await;
            if let Some(GetReply::Found(blob)) = self.answered(got)?
                && let Some(text) = self.answered(read_blob(blob).await)?.flatten()
                && Md5::of(&text) == base
            {
                return Ok(Some(text));
            }
        }
        match self.find_in_history(base)? {
            None => self.shadow.read(base).map_err(StepError::Local),
            found => Ok(found),
        }
    }

    fn find_in_history(&self, base: Md5) -> Result<Option<Vec<u8>>, StepError> {
        let kept = self.folder.versions(Some(&self.disk_name)).map_err(StepError::Local)?;
        let is_small = |size: u64| size <= MAX_MERGE_BYTES as u64;
        for version in kept.iter().filter(|kept| kept.path == self.disk_name && is_small(kept.size)).take(MAX_SEARCHED)
        {
            // A version may be pruned at any time.
            let Ok(mut file) = self.folder.disk().open(&version.file) else { continue };
            let text = read_file_up_to(&mut file, MAX_MERGE_BYTES).map_err(StepError::Local)?;
            if let Some(text) = text.filter(|text| Md5::of(text) == base) {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    fn stage_text(&self, text: Vec<u8>) -> Result<StagedFile<D>, StepError> {
        let md5 = Md5::of(&text);
        let mut staging = self.folder.stage().map_err(StepError::Local)?;
        staging.write(text.into()).and_then(|()| staging.finish(md5)).map_err(StepError::Local)
    }
}

fn read_staged<D: Disk>(staged: &StagedFile<D>) -> Result<Option<Vec<u8>>, StepError> {
    staged.open().and_then(|mut file| read_file_up_to(&mut file, MAX_MERGE_BYTES)).map_err(StepError::Local)
}

/// The content of a blob; `None` if it is too large to merge.
async fn read_blob(mut blob: RemoteBlob) -> Result<Option<Vec<u8>>, RemoteError> {
    let mut text = Vec::new();
    while let Some(piece) = blob.body.next().await {
        text.extend_from_slice(&piece?);
        if text.len() > MAX_MERGE_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(text))
}
