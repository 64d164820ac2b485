//! Parses an index: all of it or nothing, without a second copy in memory.
//!
//! The pieces of the body go to a JSON parser on a blocking thread. It builds the final map directly and sees every key,
//! so that it notices duplicates.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io::{self, BufReader, Read};

use bytes::{Buf, Bytes};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use tokio::sync::mpsc;
use tokio::task;

use super::reply::HttpReply;
use crate::digest::Md5;
use crate::path::{PathError, RelPath};
use crate::protocol::{IndexCursor, IndexEntry};
use crate::remote::{FetchedIndex, RemoteError};

/// Most pieces that wait for the parser.
const QUEUED_PIECES: usize = 8;

/// The parsed body of an index.
#[derive(Debug)]
pub(super) struct ParsedIndex {
    pub(super) index: FetchedIndex,
    /// True if it lists changes only.
    pub(super) is_delta: bool,
    /// The tag of the index that a delta starts from.
    pub(super) delta_base: Option<String>,
}

/// Reads and parses the body of `answer`. Anything but one whole index is the error `Protocol`.
pub(super) async fn read(mut answer: HttpReply) -> Result<ParsedIndex, RemoteError> {
    let (sender, receiver) = mpsc::channel(QUEUED_PIECES);
    let parsing = task::spawn_blocking(move || parse(PieceReader { receiver, piece: Bytes::new() }));
    // The parser closes the channel after an error, which it then returns.
    while let Some(piece) = answer.next().await.transpose() {
        let last = piece.is_err();
        if sender.send(piece).await.is_err() || last {
            break;
        }
    }
    drop(sender);
    match parsing.await {
        Ok(Ok(parsed)) => Ok(parsed),
        Ok(Err(e)) => Err(refusal(&answer, e)),
        Err(e) => Err(answer.protocol(&format!("reading the index failed: {e}"))),
    }
}

fn refusal(answer: &HttpReply, e: serde_json::Error) -> RemoteError {
    if !e.is_io() {
        return answer.protocol(&format!("the index cannot be read: {e}"));
    }
    match io::Error::from(e).downcast::<RemoteError>() {
        Ok(RemoteError::TooLarge { why, .. }) => answer.protocol(&format!("the index is too large: {why}")),
        Ok(e) => e,
        Err(e) => answer.protocol(&e.to_string()),
    }
}

fn parse(reader: impl Read) -> serde_json::Result<ParsedIndex> {
    let wire: IndexJson = serde_json::from_reader(BufReader::new(reader))?;
    let cursor = wire.index_epoch.zip(wire.index_cursor);
    Ok(ParsedIndex {
        index: FetchedIndex {
            files: wire.files.accepted,
            refused: wire.files.refused.into_iter().collect(),
            cursor: cursor.map(|(epoch, cursor)| IndexCursor {
                epoch: epoch.into(),
                cursor,
                floor: wire.tombstone_floor.unwrap_or(0),
            }),
            history: wire.index_history.and_then(|text| text.parse().ok()),
            set_back: false,
        },
        is_delta: wire.delta,
        delta_base: wire.delta_base,
    })
}

/// Reads the pieces of a body.
struct PieceReader {
    receiver: mpsc::Receiver<Result<Bytes, RemoteError>>,
    piece: Bytes,
}

impl Read for PieceReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(e)) => return Err(io::Error::other(e)),
                None => return Ok(0),
            }
        }
        let n = self.piece.len().min(buf.len());
        self.piece.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// The fields of [`crate::protocol::WireIndex`] that the agent needs. Unknown fields are ignored, because other proxies and
/// later versions have more.
#[derive(Deserialize)]
struct IndexJson {
    files: FilesJson,
    index_epoch: Option<String>,
    index_cursor: Option<u64>,
    tombstone_floor: Option<u64>,
    index_history: Option<String>,
    #[serde(default)]
    delta: bool,
    delta_base: Option<String>,
}

/// [`crate::protocol::WireEntry`] without the time, which must not affect any decision (invariant 13).
#[derive(Deserialize)]
struct EntryJson {
    md5: Md5,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    is_deleted: bool,
    #[serde(default)]
    version: Option<u64>,
}

struct FilesJson {
    accepted: BTreeMap<RelPath, IndexEntry>,
    refused: BTreeMap<String, PathError>,
}

impl<'de> Deserialize<'de> for FilesJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FilesVisitor)
    }
}

