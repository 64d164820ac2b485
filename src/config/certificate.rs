//! A certificate of the proxy's own, and reading one.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rcgen::{CertificateParams, DnType, KeyPair};
use zeroize::Zeroizing;

use crate::disk::whole::{create_private, replace_private};

/// Longest file read here, bytes: a chain of certificates is far below.
const MOST: u64 = 1 << 20;

/// Makes a key and a self-signed certificate for `names` at `path` (0600, both in one file), unless it is there.
/// It does not expire: those who trust it trust this very certificate, and would notice only by a failure.
///
/// # Errors
/// When the system gives no random numbers or the file cannot be written.
pub fn make_certificate(path: &Path, names: &[String]) -> io::Result<()> {
    let is_empty = match std::fs::metadata(path) {
        // An earlier version left it so when it was killed.
        Ok(found) if found.len() == 0 => true,
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    let bad = |e: rcgen::Error| io::Error::other(e.to_string());
    let key = KeyPair::generate().map_err(bad)?;
    // A host's name may be one that no certificate can have.
    let mut params = CertificateParams::new(names).or_else(|_| CertificateParams::new(Vec::new())).map_err(bad)?;
    params.distinguished_name.push(DnType::CommonName, "memsync proxy");
    let certificate = params.self_signed(&key).map_err(bad)?.pem();
    let secret = Zeroizing::new(key.serialize_pem());
    let pem = Zeroizing::new(format!("{certificate}{}", secret.as_str()));
    match if is_empty { replace_private(path, pem.as_bytes()) } else { create_private(path, pem.as_bytes()) } {
        // Another start was quicker.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The content of a file of at most 1 MiB.
///
/// # Errors
/// As reading does; `InvalidData` for a larger one.
pub fn read_small_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = File::open(path)?.take(MOST + 1).read_to_end(&mut content)?;
    if read as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too large for a certificate or a key"));
    }
    Ok(content)
}
