//! [`Keys`]: the document with all users and keys, and the changes that commands make to it. Pure but for randomness.
//!
//! The token of a key is `mk_<id>_<secret>`, both parts random hex digits.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::scope::{AccessKind, KeyScope, NamespacePattern};
use crate::store::StoreError;

/// The format of the document that this code reads and writes.
///
/// It must rise with every field that narrows what a key may do. An older memsync ignores fields that it does not know,
/// so it would let such a key do more. A higher format makes it refuse the whole document.
const FORMAT: u32 = 1;
const PREFIX: &str = "mk_";
/// Hex digits of an id: 40 random bits.
const ID_DIGITS: usize = 10;
/// Hex digits of a secret: 256 random bits.
const SECRET_DIGITS: usize = 64;
const MAX_NAME_BYTES: usize = 64;
/// As in the configuration.
const MAX_DEVICE_BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomNumbers;

/// A key or the document cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store's keys were written by a newer memsync (format {found}, this one knows {FORMAT}); upgrade it")]
    Newer { found: u32 },
    #[error("the store's keys cannot be read: {0}; restore the store from a backup")]
    Damaged(String),
    #[error("the record of last uses cannot be read ({0}); it starts anew when a key is next used")]
    UsesDamaged(String),
    #[error("the store's keys kept changing; try again")]
    Contended,
    #[error("there is no user {0:?}; `memsync user list` shows all users")]
    NoSuchUser(String),
    #[error("there is a user {0:?} already")]
    UserExists(String),
    #[error("there is no key {0:?}; `memsync key list` shows the ids")]
    NoSuchKey(String),
    #[error("{0:?} is not 1 to {MAX_NAME_BYTES} of the characters A-Z a-z 0-9 . _ @ -")]
    BadName(String),
    #[error("{0:?} is not 1 to {MAX_DEVICE_BYTES} of the characters A-Z a-z 0-9 -")]
    BadDevice(String),
    #[error(
        "the key {id} expired at {at}: another secret would not work either; add --expires TIME, for how long it is to \
         work again, or make another with `memsync key create`"
    )]
    Expired { id: String, at: Timestamp },
    #[error(transparent)]
    NoRandomNumbers(#[from] NoRandomNumbers),
}

/// An owner of keys.
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
    /// The device that the key is for. It overrides the device that a request names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    #[serde(flatten)]
    pub scope: KeyScope,
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// BLAKE3 of the whole token, hex. The token is random, so a fast hash hides it well.
    hash: String,
    /// The secret before the last rotation, for as long as it is still accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<PreviousSecret>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PreviousSecret {
    hash: String,
    until: Timestamp,
}

impl Key {
    /// How long the token with this hash is valid. `None`: it is not, at `now`.
    fn validity(&self, token: blake3::Hash, now: Timestamp) -> Option<TokenValidity> {
        let matches = |stored: &str| blake3::Hash::from_hex(stored).is_ok_and(|stored| stored == token);
        let until = if matches(&self.hash) {
            self.expires
        } else {
            let previous = self.previous.as_ref().filter(|previous| matches(&previous.hash))?;
            Some(self.expires.map_or(previous.until, |expires| expires.min(previous.until)))
        };
        until.is_none_or(|until| now < until).then_some(TokenValidity { until })
    }

    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// How long a token stays valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenValidity {
    /// `None`: until the key changes.
    pub until: Option<Timestamp>,
}

/// The properties of a new key.
#[derive(Debug, Clone, Default)]
pub struct KeySpec {
    pub name: Option<String>,
    pub user: Option<String>,
    pub device: Option<String>,
    pub scope: KeyScope,
    /// From now.
    pub expires: Option<Duration>,
}

/// A key with its token. The document has only the hash, so this is the one chance to show it.
pub struct IssuedKey {
    pub key: Key,
    pub token: SecretString,
}

/// All users and keys of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    pub users: BTreeMap<String, User>,
    pub keys: BTreeMap<String, Key>,
}

#[derive(Serialize, Deserialize)]
struct KeysJson {
    format: u32,
    #[serde(default)]
    users: Vec<User>,
    #[serde(default)]
    keys: Vec<Key>,
}

