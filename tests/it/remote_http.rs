//! The HTTP client with every kind of answer, good or bad.

mod batch;
mod deltas;
mod encoding;
mod namespaced;
mod requests;
mod server;
mod tls;
mod trouble;
mod versions;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use memsync::digest::Md5;
use memsync::path::RelPath;
use memsync::remote::http::{HttpOptions, HttpRemote};
use memsync::remote::{BodySource, GetReply, PromisedDigest, RemoteBlob, RemoteError, UploadBody};
use secrecy::SecretString;

/// A secret that appears in no message and no Debug text.
pub(crate) const TOKEN: &str = "s3cret-Token_1.x";

pub(crate) fn options(origin: &str) -> HttpOptions {
    HttpOptions {
        origin: origin.to_owned(),
        token: SecretString::from(TOKEN),
        namespace: String::new(),
        device: "laptop".to_owned(),
        ca_pem: None,
        pin: None,
        allow_http: false,
        timeout: server::DEADLINE,
        max_file_size: 4 << 20,
        concurrency: 4,
    }
}

pub(crate) fn remote(server: &server::Server) -> HttpRemote {
    HttpRemote::new(options(&server.origin())).unwrap()
}

/// Options with a short timeout.
pub(crate) fn impatient(server: &server::Server) -> HttpRemote {
    HttpRemote::new(HttpOptions { timeout: Duration::from_millis(300), ..options(&server.origin()) }).unwrap()
}

pub(crate) fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

/// A source of these pieces; `fail`: an error after them.
pub(crate) struct Pieces {
    pub pieces: std::vec::IntoIter<Bytes>,
    pub fail: bool,
}

impl BodySource for Pieces {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.pieces.next() {
            None if self.fail => Err(io::Error::other("it changed while it was read")),
            piece => Ok(piece),
        }
    }
}

pub(crate) fn outgoing(content: &[u8]) -> UploadBody {
    let pieces: Vec<_> = content.chunks(64 * 1024).map(Bytes::copy_from_slice).collect();
    let source = Box::new(Pieces { pieces: pieces.into_iter(), fail: false });
    UploadBody { md5: PromisedDigest::Known(Md5::of(content)), size: content.len() as u64, source }
}

/// As [`outgoing`], but the source fails after `good` bytes.
pub(crate) fn failing(content: &[u8], good: usize) -> UploadBody {
    let pieces: Vec<_> = content[..good].chunks(64 * 1024).map(Bytes::copy_from_slice).collect();
    UploadBody { source: Box::new(Pieces { pieces: pieces.into_iter(), fail: true }), ..outgoing(content) }
}

pub(crate) fn found(got: GetReply) -> RemoteBlob {
    match got {
        GetReply::Found(blob) => blob,
        GetReply::Absent { .. } => panic!("absent"),
    }
}

pub(crate) async fn read(blob: RemoteBlob) -> Result<Vec<u8>, RemoteError> {
    let pieces: Vec<Bytes> = blob.body.try_collect().await?;
    Ok(pieces.concat())
}

pub(crate) fn etag(content: &[u8]) -> String {
    format!("etag: \"{}\"", Md5::of(content))
}

/// Bytes that differ from place to place.
pub(crate) fn noise(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 251) as u8).collect()
}
