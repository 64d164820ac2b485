//! Users and keys: the document that the store keeps of them, and every change to it.
//!
//! A key is a random token, shown once; the document has its hash. Whoever changes the document does so with
//! [`edit`], by compare-and-swap, so that commands and proxies on one store do not undo one another's changes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::store::{PrivateRecord, RecordStore, StoreError};

mod ring;
mod scope;

pub use ring::{Found, Ring, Standing};
pub use scope::{Access, BadPattern, Pattern, Scope, UserPattern};

/// The record with the document.
pub const RECORD: &str = "keys";
/// The record that tells when keys were last used. Apart, so that it is no change of the keys.
pub const USED: &str = "keys-used";

/// The format of the document that this code reads and writes.
const FORMAT: u32 = 1;
/// What every key begins with.
const PREFIX: &str = "mk_";
/// Hex digits of an id: 40 random bits.
const ID_DIGITS: usize = 10;
/// Hex digits of a secret: 256 random bits.
const SECRET_DIGITS: usize = 64;
/// Longest name of a user or a key, bytes.
const LONGEST_NAME: usize = 64;
/// Longest name of a device, bytes, as in the configuration.
const LONGEST_DEVICE: usize = 32;
/// Times that a change is tried anew because another came first.
const ATTEMPTS: usize = 20;

/// Why something cannot be done with the keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store's keys were written by a newer memsync (format {found}, this one knows {FORMAT}); upgrade it")]
    Newer { found: u32 },
    #[error("the store's keys cannot be read: {0}; restore the store from a backup")]
    Damaged(String),
    #[error("the store's note of it cannot be read ({0}); it begins anew when a key is next used")]
    UsesDamaged(String),
    #[error("the store's keys kept changing; try again")]
    Contended,
    #[error("there is no user {0:?}; `memsync user list` shows who there is")]
    NoSuchUser(String),
    #[error("there is a user {0:?} already")]
    UserExists(String),
    #[error("there is no key {0:?}; `memsync key list` shows the ids")]
    NoSuchKey(String),
    #[error("{0:?} is not 1 to {LONGEST_NAME} of the characters A-Z a-z 0-9 . _ @ -")]
    BadName(String),
    #[error("{0:?} is not 1 to {LONGEST_DEVICE} of the characters A-Z a-z 0-9 -")]
    BadDevice(String),
    #[error(
        "the key {id} expired at {at}: another secret would not work either; add --expires TIME, for how long it is to \
         work again, or make another with `memsync key create`"
    )]
    Expired { id: String, at: Timestamp },
    #[error("the system gives no random numbers")]
    NoRandom,
}

/// Who keys belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub created: Timestamp,
    /// Bytes that the namespaces the user may write to may hold together. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub id: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The device that it is for; it goes before what a request says of its device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    #[serde(flatten)]
    pub scope: Scope,
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// BLAKE3 of the whole token, hex. The token is random, so a fast hash hides it well.
    hash: String,
    /// What it was before it was rotated, for as long as that is still taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<Previous>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Previous {
    hash: String,
    until: Timestamp,
}

impl Key {
    /// Whether the token with this hash is taken at `now`, and until when.
    pub fn takes(&self, shown: blake3::Hash, now: Timestamp) -> Option<Taken> {
        // Equality of hashes takes the same time wherever they differ.
        let is = |kept: &str| blake3::Hash::from_hex(kept).is_ok_and(|kept| kept == shown);
        let until = if is(&self.hash) {
            self.expires
        } else {
            let previous = self.previous.as_ref().filter(|previous| is(&previous.hash))?;
            Some(self.expires.map_or(previous.until, |expires| expires.min(previous.until)))
        };
        until.is_none_or(|until| now < until).then_some(Taken { until })
    }

    /// Whether no secret of it is taken any more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// A token is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// `None`: until somebody changes that.
    pub until: Option<Timestamp>,
}

