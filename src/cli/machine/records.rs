//! Small text files in the state directory, such as the id of this machine.

use std::io;
use std::path::Path;

use anyhow::Context;

use crate::cli::app::App;
use crate::config::{create_private, create_private_dir, resolve_links};
use crate::disk::real::RealDisk;
use crate::disk::whole::replace_private;
use crate::disk::{Disk, DiskFile};

/// The record of the machine's id. It lives as long as the state directory.
const DEVICE_ID: &str = "device-id";
/// Longest record that is read.
const MAX_RECORD_BYTES: usize = 4096;

/// The text of a record, trimmed. `None` if there is no such file.
pub(crate) fn read_record(dir: &Path, name: &str) -> anyhow::Result<Option<String>> {
    let read = || {
        let mut file = RealDisk::open(&resolve_links(dir))?.open(name)?;
        let (mut text, mut buf) = (Vec::new(), [0; 512]);
        while text.len() < MAX_RECORD_BYTES {
            match file.read(&mut buf)? {
                0 => break,
                n => text.extend_from_slice(&buf[..n]),
            }
        }
        String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
    };
    match read() {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| dir.join(name).display().to_string()),
    }
}

/// Writes a record atomically, unless it has this text already.
pub(crate) fn write_record(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    if read_record(dir, name).ok().flatten().as_deref() == Some(text) {
        return Ok(());
    }
    let path = dir.join(name);
    replace_private(&path, format!("{text}\n").as_bytes()).with_context(|| path.display().to_string())
}

/// The id of this machine. The first call makes a random one, and the state directory if it is missing.
pub(crate) fn device_id(app: &App) -> anyhow::Result<String> {
    let dir = &app.dirs.state;
    create_private_dir(dir).with_context(|| format!("{}: the state directory cannot be made", dir.display()))?;
    let path = dir.join(DEVICE_ID);
    let fresh = format!("{}\n", random_hex::<16>()?);
    let made = match read_record(dir, DEVICE_ID)?.as_deref() {
        // A killed process may have left an empty file.
        Some("") => replace_private(&path, fresh.as_bytes()),
        Some(_) => Ok(()),
        None => create_private(&path, fresh.as_bytes()),
    };
    match made {
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.with_context(|| path.display().to_string())?,
    }
    let id = read_record(dir, DEVICE_ID)?.unwrap_or_default();
    anyhow::ensure!(!id.is_empty(), "{}: is empty; remove it, and memsync makes another", path.display());
    Ok(id)
}

/// `N` random bytes in hex, fit for a secret.
pub(crate) fn random_hex<const N: usize>() -> anyhow::Result<String> {
    let mut bytes = [0; N];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
