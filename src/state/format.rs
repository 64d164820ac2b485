//! What a container file looks like: JSON or MessagePack, and every version of its content.
//!
//! Pure apart from the writer it is given. A container is taken whole or not at all: an entry that cannot be
//! read, a path named twice or bytes left over make it damaged.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use crate::digest::Md5;
use crate::disk::FileStat;
use crate::path::RelPath;
use crate::sync::Base;

use super::migrate::{V0, V1, V2};
use super::{
    BaseEntry, CopyLink, RemoteState, StateFormat, StateHeader, StateOptions, UploadNotes, VERSION, WireNotes,
};

/// Nesting allowed in MessagePack (JSON has the library's own bound). A container needs four levels.
const MAX_DEPTH: usize = 64;

/// Entries of one folder by path.
pub type Entries = BTreeMap<RelPath, BaseEntry>;

/// Names the exact bytes of a container, so that a journal can say which one it extends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// Of a container that is not there, or of a file without a byte: both hold nothing.
    pub fn of_nothing() -> Self {
        Self::of(b"")
    }
}

/// How a file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Compact,
    Pretty,
    MsgPack,
}

impl From<&StateOptions> for Layout {
    fn from(options: &StateOptions) -> Self {
        match (options.format, options.pretty) {
            (StateFormat::MsgPack, _) => Self::MsgPack,
            (StateFormat::Json, true) => Self::Pretty,
            (StateFormat::Json, false) => Self::Compact,
        }
    }
}

/// An entry as it stands in container and journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireEntry {
    path: RelPath,
    md5: Md5,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    mtime_ns: i64,
    #[serde(default)]
    ctime_ns: i64,
    #[serde(default)]
    inode: u64,
    #[serde(default)]
    remote: WireRemote,
    #[serde(default)]
    seen_tombstone: bool,
    /// Older versions take such an entry for one that is in scope.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    detached: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct WireRemote {
    #[serde(default)]
    version: u64,
}

impl WireEntry {
    pub fn new(path: &RelPath, entry: &BaseEntry) -> Self {
        let (md5, seen_tombstone, detached) = match entry.base {
            Base::Synced(md5) => (md5, false, false),
            Base::Detached(md5) => (md5, false, true),
            Base::Seen(md5) => (md5, true, false),
        };
        // No file has inode 0, so `mtime_ns` and `inode` 0 can stand for "no stat".
        let stat = entry.stat.unwrap_or(FileStat { size: 0, mtime_ns: 0, ctime_ns: 0, inode: 0 });
        Self {
            path: path.clone(),
            md5,
            size: stat.size,
            mtime_ns: stat.mtime_ns,
            ctime_ns: stat.ctime_ns,
            inode: stat.inode,
            remote: WireRemote { version: entry.version },
            seen_tombstone,
            detached,
        }
    }

    pub fn split(self) -> (RelPath, BaseEntry) {
        let Self { path, md5, size, mtime_ns, ctime_ns, inode, remote, seen_tombstone, detached } = self;
        let base = match (seen_tombstone, detached) {
            (true, _) => Base::Seen(md5),
            (false, true) => Base::Detached(md5),
            (false, false) => Base::Synced(md5),
        };
        let stat = (mtime_ns != 0 || inode != 0).then_some(FileStat { size, mtime_ns, ctime_ns, inode });
        (path, BaseEntry { base, stat, version: remote.version })
    }
}

/// A container read whole.
#[derive(Debug)]
pub struct Document {
    pub header: StateHeader,
    pub entries: Entries,
    pub uploads: UploadNotes,
    /// Of the file, before migration.
    pub version: u32,
    pub layout: Layout,
}

/// Why bytes are no container this build can take.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodeError {
    Damaged(String),
    /// The version it says it has.
    Future(u64),
}