/// What a new key is to be.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    pub name: Option<String>,
    pub user: Option<String>,
    pub device: Option<String>,
    pub scope: Scope,
    /// From now.
    pub expires: Option<Duration>,
}

/// A key with its token, which nobody can tell again.
pub struct Made {
    pub key: Key,
    pub token: SecretString,
}

/// The document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    pub users: BTreeMap<String, User>,
    pub keys: BTreeMap<String, Key>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    #[serde(default)]
    users: Vec<User>,
    #[serde(default)]
    keys: Vec<Key>,
}

impl Keys {
    /// # Errors
    /// [`KeysError::Newer`], [`KeysError::Damaged`]
    pub fn parse(content: &[u8]) -> Result<Self, KeysError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let damaged = |e: serde_json::Error| KeysError::Damaged(e.to_string());
        let Head { format: found } = serde_json::from_slice(content).map_err(damaged)?;
        if found != FORMAT {
            return Err(KeysError::Newer { found });
        }
        let document: Document = serde_json::from_slice(content).map_err(damaged)?;
        Ok(Self {
            users: document.users.into_iter().map(|user| (user.name.clone(), user)).collect(),
            keys: document.keys.into_iter().map(|key| (key.id.clone(), key)).collect(),
        })
    }

    fn write(&self) -> Result<Bytes, KeysError> {
        let document = Document {
            format: FORMAT,
            users: self.users.values().cloned().collect(),
            keys: self.keys.values().cloned().collect(),
        };
        serde_json::to_vec(&document).map(Bytes::from).map_err(|e| KeysError::Damaged(e.to_string()))
    }

    fn of(record: Option<&PrivateRecord>) -> Result<Self, KeysError> {
        record.map_or(Ok(Self::default()), |record| Self::parse(&record.content))
    }

    /// The key whose token has this id and hash, where it is taken at `now`, and until when.
    pub fn find(&self, id: &str, shown: blake3::Hash, now: Timestamp) -> Option<(&Key, Taken)> {
        let key = self.keys.get(id)?;
        key.takes(shown, now).map(|taken| (key, taken))
    }

    /// # Errors
    /// [`KeysError::UserExists`], [`KeysError::BadName`]
    pub fn create_user(&mut self, name: &str, quota: Option<u64>, now: Timestamp) -> Result<User, KeysError> {
        check_name(name)?;
        if self.users.contains_key(name) {
            return Err(KeysError::UserExists(name.to_owned()));
        }
        let user = User { name: name.to_owned(), created: seconds(now), quota };
        self.users.insert(name.to_owned(), user.clone());
        Ok(user)
    }

    /// Removes a user and revokes the keys that were theirs, which are given.
    ///
    /// # Errors
    /// [`KeysError::NoSuchUser`]
    pub fn remove_user(&mut self, name: &str) -> Result<Vec<Key>, KeysError> {
        self.users.remove(name).ok_or_else(|| KeysError::NoSuchUser(name.to_owned()))?;
        let theirs = |key: &Key| key.user.as_deref() == Some(name);
        let revoked = self.keys.values().filter(|key| theirs(key)).cloned().collect();
        self.keys.retain(|_, key| !theirs(key));
        Ok(revoked)
    }

    /// # Errors
    /// [`KeysError::NoSuchUser`], [`KeysError::BadName`], [`KeysError::BadDevice`], [`KeysError::NoRandom`]
    pub fn create_key(&mut self, new: &NewKey, now: Timestamp) -> Result<Made, KeysError> {
        if let Some(user) = new.user.as_ref().filter(|user| !self.users.contains_key(*user)) {
            return Err(KeysError::NoSuchUser(user.clone()));
        }
        new.name.as_deref().map(check_name).transpose()?;
        new.device.as_deref().map(check_device).transpose()?;
        let id = loop {
            let id = random_hex::<{ ID_DIGITS / 2 }>()?;
            if !self.keys.contains_key(&id) {
                break id;
            }
        };
        let token = new_token(&id)?;
        let name = [&new.name, &new.device, &new.user].into_iter().flatten().next().unwrap_or(&id).clone();
        let key = Key {
            name,
            user: new.user.clone(),
            device: new.device.clone(),
            scope: new.scope.clone(),
            created: seconds(now),
            expires: new.expires.map(|after| later(now, after)),
            hash: hash_of(token.expose_secret().as_bytes()).to_hex().to_string(),
            previous: None,
            id: id.clone(),
        };
        self.keys.insert(id, key.clone());
        Ok(Made { key, token })
    }

    /// # Errors
    /// [`KeysError::NoSuchKey`]
    pub fn revoke(&mut self, id: &str) -> Result<Key, KeysError> {
        self.keys.remove(id).ok_or_else(|| KeysError::NoSuchKey(id.to_owned()))
    }

    /// Gives a key another secret, and another end where `expires` (from now) says so. The old secret is taken for
    /// `grace` more; one that was replaced before is not taken any more, nor is that of a key that had expired.
    ///
    /// # Errors
    /// [`KeysError::NoSuchKey`], [`KeysError::NoRandom`]; [`KeysError::Expired`] where the new secret would be of no use.
    pub fn rotate(
        &mut self,
        id: &str,
        grace: Duration,
        expires: Option<Duration>,
        now: Timestamp,
    ) -> Result<Made, KeysError> {
        let key = self.keys.get_mut(id).ok_or_else(|| KeysError::NoSuchKey(id.to_owned()))?;
        let had_expired = key.expires.filter(|_| key.is_expired(now));
        if let (Some(at), None) = (had_expired, expires) {
            return Err(KeysError::Expired { id: id.to_owned(), at });
        }
        let token = new_token(id)?;
        key.expires = expires.map(|after| later(now, after)).or(key.expires);
        let hash = hash_of(token.expose_secret().as_bytes()).to_hex().to_string();
        let old = std::mem::replace(&mut key.hash, hash);
        let stays = !grace.is_zero() && had_expired.is_none();
        key.previous = stays.then(|| Previous { hash: old, until: later(now, grace) });
        Ok(Made { key: key.clone(), token })
    }

    /// The limit of `user`, and the namespaces that count towards it: those that the user's keys may write to.
    pub fn quota(&self, user: &str) -> Option<(u64, Vec<Pattern>)> {
        let limit = self.users.get(user)?.quota?;
        let theirs = self.keys.values().filter(|key| key.user.as_deref() == Some(user) && !key.scope.read_only);
        Some((limit, theirs.flat_map(|key| key.scope.namespaces.iter().cloned()).collect()))
    }

    /// What is different from `before`, for the log: never a hash or a secret.
    pub fn changes_since(&self, before: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut tell = |what, subject: String| changes.push(Change { what, subject });
        for name in self.users.keys().filter(|name| !before.users.contains_key(*name)) {
            tell("user created", name.clone());
        }
        for name in before.users.keys().filter(|name| !self.users.contains_key(*name)) {
            tell("user removed", name.clone());
        }
        for (id, key) in &self.keys {
            match before.keys.get(id) {
                None => tell("key created", key.to_string()),
                Some(old) if old.hash != key.hash => tell("key rotated", key.to_string()),
                Some(_) => {}
            }
        }
        for key in before.keys.values().filter(|key| !self.keys.contains_key(&key.id)) {
            tell("key revoked", key.to_string());
        }
        changes
    }
}

