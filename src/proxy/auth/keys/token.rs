//! The text of a key: `mk_<id>_<secret>`, both parts random hex digits.

use secrecy::SecretString;

const PREFIX: &str = "mk_";
/// Hex digits of an id: 40 random bits.
const ID_DIGITS: usize = 10;
/// Hex digits of a secret: 256 random bits.
const SECRET_DIGITS: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomNumbers;

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

pub(super) fn new_id() -> Result<String, NoRandomNumbers> {
    random_hex::<{ ID_DIGITS / 2 }>()
}

pub(super) fn new_token(id: &str) -> Result<SecretString, NoRandomNumbers> {
    Ok(format!("{PREFIX}{id}_{}", random_hex::<{ SECRET_DIGITS / 2 }>()?).into())
}

fn random_hex<const N: usize>() -> Result<String, NoRandomNumbers> {
    let mut bytes = zeroize::Zeroizing::new([0; N]);
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut *bytes).map_err(|_| NoRandomNumbers)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
