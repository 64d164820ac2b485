//! Files and their paths: makes the self-signed certificate of a proxy, reads certificate files, resolves symlinks.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair};
use zeroize::Zeroizing;

use super::error::ConfigError;
use crate::disk::whole::{create_private, replace_private};

/// A chain of certificates is much smaller.
const MAX_BYTES: u64 = 1 << 20;

/// Makes a key and a self-signed certificate for `names` in one file of mode 0600, unless the file exists. The
/// certificate does not expire, because clients pin it and an expiry would only break them.
pub(crate) fn make_certificate(path: &Path, names: &[String]) -> io::Result<()> {
    let is_empty = match std::fs::metadata(path) {
        // A killed process may have left an empty file.
        Ok(found) if found.len() == 0 => true,
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    let bad = |e: rcgen::Error| io::Error::other(e.to_string());
    let key = KeyPair::generate().map_err(bad)?;
    // Some host names are not allowed in a certificate.
    let mut params = CertificateParams::new(names).or_else(|_| CertificateParams::new(Vec::new())).map_err(bad)?;
    params.distinguished_name.push(DnType::CommonName, "memsync proxy");
    let certificate = params.self_signed(&key).map_err(bad)?.pem();
    let secret = Zeroizing::new(key.serialize_pem());
    let pem = Zeroizing::new(format!("{certificate}{}", secret.as_str()));
    match if is_empty { replace_private(path, pem.as_bytes()) } else { create_private(path, pem.as_bytes()) } {
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The content of a file of at most 1 MiB. A larger one is `InvalidData`.
pub(crate) fn read_small_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut content)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too large for a certificate or a key"));
    }
    Ok(content)
}

/// The content of a file with certificate authorities.
pub(crate) fn read_ca_file(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|why| ConfigError::Ca { path: path.to_owned(), why })
}

/// Resolves the symlinks of the longest part of `path` that exists, so that two names of one folder compare equal.
pub(crate) fn resolve_links(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(resolved) = std::fs::canonicalize(ancestor) {
            return match path.strip_prefix(ancestor) {
                // Joining an empty path would add a trailing `/`.
                Ok(rest) if rest.as_os_str().is_empty() => resolved,
                Ok(rest) => resolved.join(rest),
                Err(_) => path.to_owned(),
            };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolve_links_follows_the_part_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        std::fs::create_dir(home.join("real")).unwrap();
        std::os::unix::fs::symlink("real", home.join("link")).unwrap();
        let shown = |path: &Path| path.to_str().unwrap().strip_prefix(home.to_str().unwrap()).unwrap().to_owned();
        assert_eq!(shown(&resolve_links(&home.join("link"))), "/real");
        assert_eq!(shown(&resolve_links(&home.join("link/new/deep"))), "/real/new/deep");
        assert_eq!(shown(&resolve_links(&home.join("new"))), "/new");
    }
}