/// A change to the keys, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub what: &'static str,
    pub subject: String,
}

/// As the log names it.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.id, self.name)?;
        if let Some(user) = self.user.as_ref().filter(|user| **user != self.name) {
            write!(f, " of {user}")?;
        }
        write!(f, ", {})", self.scope)
    }
}

/// Reads the document; none is an empty one.
///
/// # Errors
/// [`KeysError::Store`], [`KeysError::Newer`], [`KeysError::Damaged`]
pub async fn load(store: &impl RecordStore) -> Result<Keys, KeysError> {
    Keys::of(store.read_record(RECORD).await?.as_ref())
}

/// Changes the document: `change` is done to what is there, anew where another change came first.
///
/// # Errors
/// What `change` says; as [`load`]; [`KeysError::Contended`].
pub async fn edit<T>(
    store: &impl RecordStore,
    mut change: impl FnMut(&mut Keys) -> Result<T, KeysError>,
) -> Result<T, KeysError> {
    for _ in 0..ATTEMPTS {
        let record = store.read_record(RECORD).await?;
        let mut keys = Keys::of(record.as_ref())?;
        let made = change(&mut keys)?;
        let tag = record.map(|record| record.tag);
        if store.write_record(RECORD, tag.as_deref(), keys.write()?).await? {
            return Ok(made);
        }
    }
    Err(KeysError::Contended)
}

