//! [`FakeStore`]: the content of the proxy, its answers, and the faults of its index.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use jiff::Timestamp;

use super::types::{FakeCall, FakeConfig, LostPart, TombstoneKind};
use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::{HistoryPoint, IndexCursor, IndexEntry, Precondition};
use crate::remote::{DeleteReply, FetchedIndex, IndexUpdate, PutReply, RemoteVersion};

/// How far back a stale or clobbered index can lie, in changes.
const RECENT: usize = 8;

#[derive(Debug, Clone)]
pub(super) struct HeldBlob {
    /// The digest of the content, or of a tombstone's deleted content.
    pub(super) md5: Md5,
    /// `None`: a tombstone.
    pub(super) content: Option<Bytes>,
    /// The cursor of its last change.
    pub(super) changed: u64,
    /// 0 where the server knows none.
    pub(super) version: u64,
    /// Earlier contents, oldest first.
    pub(super) earlier: Vec<Bytes>,
}

impl HeldBlob {
    fn entry(&self) -> IndexEntry {
        let size = self.content.as_ref().map_or(0, |c| c.len() as u64);
        IndexEntry { md5: self.md5, size, is_deleted: self.content.is_none(), version: self.version, cursor: 0 }
    }
}

/// The content of a server at one moment, to restore later.
#[derive(Debug, Clone)]
pub struct FakeBackup {
    pub(super) blobs: BTreeMap<RelPath, HeldBlob>,
    pub(super) index: BTreeMap<RelPath, IndexEntry>,
    pub(super) cursor: u64,
    pub(super) floor: u64,
    pub(super) history: Vec<(u64, u64)>,
}

pub(super) struct FakeStore {
    pub(super) config: FakeConfig,
    /// Planted bug: a plain index claims to be strong.
    pub(super) trusted_tombstone: bool,
    pub(super) rng: Rng,
    pub(super) blobs: BTreeMap<RelPath, HeldBlob>,
    /// The plain index, which may be wrong. A strong one is made from the blobs.
    pub(super) index: BTreeMap<RelPath, IndexEntry>,
    /// The last changes of the plain index, newest last, each with what was there before.
    pub(super) recent: VecDeque<(RelPath, Option<IndexEntry>)>,
    pub(super) epoch: u64,
    pub(super) cursor: u64,
    pub(super) floor: u64,
    /// The ids of its history, each with the cursor after which it began.
    pub(super) history: Vec<(u64, u64)>,
    /// The next write begins a history id.
    pub(super) is_started: bool,
    /// The number of all ids so far. Setting the server back does not change it.
    pub(super) ids: u64,
    /// The last assigned version. A server that was set back still has its clock.
    pub(super) version: u64,
    pub(super) stored: BTreeMap<Md5, Bytes>,
    pub(super) calls: Vec<FakeCall>,
    pub(super) clients: usize,
    /// The loss to come, and the number of requests before it.
    pub(super) losing: Option<(usize, LostPart)>,
    /// Bytes; larger content is refused.
    pub(super) largest: u64,
    /// Writes are refused with 403.
    pub(super) is_read_only: bool,
    /// The paths of requests that are lost.
    pub(super) silent: fn(&RelPath) -> bool,
}

/// How far a request gets.
pub(super) enum RequestFate {
    NeverArrives,
    Refused,
    /// `loses_reply`: the reply is lost. Otherwise the faults decide.
    Arrives {
        loses_reply: bool,
    },
}

pub(super) fn restore(index: &mut BTreeMap<RelPath, IndexEntry>, path: &RelPath, before: Option<IndexEntry>) {
    match before {
        Some(entry) => index.insert(path.clone(), entry),
        None => index.remove(path),
    };
}