impl Keys {
    pub(crate) fn parse(content: &[u8]) -> Result<Self, KeysError> {
        #[derive(Deserialize)]
        struct FormatOnly {
            format: u32,
        }
        let damaged = |e: serde_json::Error| KeysError::Damaged(e.to_string());
        let FormatOnly { format: found } = serde_json::from_slice(content).map_err(damaged)?;
        match found.cmp(&FORMAT) {
            Ordering::Equal => {}
            Ordering::Greater => return Err(KeysError::Newer { found }),
            Ordering::Less => return Err(KeysError::Damaged(format!("their format {found} is unknown"))),
        }
        let document: KeysJson = serde_json::from_slice(content).map_err(damaged)?;
        Ok(Self {
            users: document.users.into_iter().map(|user| (user.name.clone(), user)).collect(),
            keys: document.keys.into_iter().map(|key| (key.id.clone(), key)).collect(),
        })
    }

    pub(super) fn to_json(&self) -> Result<Bytes, KeysError> {
        let document = KeysJson {
            format: FORMAT,
            users: self.users.values().cloned().collect(),
            keys: self.keys.values().cloned().collect(),
        };
        serde_json::to_vec(&document).map(Bytes::from).map_err(|e| KeysError::Damaged(e.to_string()))
    }

    /// The key with this id, if the token with this hash is valid for it at `now`.
    pub(crate) fn find(&self, id: &str, token: blake3::Hash, now: Timestamp) -> Option<(&Key, TokenValidity)> {
        let key = self.keys.get(id)?;
        key.validity(token, now).map(|validity| (key, validity))
    }

    pub fn create_user(&mut self, name: &str, quota: Option<u64>, now: Timestamp) -> Result<User, KeysError> {
        check_name(name)?;
        if self.users.contains_key(name) {
            return Err(KeysError::UserExists(name.to_owned()));
        }
        let user = User { name: name.to_owned(), created: whole_seconds(now), quota };
        self.users.insert(name.to_owned(), user.clone());
        Ok(user)
    }

    /// Removes a user, revokes the user's keys and returns them.
    pub fn remove_user(&mut self, name: &str) -> Result<Vec<Key>, KeysError> {
        self.users.remove(name).ok_or_else(|| KeysError::NoSuchUser(name.to_owned()))?;
        let belongs = |key: &Key| key.user.as_deref() == Some(name);
        let revoked = self.keys.values().filter(|key| belongs(key)).cloned().collect();
        self.keys.retain(|_, key| !belongs(key));
        Ok(revoked)
    }

    pub fn create_key(&mut self, spec: &KeySpec, now: Timestamp) -> Result<IssuedKey, KeysError> {
        if let Some(user) = spec.user.as_ref().filter(|user| !self.users.contains_key(*user)) {
            return Err(KeysError::NoSuchUser(user.clone()));
        }
        spec.name.as_deref().map(check_name).transpose()?;
        spec.device.as_deref().map(check_device).transpose()?;
        let id = loop {
            let id = new_id()?;
            if !self.keys.contains_key(&id) {
                break id;
            }
        };
        let token = new_token(&id)?;
        let name = [&spec.name, &spec.device, &spec.user].into_iter().flatten().next().unwrap_or(&id).clone();
        let key = Key {
            name,
            user: spec.user.clone(),
            device: spec.device.clone(),
            scope: spec.scope.clone(),
            created: whole_seconds(now),
            expires: spec.expires.map(|after| later(now, after)),
            hash: hash_of(token.expose_secret().as_bytes()).to_hex().to_string(),
            previous: None,
            id: id.clone(),
        };
        self.keys.insert(id, key.clone());
        Ok(IssuedKey { key, token })
    }

    pub fn revoke(&mut self, id: &str) -> Result<Key, KeysError> {
        self.keys.remove(id).ok_or_else(|| KeysError::NoSuchKey(id.to_owned()))
    }

