//! Earlier versions. Before a blob is written over or deleted, the bucket itself copies it to a place beside the
//! prefix, where no other proxy lists.
//!
//! A copy has a name that is its own alone and is never changed, so copies need no compare-and-swap: a writer that
//! lost its race, or died, leaves at most one too many. The name tells what is copied and when that was replaced. What
//! came between the look and the copy shows in the copy's metadata, which then says something else: such a copy is
//! none of that version.

use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path as Key;

use super::super::{Retention, StoreError};
use super::blobs::{Blobs, Found};
use super::bucket::Object;
use super::layout::EARLIER;
use crate::digest::Md5;
use crate::path::RelPath;

/// Objects looked at or removed side by side.
const SIDE_BY_SIDE: usize = 16;
/// Of two copies of one version neither is removed before this, in milliseconds: the write that one was made for may
/// still be under way.
const SETTLED: u64 = 3600 * 1000;

/// A copy, as its name tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    pub key: Key,
    pub version: u64,
    /// When it was replaced: milliseconds since the epoch.
    pub until: u64,
    pub md5: Md5,
    /// Bytes.
    pub size: u64,
}

impl Earlier {
    fn parse(key: &Key, size: u64) -> Option<Self> {
        let mut parts = key.filename()?.split('-');
        let (version, until, md5) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let md5 = md5.parse().ok()?;
        parts.next()?;
        Some(Self { key: key.clone(), version, until, md5, size })
    }

    /// Whether the copy is of what its name tells.
    pub fn agrees(&self, object: &Object) -> bool {
        let described = &object.described;
        !described.is_deleted
            && described.version.is_none_or(|version| version == self.version)
            && described.md5.is_none_or(|md5| md5 == self.md5)
    }
}

impl Blobs {
    /// Copies what was found at `path` and is to be replaced by the version `until`. Durable when it returns.
    pub async fn keep(&self, ns: &str, path: &RelPath, found: &Found, until: u64) -> Result<(), StoreError> {
        let row = &found.row;
        let name = format!("{:020}-{until:020}-{}-{:08x}", row.version, row.md5, fastrand::u32(..));
        let from = self.layout.blob(ns, path)?;
        let to = self.layout.beside(&format!("{}/{name}", self.layout.earlier(ns, path)))?;
        // What is gone is found out by the write.
        self.bucket.copy(&from, &to).await.map(drop)
    }

    /// The copies of what `path` held, the newest version first.
    pub async fn earlier(&self, ns: &str, path: &RelPath) -> Result<Vec<Earlier>, StoreError> {
        if !self.keeps {
            return Ok(Vec::new());
        }
        let folder = self.layout.beside(&self.layout.earlier(ns, path))?;
        let objects = self.bucket.list(Some(&folder));
        let all = objects.try_filter_map(async |meta| Ok(Earlier::parse(&meta.location, meta.size)));
        let mut all: Vec<Earlier> = all.try_collect().await?;
        newest_first(&mut all);
        Ok(all)
    }

    /// Removes the copies that are older than they are kept, that are beyond the number kept, or of which there is
    /// another. One that cannot be removed holds up no other.
    pub async fn sweep_earlier(&self, retention: &Retention, now: u64) -> Removals {
        let mut all = Removals::default();
        let folder = match self.layout.beside(EARLIER) {
            Ok(folder) => folder,
            Err(e) => return Removals { count: 0, failure: Some(e) },
        };
        let mut objects = self.bucket.list(Some(&folder));
        // A folder is a path's, and a listing has what is in one together.
        let (mut of, mut copies) = (String::new(), Vec::new());
        loop {
            let meta = match objects.try_next().await {
                Ok(Some(meta)) => meta,
                Ok(None) => return all.and(self.sweep_folder(copies, retention, now).await),
                // The newest versions of the last folder may be missing, and they are the ones to keep.
                Err(e) => return all.and(Removals { count: 0, failure: Some(e) }),
            };
            let Some(copy) = Earlier::parse(&meta.location, meta.size) else { continue };
            let folder = meta.location.as_ref().rsplit_once('/').map_or("", |(folder, _)| folder);
            if folder != of {
                all = all.and(self.sweep_folder(std::mem::take(&mut copies), retention, now).await);
                folder.clone_into(&mut of);
            }
            copies.push(copy);
        }
    }

    async fn sweep_folder(&self, copies: Vec<Earlier>, retention: &Retention, now: u64) -> Removals {
        let Surplus { mut gone, twins } = surplus(copies, retention, now);
        let mut all = Removals::default();
        for twins in twins {
            match self.surplus_twins(twins).await {
                Ok(surplus) => gone.extend(surplus),
                Err(e) => drop(all.failure.get_or_insert(e)),
            }
        }
        let mut removals = stream::iter(gone)
            .map(|copy| async move { self.bucket.remove(&copy.key).await })
            .buffer_unordered(SIDE_BY_SIDE);
        while let Some(removed) = removals.next().await {
            match removed {
                Ok(()) => all.count += 1,
                Err(e) => drop(all.failure.get_or_insert(e)),
            }
        }
        all
    }