/// Reads a container of any version and format. `written`: when the file was last written.
pub fn decode(bytes: &[u8], written: Timestamp) -> Result<Document, DecodeError> {
    let (layout, bare) = sniff(bytes).ok_or_else(|| DecodeError::Damaged("neither JSON nor MessagePack".into()))?;
    let (version, V2 { header, entries: list, uploads }) = if bare {
        (0, parse::<V0>(layout, bytes)?.into_v1(written).into_v2())
    } else {
        match parse::<Probe>(layout, bytes)?.version {
            1 => (1, parse::<V1>(layout, bytes)?.into_v2()),
            2 => (2, parse::<V2>(layout, bytes)?),
            0 => return Err(DecodeError::Damaged("version 0 has no header".into())),
            future => return Err(DecodeError::Future(future)),
        }
    };
    let mut entries = Entries::new();
    for (path, entry) in list.into_iter().map(WireEntry::split) {
        if let Some((path, _)) = entries.get_key_value(&path) {
            return Err(DecodeError::Damaged(format!("{path:?} stands in it twice")));
        }
        entries.insert(path, entry);
    }
    let mut noted = UploadNotes::default();
    uploads.into_iter().for_each(|wire| noted.read(wire));
    Ok(Document { header, entries, uploads: noted, version, layout })
}

/// The version, whatever else there is.
#[derive(Deserialize)]
struct Probe {
    version: u64,
}

/// The layout by the first byte, and whether the content is a bare array.
fn sniff(bytes: &[u8]) -> Option<(Layout, bool)> {
    let start = bytes.iter().position(|b| !b" \t\r\n".contains(b))?;
    let layout = if bytes[start..].contains(&b'\n') { Layout::Pretty } else { Layout::Compact };
    match bytes[start] {
        b'{' => Some((layout, false)),
        b'[' => Some((layout, true)),
        0x80..=0x8f | 0xde | 0xdf => Some((Layout::MsgPack, false)),
        0x90..=0x9f | 0xdc | 0xdd => Some((Layout::MsgPack, true)),
        _ => None,
    }
}

fn parse<T: DeserializeOwned>(layout: Layout, bytes: &[u8]) -> Result<T, DecodeError> {
    if layout != Layout::MsgPack {
        return serde_json::from_slice(bytes).map_err(|e| DecodeError::Damaged(e.to_string()));
    }
    // From a slice: strings are checked against what is there before they are taken, and sequences are grown
    // as they are read, so a length that lies allocates nothing.
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    reader.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut reader).map_err(|e| DecodeError::Damaged(e.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Damaged("bytes are left over".into())) }
}

/// A container as it is written. The field order is the one people read.
#[derive(Serialize)]
struct Outgoing<'a> {
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
    /// Older builds pass over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    uploads: Option<WireNotes>,
    #[serde(serialize_with = "sequence")]
    entries: &'a Entries,
}

fn sequence<S: Serializer>(entries: &Entries, serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(entries.len()))?;
    for (path, entry) in entries {
        list.serialize_element(&WireEntry::new(path, entry))?;
    }
    list.end()
}

/// Writes a container of the current version and gives its fingerprint. The writer should be the file itself:
/// the bytes come in large pieces.
///
/// # Errors
/// Those of `out`.
pub fn encode(
    out: impl Write,
    layout: Layout,
    header: &StateHeader,
    entries: &Entries,
    uploads: &UploadNotes,
) -> io::Result<Fingerprint> {
    let document = Outgoing {
        version: VERSION,
        session_id: &header.session_id,
        created_at: header.created_at,
        modified_at: header.modified_at,
        folder_id: header.folder_id.as_deref(),
        remote: &header.remote,
        recovered: header.recovered,
        copies: &header.copies,
        boot: header.boot.as_deref(),
        uploads: uploads.to_wire(),
        root_mark: header.root_mark.as_deref(),
        entries,
    };
    let hashing = Hashing { out, hasher: blake3::Hasher::new() };
    let mut buffered = io::BufWriter::with_capacity(256 * 1024, hashing);
    match layout {
        Layout::Compact => serde_json::to_writer(&mut buffered, &document)?,
        Layout::Pretty => serde_json::to_writer_pretty(&mut buffered, &document)?,
        Layout::MsgPack => {
            let mut serializer = rmp_serde::Serializer::new(&mut buffered).with_struct_map();
            document.serialize(&mut serializer).map_err(io::Error::other)?;
        }
    }
    let hashing = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Fingerprint(hashing.hasher.finalize().to_hex().to_string()))
}

/// Fingerprints what passes through.
struct Hashing<W> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
