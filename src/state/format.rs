//! The container file: JSON or MessagePack, in every version. A pure function migrates each older version to the next.
//!
//! Pure, except for the writer. A container is whole or damaged: an unreadable entry, a duplicate path or surplus bytes
//! make it damaged.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use crate::path::RelPath;

use super::notes::{StoredNotes, UploadNotes};
use super::types::{BaseEntries, CopyLink, RemoteState, StateFormat, StateHeader, StateOptions, StoredEntry, VERSION};

/// Maximum nesting in MessagePack. The JSON library has its own limit. A container needs four levels.
const MAX_DEPTH: usize = 64;
/// The session id for a container without one.
const MIGRATED_SESSION: &str = "migrated";

/// Identifies the exact bytes of a container, so that a journal can name the one that it extends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Fingerprint(String);

impl Fingerprint {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }
}

impl Default for Fingerprint {
    /// The fingerprint of a missing container and of an empty file.
    fn default() -> Self {
        Self::of(b"")
    }
}

/// The layout of a container file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileLayout {
    Compact,
    Pretty,
    MsgPack,
}

impl From<&StateOptions> for FileLayout {
    fn from(options: &StateOptions) -> Self {
        match (options.format, options.pretty) {
            (StateFormat::MsgPack, _) => Self::MsgPack,
            (StateFormat::Json, true) => Self::Pretty,
            (StateFormat::Json, false) => Self::Compact,
        }
    }
}

/// The content of a whole container.
#[derive(Debug)]
pub(super) struct ContainerContent {
    pub(super) header: StateHeader,
    pub(super) entries: BaseEntries,
    pub(super) uploads: UploadNotes,
    /// The version of the file, before migration.
    pub(super) version: u32,
    pub(super) layout: FileLayout,
}

/// Why bytes are no container and no journal for this build.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    Damaged,
    /// A newer build wrote it, with this version.
    Future(u64),
}

/// Reads a container of any version and format. `written`: time of the file's last write.
pub(super) fn decode(bytes: &[u8], written: Timestamp) -> Result<ContainerContent, DecodeError> {
    let (layout, bare) = sniff(bytes).ok_or(DecodeError::Damaged)?;
    let (version, VersionTwo { header, entries: list, uploads }) = if bare {
        (0, parse::<VersionZero>(layout, bytes)?.into_v1(written).into_v2())
    } else {
        match parse::<VersionProbe>(layout, bytes)?.version {
            1 => (1, parse::<VersionOne>(layout, bytes)?.into_v2()),
            2 => (2, parse::<VersionTwo>(layout, bytes)?),
            // Version 0 has no header.
            0 => return Err(DecodeError::Damaged),
            future => return Err(DecodeError::Future(future)),
        }
    };
    let mut entries = BaseEntries::new();
    for (path, entry) in list.into_iter().map(StoredEntry::split) {
        if entries.insert(path, entry).is_some() {
            return Err(DecodeError::Damaged);
        }
    }
    let mut noted = UploadNotes::default();
    uploads.into_iter().for_each(|stored| noted.read(stored));
    Ok(ContainerContent { header, entries, uploads: noted, version, layout })
}

/// The version of a container, without its content.
#[derive(Deserialize)]
struct VersionProbe {
    version: u64,
}

/// Version 0: a bare array of entries.
#[derive(Deserialize)]
#[serde(transparent)]
struct VersionZero(Vec<StoredEntry>);

/// Version 1: a session and times.
#[derive(Deserialize)]
struct VersionOne {
    session_id: String,
    created_at: Timestamp,
    modified_at: Timestamp,
    entries: Vec<StoredEntry>,
}

/// Version 2: bound to a folder and a remote.
#[derive(Deserialize)]
struct VersionTwo {
    #[serde(flatten)]
    header: StateHeader,
    entries: Vec<StoredEntry>,
    /// Older containers have none.
    #[serde(default)]
    uploads: Option<StoredNotes>,
}