impl FakeStore {
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.f64() < probability
    }

    /// Writes a blob or a tombstone, and then the index with this proxy's faults.
    pub(super) fn commit(&mut self, path: &RelPath, md5: Md5, content: Option<Bytes>) {
        if std::mem::take(&mut self.is_started) {
            self.ids += 1;
            self.history.push((self.ids, self.cursor));
        }
        self.cursor += 1;
        if let Some(content) = &content {
            self.stored.entry(md5).or_insert_with(|| content.clone());
        }
        self.version += u64::from(self.config.versions);
        let mut earlier = Vec::new();
        if let Some(before) = self.blobs.remove(path).filter(|_| self.config.keeps_versions) {
            earlier = before.earlier;
            // The same content again makes no new version.
            earlier.extend(before.content.filter(|before| content.as_ref() != Some(before)));
        }
        let held = HeldBlob { md5, content, changed: self.cursor, version: self.version, earlier };
        let entry = held.entry();
        self.blobs.insert(path.clone(), held);
        if self.config.strong {
            return;
        }
        if self.chance(self.config.faults.index_clobbered) {
            // Another writer read the index before these changes and writes it after them. The newest change goes
            // first, so that a path that changed twice returns to its first state.
            for (path, before) in std::mem::take(&mut self.recent).into_iter().rev() {
                if self.rng.bool() {
                    restore(&mut self.index, &path, before);
                }
            }
        }
        let before = self.index.insert(path.clone(), entry);
        self.recent.push_back((path.clone(), before));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    pub(super) fn exact_index(&self) -> BTreeMap<RelPath, IndexEntry> {
        self.blobs.iter().map(|(path, held)| (path.clone(), held.entry())).collect()
    }

    pub(super) fn cursor(&self) -> IndexCursor {
        IndexCursor { epoch: format!("epoch-{}", self.epoch).into(), cursor: self.cursor, floor: self.floor }
    }

    pub(super) fn point(&self) -> Option<HistoryPoint> {
        self.history.last().map(|(id, _)| HistoryPoint { id: id.to_string(), cursor: self.cursor })
    }

    /// True if the server once was at this point of its history.
    fn has_stood_at(&self, point: &HistoryPoint) -> bool {
        let Some(at) = self.history.iter().position(|(id, _)| id.to_string() == point.id) else { return false };
        let last = self.history.get(at + 1).map_or(self.cursor, |(_, since)| *since);
        point.cursor <= last
    }

    pub(super) fn strong_index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
        last: Option<&IndexCursor>,
    ) -> IndexUpdate {
        let cursor = self.cursor();
        let history = self.point();
        let set_back = known.is_some_and(|point| !self.has_stood_at(point));
        match since.filter(|_| !set_back) {
            Some(since) if *since == cursor && last == Some(since) => IndexUpdate::Unchanged,
            Some(since) if since.epoch == cursor.epoch && (cursor.floor..=cursor.cursor).contains(&since.cursor) => {
                let changed = self.blobs.iter().filter(|(_, held)| held.changed > since.cursor);
                let files = changed.map(|(path, held)| (path.clone(), held.entry())).collect();
                IndexUpdate::Delta(FetchedIndex { files, refused: Vec::new(), cursor: Some(cursor), history, set_back })
            }
            _ => {
                let files = self.exact_index();
                IndexUpdate::Whole(FetchedIndex { files, refused: Vec::new(), cursor: Some(cursor), history, set_back })
            }
        }
    }

    pub(super) fn plain_index(&mut self) -> FetchedIndex {
        let faults = self.config.faults;
        let mut files = BTreeMap::new();
        if !self.chance(faults.index_emptied) {
            files.clone_from(&self.index);
        }
        if !files.is_empty() && self.chance(faults.index_stale) {
            let back = self.rng.usize(0..=self.recent.len());
            for (path, before) in self.recent.iter().rev().take(back) {
                restore(&mut files, path, *before);
            }
        }
        if self.chance(faults.index_resurrected) {
            let dead: Vec<_> = files.values_mut().filter(|entry| entry.is_deleted).collect();
            let size = |md5| self.stored.get(&md5).map_or(0, |c| c.len() as u64);
            if let Some(entry) = self.rng.choice(dead) {
                *entry = IndexEntry { is_deleted: false, size: size(entry.md5), ..*entry };
            }
        }
        let cursor = self.trusted_tombstone.then(|| self.cursor());
        FetchedIndex { files, refused: Vec::new(), cursor, history: None, set_back: false }
    }

    /// Decides the fate of the next request.
    pub(super) fn fate(&mut self) -> RequestFate {
        let faults = self.config.faults;
        let losing = match &mut self.losing {
            Some((0, what)) => {
                let what = *what;
                self.losing = None;
                Some(what)
            }
            Some((skip, _)) => {
                *skip -= 1;
                None
            }
            None => None,
        };
        if losing == Some(LostPart::Request) || self.chance(faults.lost_request) {
            RequestFate::NeverArrives
        } else if self.chance(faults.unavailable) {
            RequestFate::Refused
        } else {
            RequestFate::Arrives { loses_reply: losing == Some(LostPart::Reply) }
        }
    }

    /// The details of a 412 for a path.
    fn mismatch(&self, held: Option<&HeldBlob>) -> PutReply {
        // Every proxy that compares versions reports them.
        let version = held.map_or(0, |held| held.version);
        let held = held.filter(|_| self.config.honest);
        let is_deleted = match self.config.tombstones {
            TombstoneKind::Absent => held.map(|h| h.content.is_none()),
            TombstoneKind::Exists => None,
        };
        PutReply::Mismatch { current: held.map(|h| h.md5), is_deleted, version }
    }

    pub(super) fn put(
        &mut self,
        path: &RelPath,
        precondition: Precondition,
        version: u64,
        md5: Md5,
        content: Bytes,
    ) -> PutReply {
        let held = self.blobs.get(path);
        let fits = match (precondition, held) {
            // Only versions are compared. The client must know the content of the version.
            (_, held) if self.config.versions && version != 0 => held.is_some_and(|held| held.version == version),
            (Precondition::New, None) => true,
            (Precondition::New, Some(held)) => {
                held.content.is_none() && self.config.tombstones == TombstoneKind::Absent
            }
            // A client without a version asks for the blob first, and few proxies show a tombstone.
            (Precondition::Holds(md5), Some(held)) if self.config.versions => {
                held.md5 == md5 && (held.content.is_some() || self.shows(held))
            }
            (Precondition::Holds(md5), held) => held.is_some_and(|held| held.md5 == md5),
        };
        if !fits {
            return self.mismatch(held);
        }
        self.commit(path, md5, Some(content));
        PutReply::Stored { version: self.version }
    }

    pub(super) fn delete(&mut self, path: &RelPath, md5: Md5, version: u64) -> DeleteReply {
        match self.blobs.get(path) {
            Some(HeldBlob { content: Some(_), md5: held, version: has, .. }) => {
                // With another version the client checks whether the content is the same.
                if *held == md5 || self.config.versions && version != 0 && *has == version {
                    let md5 = *held;
                    self.commit(path, md5, None);
                    DeleteReply::Done
                } else {
                    DeleteReply::Mismatch { current: self.config.honest.then_some(*held) }
                }
            }
            _ => DeleteReply::Absent,
        }
    }

    /// True if a delete may replace a tombstone. Only proxies that treat it as existing do that.
    pub(super) fn delete_again(&mut self, path: &RelPath, tombstone: Md5) -> DeleteReply {
        match self.blobs.get(path) {
            Some(held) if held.content.is_some() => {
                DeleteReply::Mismatch { current: self.config.honest.then_some(held.md5) }
            }
            // A version identifies the tombstone without the deleted content.
            Some(held) if self.config.tombstones == TombstoneKind::Exists => {
                let md5 = held.md5;
                if md5 != tombstone && !self.config.versions {
                    return DeleteReply::Mismatch { current: self.config.honest.then_some(md5) };
                }
                self.commit(path, md5, None);
                DeleteReply::Done
            }
            _ => DeleteReply::Absent,
        }
    }

    /// True if a 404 shows this tombstone.
    fn shows(&self, held: &HeldBlob) -> bool {
        self.config.honest && self.config.tombstones == TombstoneKind::Absent && held.content.is_none()
    }

    /// The versions of a path, newest first. Their numbers count the contents from 1.
    pub(super) fn versions(&self, path: &RelPath) -> Option<Vec<RemoteVersion>> {
        if !self.config.keeps_versions {
            return None;
        }
        let Some(held) = self.blobs.get(path) else { return Some(Vec::new()) };
        let at = Timestamp::UNIX_EPOCH;
        let version = |(version, content): (u64, &Bytes)| RemoteVersion {
            version,
            md5: Md5::of(content),
            size: content.len() as u64,
            is_deleted: false,
            at,
            device: None,
        };
        let mut versions: Vec<RemoteVersion> =
            (1..).zip(held.earlier.iter().chain(&held.content)).map(version).collect();
        if held.content.is_none() {
            let version = versions.len() as u64 + 1;
            versions.push(RemoteVersion { version, md5: held.md5, size: 0, is_deleted: true, at, device: None });
        }
        versions.reverse();
        Some(versions)
    }

    pub(super) fn version(&self, path: &RelPath, number: u64) -> Option<Bytes> {
        let held = self.blobs.get(path)?;
        let at = usize::try_from(number.checked_sub(1)?).ok()?;
        held.earlier.iter().chain(&held.content).nth(at).cloned()
    }

    pub(super) fn get(&self, path: &RelPath) -> Result<(Md5, Bytes, u64), Option<Md5>> {
        match self.blobs.get(path) {
            Some(HeldBlob { content: Some(content), md5, version, .. }) => Ok((*md5, content.clone(), *version)),
            Some(held) if self.shows(held) => Err(Some(held.md5)),
            _ => Err(None),
        }
    }
}
