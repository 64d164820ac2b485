//! The two records of the keys in a store: the document, and when each key was last used.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::document::{Keys, KeysError};
use crate::store::{KEY_USES_RECORD, KEYS_RECORD, PrivateRecord, RecordStore};

/// Tries of one change while other writers win the compare-and-swap.
const MAX_SWAP_ATTEMPTS: usize = 20;

/// Reads the document. A store without one has no users and no keys.
pub async fn load(store: &impl RecordStore) -> Result<Keys, KeysError> {
    keys_in(store.record(KEYS_RECORD).await?.as_ref())
}

pub(super) fn keys_in(record: Option<&PrivateRecord>) -> Result<Keys, KeysError> {
    record.map_or(Ok(Keys::default()), |record| Keys::parse(&record.content))
}

/// Applies `change` to the document by compare-and-swap, again if another writer came first. So commands and proxies
/// on one store do not undo each other's changes.
pub async fn edit<T>(
    store: &impl RecordStore,
    mut change: impl FnMut(&mut Keys) -> Result<T, KeysError>,
) -> Result<T, KeysError> {
    for _ in 0..MAX_SWAP_ATTEMPTS {
        let record = store.record(KEYS_RECORD).await?;
        let mut keys = keys_in(record.as_ref())?;
        let result = change(&mut keys)?;
        let tag = record.map(|record| record.tag);
        if store.put_record(KEYS_RECORD, tag.as_deref(), keys.to_json()?).await? {
            return Ok(result);
        }
    }
    Err(KeysError::Contended)
}

/// When each key was last used, by its id.
pub async fn last_used(store: &impl RecordStore) -> Result<BTreeMap<String, Timestamp>, KeysError> {
    uses_in(store.record(KEY_USES_RECORD).await?.as_ref())
}

fn uses_in(record: Option<&PrivateRecord>) -> Result<BTreeMap<String, Timestamp>, KeysError> {
    let Some(record) = record else { return Ok(BTreeMap::new()) };
    serde_json::from_slice(&record.content).map_err(|e| KeysError::UsesDamaged(e.to_string()))
}

/// Records that a key was used at `at`, unless a later use is recorded. Removes the uses of keys that are gone.
pub(super) async fn record_use(store: &impl RecordStore, id: &str, at: Timestamp) -> Result<(), KeysError> {
    for _ in 0..MAX_SWAP_ATTEMPTS {
        let record = store.record(KEY_USES_RECORD).await?;
        // A damaged record is replaced: no decision depends on it.
        let mut uses = uses_in(record.as_ref()).unwrap_or_default();
        // The keys are read after the uses, so a key with a use that is missing here was revoked.
        let keys = load(store).await?;
        uses.retain(|id, _| keys.keys.contains_key(id));
        let last = uses.entry(id.to_owned()).or_insert(at);
        *last = (*last).max(at);
        let content = serde_json::to_vec(&uses).map_err(|e| KeysError::UsesDamaged(e.to_string()))?;
        let tag = record.map(|record| record.tag);
        if store.put_record(KEY_USES_RECORD, tag.as_deref(), content.into()).await? {
            return Ok(());
        }
    }
    Err(KeysError::Contended)
}
