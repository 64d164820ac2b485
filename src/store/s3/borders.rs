//! Borders between namespaces. In the layout of the field the file `x` of the namespace `team` and the file `team/x`
//! without one are one object. A key that opens one namespace must not reach another's files by their longer name, and
//! no file may be in two indexes. So a path that leads into a namespace further down is refused, and so is a namespace
//! where another has files already.
//!
//! Proxies that do not know of each other keep to it by looking after they wrote: a new file in the index is followed by a
//! look for namespaces above it, and a new index by a look for files in its folder. Whoever is second sees the first.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::watch;

use super::super::{NamespaceName, StoreError, next_version};
use super::index::Row;
use super::inner::{Inner, entry};
use super::ledger::UnderWay;
use crate::digest::Md5;
use crate::path::RelPath;

/// How long what was found out of a folder counts. It bounds how long files of a namespace which another proxy has just
/// begun can be reached by their longer name here.
const FRESH: Duration = Duration::from_secs(5);
/// Folders remembered, at most: half of them are given up at once when there are more.
const MOST: usize = 20_000;
/// Folders asked for side by side by one request.
const SIDE_BY_SIDE: usize = 8;

/// How long a request waits for the index to be compared with the files.
const MENDING: Duration = Duration::from_secs(5);

/// What is known of folders.
#[derive(Default)]
pub struct Borders {
    folders: Mutex<Folders>,
    /// Whether the index is to be compared with the files yet: a file without an entry may be anybody's until then.
    is_mending: watch::Sender<bool>,
}

/// Two generations, so that forgetting what is old costs nobody a walk through all of it.
#[derive(Default)]
struct Folders {
    young: HashMap<String, Known>,
    old: HashMap<String, Known>,
}

impl Folders {
    fn get(&self, folder: &str) -> Option<Known> {
        self.young.get(folder).or_else(|| self.old.get(folder)).copied()
    }

    fn insert(&mut self, folder: &str, known: Known) {
        if self.young.len() >= MOST / 2 && !self.young.contains_key(folder) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(folder.to_owned(), known);
    }
}

#[derive(Clone, Copy)]
struct Known {
    /// Whether it had an index.
    is_namespace: bool,
    /// When that was, at the earliest where it had none, and at the latest where it had one: of two that contradict each
    /// other the namespace is believed in.
    at: Instant,
}

impl Borders {
    fn lock(&self) -> MutexGuard<'_, Folders> {
        // Whatever is missing in it is asked for, so a panic elsewhere cannot have damaged it.
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found out of `folder` at `since` or later.
    fn known(&self, folder: &str, since: Instant) -> Option<bool> {
        self.lock().get(folder).filter(|known| known.at >= since).map(|known| known.is_namespace)
    }

    fn remember(&self, folder: &str, is_namespace: bool, at: Instant) {
        let mut folders = self.lock();
        if folders.get(folder).is_none_or(|known| known.at <= at) {
            folders.insert(folder, Known { is_namespace, at });
        }
    }

    fn forget(&self, folder: &str) {
        let mut folders = self.lock();
        folders.young.remove(folder);
        folders.old.remove(folder);
    }

    /// Says whether the index is yet to be compared with the files. Until it has been no namespace begins, nor is
    /// anything read in one that has not.
    pub fn mending(&self, is_mending: bool) {
        self.is_mending.send_replace(is_mending);
    }

    /// Returns when the index has been compared with the files.
    ///
    /// # Errors
    /// When that takes too long to wait for.
    async fn mended(&self) -> Result<(), StoreError> {
        let mut is_mending = self.is_mending.subscribe();
        let mended = tokio::time::timeout(MENDING, is_mending.wait_for(|is_mending| !is_mending)).await;
        match mended {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::S3(
                "whose files there are is being found out since the start; no namespace can begin yet".to_owned(),
            )),
        }
    }
}

/// Since when what was found out counts for a request that begins now.
fn lately() -> Instant {
    let now = Instant::now();
    now.checked_sub(FRESH).unwrap_or(now)
}

impl Inner {
    /// Lets a path of `ns` pass that is neither in a namespace further down nor, where `ns` has not begun, a file of one
    /// further up.
    ///
    /// # Errors
    /// [`StoreError::OtherNamespace`]; what the store says.
    pub async fn stay_within(&self, ns: &str, path: &RelPath) -> Result<(), StoreError> {
        if let Err(refused) = self.stay_above(ns, path, lately()).await {
            if let StoreError::OtherNamespace { namespace, .. } = &refused {
                self.clear(ns, path, &namespace.0).await?;
            }
            return Err(refused);
        }
        if !ns.is_empty() && !self.ledger(ns)?.exists().await? {
            self.borders.mended().await?;
            for above in self.which_begun(uppers(ns), lately()).await? {
                let name = format!("{}/{path}", below(&above, ns));
                let kept = self.ledger(&above)?.fresh().await?;
                if kept.document.rows.keys().any(|path| path.as_str() == name) {
                    return Err(elsewhere(ns, path, above));
                }
            }
        }
        Ok(())
    }

