//! Callers: the proxy's own token, the keys of the store, and tokens that an external verifier accepts.

pub(super) mod authenticator;
pub(super) mod caller;
pub mod keys;
pub(super) mod verifier;