/// When each key was last used, by its id.
///
/// # Errors
/// [`KeysError::Store`], [`KeysError::UsesDamaged`]
pub async fn last_used(store: &impl RecordStore) -> Result<BTreeMap<String, Timestamp>, KeysError> {
    used_of(store.read_record(USED).await?.as_ref())
}

fn used_of(record: Option<&PrivateRecord>) -> Result<BTreeMap<String, Timestamp>, KeysError> {
    let Some(record) = record else { return Ok(BTreeMap::new()) };
    serde_json::from_slice(&record.content).map_err(|e| KeysError::UsesDamaged(e.to_string()))
}

/// Records that a key was used; a later time that is there stays. Keys that are gone are forgotten.
///
/// # Errors
/// As [`edit`].
async fn record_use(store: &impl RecordStore, id: &str, at: Timestamp) -> Result<(), KeysError> {
    for _ in 0..ATTEMPTS {
        let record = store.read_record(USED).await?;
        // What cannot be read is begun anew: it decides nothing.
        let mut used = used_of(record.as_ref()).unwrap_or_default();
        // Read after the uses: whatever key has one was there by now, unless it has gone again.
        let keys = load(store).await?;
        used.retain(|id, _| keys.keys.contains_key(id));
        let known = used.entry(id.to_owned()).or_insert(at);
        *known = (*known).max(at);
        let content = serde_json::to_vec(&used).map_err(|e| KeysError::Damaged(e.to_string()))?;
        let tag = record.map(|record| record.tag);
        if store.write_record(USED, tag.as_deref(), content.into()).await? {
            return Ok(());
        }
    }
    Err(KeysError::Contended)
}

/// The id in a token that has the form of a key.
pub fn id_in(token: &[u8]) -> Option<&str> {
    let rest = std::str::from_utf8(token).ok()?.strip_prefix(PREFIX)?;
    let (id, secret) = rest.split_once('_')?;
    let hex = |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    (hex(id, ID_DIGITS) && hex(secret, SECRET_DIGITS)).then_some(id)
}

/// What is kept of a token, and compared.
pub fn hash_of(token: &[u8]) -> blake3::Hash {
    blake3::hash(token)
}

fn new_token(id: &str) -> Result<SecretString, KeysError> {
    Ok(format!("{PREFIX}{id}_{}", random_hex::<{ SECRET_DIGITS / 2 }>()?).into())
}

fn random_hex<const N: usize>() -> Result<String, KeysError> {
    let mut bytes = zeroize::Zeroizing::new([0; N]);
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut *bytes).map_err(|_| KeysError::NoRandom)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn check_name(name: &str) -> Result<(), KeysError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._@-".contains(&b);
    let fits = (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(good);
    if fits { Ok(()) } else { Err(KeysError::BadName(name.to_owned())) }
}

fn check_device(name: &str) -> Result<(), KeysError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let fits = (1..=LONGEST_DEVICE).contains(&name.len()) && name.bytes().all(good);
    if fits { Ok(()) } else { Err(KeysError::BadDevice(name.to_owned())) }
}

/// Nobody needs the fractions.
fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn later(now: Timestamp, after: Duration) -> Timestamp {
    now.checked_add(after).map_or(Timestamp::MAX, seconds)
}

#[cfg(test)]
mod tests;