    /// Takes the entry of `path`, which is in `namespace`, out of the index of `ns`: what recorded it failed before it found
    /// out. A namespace without entries may have been made where this entry was already, and gives way to it.
    async fn clear(&self, ns: &str, path: &RelPath, namespace: &str) -> Result<(), StoreError> {
        let ledger = self.ledger(ns)?;
        if !ledger.lists(path) || self.ledger(namespace)?.fresh().await?.document.rows.is_empty() {
            return Ok(());
        }
        match ledger.kept().and_then(|kept| kept.document.rows.get(path).copied()) {
            Some(row) => ledger.amend(path, &row, None).await,
            None => Ok(()),
        }
    }

    /// Lets a path of `ns` pass that was in no namespace further down at `since` or later.
    ///
    /// # Errors
    /// As [`Inner::stay_within`].
    async fn stay_above(&self, ns: &str, path: &RelPath, since: Instant) -> Result<(), StoreError> {
        let folders = path.ancestors().map(|folder| joined(ns, folder)).collect();
        // The deepest comes first, and is where the file belongs.
        let namespace = self.which_begun(folders, since).await?.into_iter().next();
        namespace.map_or(Ok(()), |namespace| Err(elsewhere(ns, path, namespace)))
    }

    /// Records what was written at `path`, in the place of `before`. A namespace that begins is refused where it sees this
    /// entry; if it looked before that, it is seen here, and the write does not stand.
    ///
    /// # Errors
    /// [`StoreError::OtherNamespace`]; what the store says.
    pub async fn record(
        &self,
        ns: &str,
        path: &RelPath,
        before: Option<Row>,
        row: Row,
        under_way: Option<UnderWay>,
    ) -> Result<(), StoreError> {
        let ledger = self.ledger(ns)?;
        let was_live = before.is_some_and(|before| !before.is_deleted);
        // What was listed all the time no namespace can have missed; nor does it mind what is deleted.
        let cannot_be_late = row.is_deleted || was_live && ledger.lists(path);
        ledger.record(path, row, under_way).await?;
        if cannot_be_late {
            return Ok(());
        }
        let (name, namespace) = match self.stay_above(ns, path, Instant::now()).await {
            Err(StoreError::OtherNamespace { path, namespace }) => (path, namespace.0),
            other => return other,
        };
        // Deleted, as an object that is there cannot be removed on a condition; and over content it stands, as that was
        // compared with what the client knew.
        let version = next_version((self.clock)(), Some(&entry(&row)));
        let md5 = before.map_or_else(|| Md5::of(b""), |before| before.md5);
        let tombstone = Row { md5, size: 0, is_deleted: true, version };
        if !was_live {
            self.blobs.overwrite(ns, path, &row, &tombstone).await?;
        }
        let was_deleted = before.filter(|before| before.is_deleted);
        ledger.amend(path, &row, was_deleted.map(|_| tombstone)).await?;
        if was_live && let Ok(inner) = RelPath::parse(below(&namespace, &name)) {
            // What stands is that namespace's file, of which its index has what it was before.
            self.ledger(&namespace)?.compare(&inner, &row);
        }
        Err(StoreError::OtherNamespace { path: name, namespace: NamespaceName(namespace) })
    }

    /// Sees to it that `ns` has an index, which makes it a namespace.
    ///
    /// # Errors
    /// [`StoreError::NamespaceOccupied`]; what the store says.
    pub async fn begin(&self, ns: &str) -> Result<(), StoreError> {
        let begun = self.ledger(ns)?.ensure(|| self.refuse_occupied(ns)).await;
        match &begun {
            Ok(true) => self.borders.remember(ns, true, Instant::now()),
            Err(StoreError::NamespaceOccupied { .. }) => self.borders.forget(ns),
            Ok(false) | Err(_) => {}
        }
        begun.map(drop)
    }