impl VersionZero {
    /// `written`: time of the file's last write. No other time is known.
    fn into_v1(self, written: Timestamp) -> VersionOne {
        VersionOne {
            session_id: MIGRATED_SESSION.to_owned(),
            created_at: written,
            modified_at: written,
            entries: self.0,
        }
    }
}

impl VersionOne {
    fn into_v2(self) -> VersionTwo {
        let header = StateHeader::new(self.session_id, self.created_at, self.modified_at);
        VersionTwo { header, entries: self.entries, uploads: None }
    }
}

/// The layout by the first byte, and true if the content is a bare array.
fn sniff(bytes: &[u8]) -> Option<(FileLayout, bool)> {
    let start = bytes.iter().position(|b| !b" \t\r\n".contains(b))?;
    let layout = if bytes[start..].contains(&b'\n') { FileLayout::Pretty } else { FileLayout::Compact };
    match bytes[start] {
        b'{' => Some((layout, false)),
        b'[' => Some((layout, true)),
        0x80..=0x8f | 0xde | 0xdf => Some((FileLayout::MsgPack, false)),
        0x90..=0x9f | 0xdc | 0xdd => Some((FileLayout::MsgPack, true)),
        _ => None,
    }
}

fn parse<T: DeserializeOwned>(layout: FileLayout, bytes: &[u8]) -> Result<T, DecodeError> {
    if layout != FileLayout::MsgPack {
        return serde_json::from_slice(bytes).map_err(|_| DecodeError::Damaged);
    }
    // The deserializer reads from a slice. It checks the length of a string against the slice, and grows sequences as
    // it reads, so a false length allocates nothing.
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    reader.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut reader).map_err(|_| DecodeError::Damaged)?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Damaged) }
}

/// A container to be written. The order of the fields is for people who read the file.
#[derive(Serialize)]
struct ContainerView<'a> {
    version: u32,
    session_id: &'a str,
    created_at: Timestamp,
    modified_at: Timestamp,
    folder_id: Option<&'a str>,
    remote: &'a RemoteState,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    recovered: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    copies: &'a BTreeMap<RelPath, CopyLink>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root_mark: Option<&'a str>,
    /// Older builds ignore it.
    #[serde(skip_serializing_if = "Option::is_none")]
    uploads: Option<StoredNotes>,
    #[serde(serialize_with = "sequence")]
    entries: &'a BaseEntries,
}

fn sequence<S: Serializer>(entries: &BaseEntries, serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(entries.len()))?;
    for (path, entry) in entries {
        list.serialize_element(&StoredEntry::new(path, entry))?;
    }
    list.end()
}

/// Writes a container of the current version and returns its fingerprint. `out` needs no buffer.
///
/// # Errors
/// As `out`.
pub(super) fn encode(
    out: impl Write,
    layout: FileLayout,
    header: &StateHeader,
    entries: &BaseEntries,
    uploads: &UploadNotes,
) -> io::Result<Fingerprint> {
    let document = ContainerView {
        version: VERSION,
        session_id: &header.session_id,
        created_at: header.created_at,
        modified_at: header.modified_at,
        folder_id: header.folder_id.as_deref(),
        remote: &header.remote,
        recovered: header.recovered,
        copies: &header.copies,
        boot: header.boot.as_deref(),
        uploads: uploads.to_stored(),
        root_mark: header.root_mark.as_deref(),
        entries,
    };
    let hashing = HashingWriter { out, hasher: blake3::Hasher::new() };
    let mut buffered = io::BufWriter::with_capacity(256 * 1024, hashing);
    match layout {
        FileLayout::Compact => serde_json::to_writer(&mut buffered, &document)?,
        FileLayout::Pretty => serde_json::to_writer_pretty(&mut buffered, &document)?,
        FileLayout::MsgPack => {
            let mut serializer = rmp_serde::Serializer::new(&mut buffered).with_struct_map();
            document.serialize(&mut serializer).map_err(io::Error::other)?;
        }
    }
    let hashing = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Fingerprint(hashing.hasher.finalize().to_hex().to_string()))
}

/// A writer that computes the fingerprint.
struct HashingWriter<W> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