    /// The copies of one version but for the first that is what its name tells.
    async fn surplus_twins(&self, twins: Vec<Earlier>) -> Result<Vec<Earlier>, StoreError> {
        let mut surplus = Vec::new();
        let mut found = false;
        for copy in twins {
            let object = self.bucket.head(&copy.key).await?;
            let is_it = !found && object.is_some_and(|object| copy.agrees(&object));
            found |= is_it;
            if !is_it {
                surplus.push(copy);
            }
        }
        Ok(surplus)
    }
}

/// How many copies a sweep removed, and the first failure.
#[derive(Default)]
pub struct Removals {
    pub count: usize,
    pub failure: Option<StoreError>,
}

impl Removals {
    fn and(self, more: Self) -> Self {
        Self { count: self.count + more.count, failure: self.failure.or(more.failure) }
    }
}

fn newest_first(copies: &mut [Earlier]) {
    copies.sort_unstable_by(|a, b| (b.version, &b.key).cmp(&(a.version, &a.key)));
}

/// What a sweep takes of one path's copies.
struct Surplus {
    gone: Vec<Earlier>,
    /// Copies of one version each, of which one is to be left.
    twins: Vec<Vec<Earlier>>,
}

fn surplus(mut copies: Vec<Earlier>, retention: &Retention, now: u64) -> Surplus {
    let oldest = now.saturating_sub(u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX));
    newest_first(&mut copies);
    let mut versions: Vec<Vec<Earlier>> = Vec::new();
    let mut gone = Vec::new();
    for copy in copies {
        let count = versions.len();
        let twins = versions.last_mut().filter(|twins| twins[0].version == copy.version);
        let newer = if twins.is_some() { count - 1 } else { count };
        match twins {
            _ if copy.until < oldest && newer >= retention.ageless as usize => gone.push(copy),
            Some(twins) => twins.push(copy),
            None if count < retention.versions as usize => versions.push(vec![copy]),
            None => gone.push(copy),
        }
    }
    let settled = |twins: &Vec<Earlier>| twins.iter().all(|copy| copy.until.saturating_add(SETTLED) < now);
    Surplus { gone, twins: versions.into_iter().filter(|twins| twins.len() > 1 && settled(twins)).collect() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn copy(version: u64, until: u64, of: &str) -> Earlier {
        let name = format!("m.memsync/v/h/{version:020}-{until:020}-{}-{:08x}", Md5::of(b"x"), of.len());
        Earlier::parse(&Key::from(name), 1).unwrap()
    }

    #[test]
    fn what_is_no_copy_is_left_alone() {
        for name in ["a/b", "a/1-2-3-4", "a/1-2", "a/1-2-0cc175b9c0f1b6a831c399e269772661"] {
            assert_eq!(Earlier::parse(&Key::from(name), 1), None, "{name}");
        }
        assert_eq!((copy(7, 9, "").version, copy(7, 9, "").until), (7, 9));
    }

    #[test]
    fn the_newest_stay_for_their_time() {
        let age = Duration::from_millis(10);
        let retention = Retention { versions: 2, ageless: 0, age, ..Retention::default() };
        let versions = |copies: &[Earlier]| copies.iter().map(|c| c.version).collect::<Vec<_>>();
        let all = vec![copy(3, 4, ""), copy(1, 2, ""), copy(4, 5, ""), copy(2, 3, "")];
        assert_eq!(versions(&surplus(all.clone(), &retention, 6).gone), [2, 1]);
        assert_eq!(versions(&surplus(all.clone(), &retention, 15).gone), [3, 2, 1]);
        assert_eq!(versions(&surplus(all.clone(), &retention, 16).gone), [4, 3, 2, 1]);
        let ageless = Retention { versions: 20, ageless: 3, ..retention };
        assert_eq!(versions(&surplus(all, &ageless, 1000).gone), [1], "the newest stay whatever their age");
    }

    #[test]
    fn twins_count_as_one_and_are_touched_when_their_writes_are_long_over() {
        let retention = Retention { versions: 2, ..Retention::default() };
        let all = vec![copy(3, 4, ""), copy(3, 4, "other"), copy(2, 3, "")];
        let of_the_newest = Retention { ageless: 1, age: Duration::ZERO, ..retention };
        assert_eq!(surplus(all.clone(), &of_the_newest, 100).gone.len(), 1, "both copies of the newest stay");
        let early = surplus(all.clone(), &retention, 5);
        assert!(early.gone.is_empty() && early.twins.is_empty());
        let late = surplus(all, &retention, SETTLED + 5);
        assert!(late.gone.is_empty());
        assert_eq!(late.twins.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    }
}
