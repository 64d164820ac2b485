//! Borders between namespaces. In the layout of the field the file `x` of the namespace `team` and the file `team/x`
//! without one are one object. A key that opens one namespace must not reach another's files by their longer name, and
//! no file may be in two indexes. So a path that leads into a namespace further down is refused, and so is a namespace
//! where another has files already.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt, TryStreamExt};

use super::super::{Named, StoreError};
use super::inner::Inner;
use crate::path::RelPath;

/// How long a folder that was none counts as no namespace. It bounds how long files of a namespace which another proxy has
/// just begun can be reached by their longer name here.
const FRESH: Duration = Duration::from_secs(5);
/// Folders remembered, at most.
const MOST: usize = 20_000;
/// Folders asked for side by side by one request: a path has room for hundreds.
const SIDE_BY_SIDE: usize = 8;

/// What is known of folders.
#[derive(Default)]
pub struct Borders(Mutex<HashMap<String, Known>>);

#[derive(Clone, Copy)]
enum Known {
    /// It has an index, and a namespace stays one.
    Namespace,
    /// It had none at this time.
    Folder(Instant),
}

impl Borders {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // Changed in one step, so a panic elsewhere cannot have damaged it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_namespace(&self, folder: &str) -> Option<bool> {
        match self.lock().get(folder)? {
            Known::Namespace => Some(true),
            Known::Folder(at) => (at.elapsed() < FRESH).then_some(false),
        }
    }

    fn remember(&self, folder: String, is_namespace: bool) {
        let mut known = self.lock();
        if known.len() >= MOST {
            known.retain(|_, known| matches!(known, Known::Namespace));
        }
        known.insert(folder, if is_namespace { Known::Namespace } else { Known::Folder(Instant::now()) });
    }
}

impl Inner {
    /// Lets a path of `ns` pass that is neither in a namespace further down nor, where `ns` has not begun, a file of one
    /// further up.
    ///
    /// # Errors
    /// [`StoreError::Elsewhere`]; what the store says.
    pub async fn stay_within(&self, ns: &str, path: &RelPath) -> Result<(), StoreError> {
        let folders: Vec<String> = path.ancestors().map(|folder| joined(ns, folder)).collect();
        // The deepest comes first, and is where the file belongs.
        let mut namespace = self.which_begun(folders, true).await?.into_iter().next();
        if namespace.is_none() && !ns.is_empty() && !self.ledger(ns)?.exists().await? {
            for above in self.which_begun(uppers(ns), true).await? {
                let name = format!("{}/{path}", below(&above, ns));
                let kept = self.ledger(&above)?.fresh().await?;
                if kept.document.rows.keys().any(|path| path.as_str() == name) {
                    namespace = Some(above);
                }
            }
        }
        namespace.map_or(Ok(()), |namespace| {
            Err(StoreError::Elsewhere { path: joined(ns, path.as_str()), namespace: Named(namespace) })
        })
    }

    /// Sees to it that `ns` has an index, which makes it a namespace.
    ///
    /// # Errors
    /// [`StoreError::Occupied`]; what the store says.
    pub async fn begin(&self, ns: &str) -> Result<(), StoreError> {
        if self.ledger(ns)?.ensure(self.refuse_occupied(ns)).await? {
            self.borders.remember(ns.to_owned(), true);
        }
        Ok(())
    }

    /// Refuses a new namespace in whose folder one further up has files.
    async fn refuse_occupied(&self, ns: &str) -> Result<(), StoreError> {
        for above in self.which_begun(uppers(ns), false).await? {
            let kept = self.ledger(&above)?.fresh().await?;
            let folder = below(&above, ns);
            let inside = |path: &RelPath| path.as_str().strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
            if kept.document.rows.iter().any(|(path, row)| !row.is_deleted && inside(path)) {
                return Err(StoreError::Occupied { namespace: ns.to_owned(), above: Named(above) });
            }
        }
        Ok(())
    }

    /// Those of `folders` that are namespaces, in their order, the flat one always; `remembered`: what was found out a
    /// moment ago will do. Nothing else is kept of a folder that is none, as whoever asks may name any number of them.
    async fn which_begun(&self, folders: Vec<String>, remembered: bool) -> Result<Vec<String>, StoreError> {
        let asked = stream::iter(folders).map(|folder| async move {
            let known = self.borders.is_namespace(&folder).filter(|_| remembered).or(folder.is_empty().then_some(true));
            let is_namespace = match known {
                Some(known) => known,
                None => {
                    let index = self.blobs.layout.index(&folder)?;
                    let is_namespace = self.blobs.bucket.head(&index).await?.is_some();
                    self.borders.remember(folder.clone(), is_namespace);
                    is_namespace
                }
            };
            Ok::<_, StoreError>(is_namespace.then_some(folder))
        });
        asked.buffered(SIDE_BY_SIDE).try_filter_map(async |folder| Ok(folder)).try_collect().await
    }
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