    /// Whether the index of `ns` makes it a namespace. One without entries, where one further up has files, is of a proxy
    /// that died before it took it back; that is done now.
    ///
    /// # Errors
    /// What the store says.
    pub async fn stands(&self, ns: &str) -> Result<bool, StoreError> {
        let ledger = self.ledger(ns)?;
        // Who mends it finds out what is wrong with one that cannot be read, here or further up.
        if !ledger.fresh().await.is_ok_and(|kept| kept.document.rows.is_empty()) {
            return Ok(true);
        }
        if !matches!(self.refuse_occupied(ns).await, Err(StoreError::NamespaceOccupied { .. }))
            || !ledger.withdraw().await?
        {
            return Ok(true);
        }
        self.borders.forget(ns);
        Ok(false)
    }

    /// Refuses a new namespace in whose folder one further up has files.
    async fn refuse_occupied(&self, ns: &str) -> Result<(), StoreError> {
        for above in self.which_begun(uppers(ns), Instant::now()).await? {
            let kept = self.ledger(&above)?.fresh().await?;
            let folder = below(&above, ns);
            let inside = |path: &RelPath| path.as_str().strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
            if kept.document.rows.iter().any(|(path, row)| !row.is_deleted && inside(path)) {
                return Err(StoreError::NamespaceOccupied { namespace: ns.to_owned(), above: NamespaceName(above) });
            }
        }
        Ok(())
    }

    /// Those of `folders` that are namespaces, in their order, the flat one always; what was found out at `since` or later
    /// will do. Nothing else is kept of a folder that is none, as whoever asks may name any number of them.
    async fn which_begun(&self, folders: Vec<String>, since: Instant) -> Result<Vec<String>, StoreError> {
        let asked = stream::iter(folders)
            .map(|folder| async move { Ok::<_, StoreError>(self.has_begun(&folder, since).await?.then_some(folder)) });
        asked.buffered(SIDE_BY_SIDE).try_filter_map(async |folder| Ok(folder)).try_collect().await
    }

    async fn has_begun(&self, folder: &str, since: Instant) -> Result<bool, StoreError> {
        let known = || if folder.is_empty() { Some(true) } else { self.borders.known(folder, since) };
        if let Some(known) = known() {
            return Ok(known);
        }
        // Of the many writes of one moment the first asks for all.
        let _turn = self.turn(format!("{folder}/")).await;
        if let Some(known) = known() {
            return Ok(known);
        }
        let index = match self.blobs.layout.index(folder) {
            // There is no room for one.
            Err(StoreError::TooLong { .. }) => return Ok(false),
            index => index?,
        };
        let began = Instant::now();
        let is_namespace = self.blobs.bucket.head(&index).await?.is_some();
        self.borders.remember(folder, is_namespace, if is_namespace { Instant::now() } else { began });
        Ok(is_namespace)
    }
}

fn elsewhere(ns: &str, path: &RelPath, namespace: String) -> StoreError {
    StoreError::OtherNamespace { path: joined(ns, path.as_str()), namespace: NamespaceName(namespace) }
}

/// What could be namespaces further up, the flat one first.
fn uppers(ns: &str) -> Vec<String> {
    let slashes = ns.match_indices('/').map(|(at, _)| &ns[..at]);
    std::iter::once("").filter(|_| !ns.is_empty()).chain(slashes).map(str::to_owned).collect()
}

/// The folder that `ns` is in the namespace `above`.
fn below<'a>(above: &str, ns: &'a str) -> &'a str {
    ns.strip_prefix(above).map_or(ns, |folder| folder.trim_start_matches('/'))
}

/// The name without a namespace of what is `name` in `ns`.
pub fn joined(ns: &str, name: &str) -> String {
    if ns.is_empty() { name.to_owned() } else { format!("{ns}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_out_last_is_known_however_much_that_is() {
        let (borders, now) = (Borders::default(), Instant::now());
        let known = |n: usize| borders.known(&n.to_string(), now);
        for n in 0..3 * MOST {
            borders.remember(&n.to_string(), n % 2 == 0, now);
            assert_eq!(known(n), Some(n % 2 == 0));
        }
        assert_eq!(known(3 * MOST - MOST / 2), Some(true));
        assert_eq!(known(MOST), None);
        let folders = borders.lock();
        assert!(folders.young.len() + folders.old.len() <= MOST);
    }

    #[test]
    fn of_two_that_contradict_each_other_the_later_is_believed() {
        let (borders, now) = (Borders::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        borders.remember("a", true, later);
        for n in 0..MOST / 2 {
            borders.remember(&n.to_string(), false, now);
        }
        borders.remember("a", false, now);
        assert_eq!(borders.known("a", now), Some(true), "from before, in the old generation");
        borders.forget("a");
        assert_eq!(borders.known("a", now), None);
    }
}
