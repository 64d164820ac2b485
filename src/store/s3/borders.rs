//! Borders between namespaces. In the layout of the field the file `x` of the namespace `team` and the file `team/x`
//! without one are one object. A key that opens one namespace must not reach another's files by their longer name, and
//! no file may be in two indexes. So a path that leads into a namespace further down is refused, and so is a namespace
//! where another has files already.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use super::super::{Named, StoreError};
use super::inner::Inner;
use crate::path::RelPath;

/// How long a folder that was none counts as no namespace. It bounds how long files of a namespace which another proxy has
/// just begun can be reached by their longer name here.
const FRESH: Duration = Duration::from_secs(5);
/// Folders remembered, at most.
const MOST: usize = 100_000;

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
        let asked = folders.into_iter().map(|folder| async move {
            let is_namespace = match self.borders.is_namespace(&folder) {
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
        // The deepest comes first, and is where the file belongs.
        let mut namespace = try_join_all(asked).await?.into_iter().flatten().next();
        if namespace.is_none() && !ns.is_empty() && !self.ledger(ns)?.exists().await? {
            for (above, below) in uppers(ns) {
                let name = format!("{below}/{path}");
                let kept = self.ledger(above)?.fresh().await?;
                if kept.document.rows.keys().any(|path| path.as_str() == name) {
                    namespace = Some(above.to_owned());
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
        for (above, below) in uppers(ns) {
            let kept = self.ledger(above)?.fresh().await?;
            let inside = |path: &RelPath| path.as_str().strip_prefix(below).is_some_and(|rest| rest.starts_with('/'));
            if kept.document.rows.iter().any(|(path, row)| !row.is_deleted && inside(path)) {
                return Err(StoreError::Occupied { namespace: ns.to_owned(), above: Named(above.to_owned()) });
            }
        }
        Ok(())
    }
}

/// The namespaces further up, the flat one first, each with the folder in it that `ns` is.
fn uppers(ns: &str) -> impl Iterator<Item = (&str, &str)> {
    let slashes = ns.match_indices('/').map(|(at, _)| (&ns[..at], &ns[at + 1..]));
    std::iter::once(("", ns)).filter(|(_, ns)| !ns.is_empty()).chain(slashes)
}

fn joined(ns: &str, name: &str) -> String {
    if ns.is_empty() { name.to_owned() } else { format!("{ns}/{name}") }
}