struct FilesVisitor;

impl<'de> Visitor<'de> for FilesVisitor {
    type Value = FilesJson;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of paths to files")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FilesJson, A::Error> {
        let mut files = FilesJson { accepted: BTreeMap::new(), refused: BTreeMap::new() };
        while let Some((name, wire)) = map.next_entry::<String, EntryJson>()? {
            let twice = || A::Error::custom(format_args!("{name:?} comes twice"));
            match accept(&name) {
                Ok(path) => {
                    let EntryJson { md5, size, is_deleted, version } = wire;
                    let entry = IndexEntry { md5, size, is_deleted, version: version.unwrap_or(0), cursor: 0 };
                    match files.accepted.entry(path) {
                        Entry::Vacant(place) => place.insert(entry),
                        Entry::Occupied(_) => return Err(twice()),
                    };
                }
                Err(why) => match files.refused.entry(name.clone()) {
                    Entry::Vacant(place) => {
                        place.insert(why);
                    }
                    Entry::Occupied(_) => return Err(twice()),
                },
            }
        }
        Ok(files)
    }
}

fn accept(name: &str) -> Result<RelPath, PathError> {
    let path = RelPath::parse(name)?;
    if path.is_nfc() { Ok(path) } else { Err(PathError::NotNfc) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = r#"{"md5":"5d41402abc4b2a76b9719d911017c592","last_modified":"2024-01-15T10:30:00.123Z","size":5}"#;

    fn index(files: &str) -> String {
        format!(r#"{{"files":{{{files}}},"index_last_modified":"x"}}"#)
    }

    fn error(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn unsyncable_names_are_refused() {
        let text = index(&format!(
            r#""a.md":{A},"../up":{A},"/etc/passwd":{A},"caf\u0065\u0301":{A},"x\u0000":{A},".memsync/id":{A},"":{A}"#
        ));
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.index.files.keys().map(RelPath::as_str).collect::<Vec<_>>(), ["a.md"]);
        let refused: Vec<_> = parsed.index.refused.iter().map(|(name, why)| (name.as_str(), *why)).collect();
        assert_eq!(
            refused,
            [
                ("", PathError::Empty),
                ("../up", PathError::Dot),
                (".memsync/id", PathError::Private),
                ("/etc/passwd", PathError::EmptySegment),
                ("cafe\u{301}", PathError::NotNfc),
                ("x\0", PathError::Control),
            ]
        );
        assert_eq!(parsed.index.cursor, None);
    }

    #[test]
    fn damaged_index_is_refused() {
        assert!(error(&index(&format!(r#""a":{A},"\u0061":{A}"#))).contains("comes twice"));
        assert!(error(&index(&format!(r#""..":{A},"..":{A}"#))).contains("comes twice"));
        assert!(error(&index(r#""a":{"md5":"none"}"#)).contains("not an MD5"));
        assert!(error(&index(r#""..":{"md5":"none"}"#)).contains("not an MD5"));
        assert!(error(&index(r#""a":{"size":1}"#)).contains("md5"));
        assert!(error(&index(r#""a":{"md5":"5d41402abc4b2a76b9719d911017c592","size":-1}"#)).contains("-1"));
        assert!(error("{}").contains("files"));
        assert!(error("[]").contains("expected"));
        assert!(error(&format!("{}x", index(""))).contains("trailing"));
        let whole = index(&format!(r#""a":{A},"b":{A}"#));
        for cut in 0..whole.len() {
            assert!(parse(&whole.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
        assert!(parse(whole.as_bytes()).is_ok());
        assert!(parse("[".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn extensions_are_parsed() {
        let text = format!(
            r#"{{"delta":true,"delta_base":"x-1","index_cursor":7,"tombstone_floor":3,"index_epoch":"e","new":[{{}}],
                "files":{{"a":{{"md5":"5d41402abc4b2a76b9719d911017c592","is_deleted":true,"version":9,"who":null}},"b":{A}}}}}"#
        );
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.index.cursor, Some(IndexCursor { epoch: "e".into(), cursor: 7, floor: 3 }));
        assert!(parsed.is_delta && parsed.delta_base.as_deref() == Some("x-1"));
        let a = parsed.index.files["a"];
        assert_eq!((a.is_deleted, a.version, a.size), (true, 9, 0));
        assert_eq!((parsed.index.files["b"].size, parsed.index.files["b"].is_deleted), (5, false));
    }
}