    /// Gives a key another secret, and another expiry if `expires` (from now) is given.
    ///
    /// The old secret stays valid for `grace`. Secrets of earlier rotations end at once, and so does the secret of an
    /// expired key.
    ///
    /// # Errors
    /// [`KeysError::NoSuchKey`], [`KeysError::NoRandomNumbers`]; [`KeysError::Expired`] if the new secret would be
    /// expired too.
    pub fn rotate(
        &mut self,
        id: &str,
        grace: Duration,
        expires: Option<Duration>,
        now: Timestamp,
    ) -> Result<IssuedKey, KeysError> {
        let key = self.keys.get_mut(id).ok_or_else(|| KeysError::NoSuchKey(id.to_owned()))?;
        let expired_at = key.expires.filter(|_| key.is_expired(now));
        if let (Some(at), None) = (expired_at, expires) {
            return Err(KeysError::Expired { id: id.to_owned(), at });
        }
        let token = new_token(id)?;
        key.expires = expires.map(|after| later(now, after)).or(key.expires);
        let hash = hash_of(token.expose_secret().as_bytes()).to_hex().to_string();
        let old = std::mem::replace(&mut key.hash, hash);
        let has_grace = !grace.is_zero() && expired_at.is_none();
        key.previous = has_grace.then(|| PreviousSecret { hash: old, until: later(now, grace) });
        Ok(IssuedKey { key: key.clone(), token })
    }

    /// The quota of `user` in bytes, and the namespaces that count towards it: those the user's keys may write to.
    pub(crate) fn quota(&self, user: &str) -> Option<(u64, Vec<NamespacePattern>)> {
        let limit = self.users.get(user)?.quota?;
        let writing =
            self.keys.values().filter(|key| key.user.as_deref() == Some(user) && key.scope.allows(AccessKind::Write));
        Some((limit, writing.flat_map(|key| key.scope.namespaces.iter().cloned()).collect()))
    }

    /// The differences to `before` for the log: an action and its subject. They contain no hash and no secret.
    pub(super) fn changes_since(&self, before: &Self) -> Vec<(&'static str, String)> {
        let mut changes = Vec::new();
        let mut add = |action, subject: String| changes.push((action, subject));
        for name in self.users.keys().filter(|name| !before.users.contains_key(*name)) {
            add("user created", name.clone());
        }
        for name in before.users.keys().filter(|name| !self.users.contains_key(*name)) {
            add("user removed", name.clone());
        }
        for (id, key) in &self.keys {
            match before.keys.get(id) {
                None => add("key created", key.to_string()),
                Some(old) if old.hash != key.hash => add("key rotated", key.to_string()),
                Some(_) => {}
            }
        }
        for key in before.keys.values().filter(|key| !self.keys.contains_key(&key.id)) {
            add("key revoked", key.to_string());
        }
        changes
    }
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

fn check_name(name: &str) -> Result<(), KeysError> {
    let is_valid = |b: u8| b.is_ascii_alphanumeric() || b"._@-".contains(&b);
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_valid);
    if fits { Ok(()) } else { Err(KeysError::BadName(name.to_owned())) }
}

fn check_device(name: &str) -> Result<(), KeysError> {
    let is_valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let fits = (1..=MAX_DEVICE_BYTES).contains(&name.len()) && name.bytes().all(is_valid);
    if fits { Ok(()) } else { Err(KeysError::BadDevice(name.to_owned())) }
}

fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

pub(super) fn later(now: Timestamp, after: Duration) -> Timestamp {
    now.checked_add(after).map_or(Timestamp::MAX, whole_seconds)
}

/// The id in a token that has the form of a key.
pub(crate) fn id_in(token: &[u8]) -> Option<&str> {
    let rest = std::str::from_utf8(token).ok()?.strip_prefix(PREFIX)?;
    let (id, secret) = rest.split_once('_')?;
    let is_hex = |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    (is_hex(id, ID_DIGITS) && is_hex(secret, SECRET_DIGITS)).then_some(id)
}

/// The only form in which tokens are stored and compared. Comparing hashes takes the same time for any two.
pub(crate) fn hash_of(token: &[u8]) -> blake3::Hash {
    blake3::hash(token)
}

fn new_id() -> Result<String, NoRandomNumbers> {
    random_hex::<{ ID_DIGITS / 2 }>()
}

fn new_token(id: &str) -> Result<SecretString, NoRandomNumbers> {
    Ok(format!("{PREFIX}{id}_{}", random_hex::<{ SECRET_DIGITS / 2 }>()?).into())
}

fn random_hex<const N: usize>() -> Result<String, NoRandomNumbers> {
    let mut bytes = zeroize::Zeroizing::new([0; N]);
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut *bytes).map_err(|_| NoRandomNumbers)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
