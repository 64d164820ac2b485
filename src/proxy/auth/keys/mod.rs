//! Users and keys: the document that the store keeps of them, and every change to it.
//!
//! A key is a random token that is shown once. The document has only its hash.

mod cache;
mod document;
mod records;
mod scope;

pub(crate) use cache::{KeyCache, KeyLease, MatchedKey};
pub use document::{IssuedKey, Key, KeySpec, Keys, KeysError, NoRandomNumbers, User};
pub(crate) use document::{hash_of, id_in};
pub use records::{edit, last_used, load};
pub(crate) use scope::AccessKind;
pub use scope::{KeyScope, NamespacePattern, NamespacePatternError, UserPattern};

#[cfg(test)]
mod tests;
