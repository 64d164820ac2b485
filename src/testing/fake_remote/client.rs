//! [`FakeRemote`]: one client of a [`FakeServer`], with the losses of its network.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use futures::StreamExt;

use super::server::{FakeServer, lock};
use super::store::{FakeStore, RequestFate};
use super::types::{FakeCall, FakeRequest};
use crate::digest::{Md5, Md5Hasher};
use crate::path::RelPath;
use crate::protocol::{HistoryPoint, IndexCursor, IndexEntry, Precondition};
use crate::remote::{
    BatchReply, BatchRequest, DeleteReply, FetchedIndex, GetReply, IndexUpdate, PutReply, Remote, RemoteBlob,
    RemoteError, RemoteVersion, UploadBody,
};

/// One client of a [`FakeServer`]; make it with [`FakeServer::client`].
pub struct FakeRemote {
    server: FakeServer,
    client: usize,
    /// The cursor of the last index that it received.
    served: Mutex<Option<IndexCursor>>,
    /// The last plain index that it received.
    listed: Mutex<Option<Listed>>,
    /// The history point of the last answered write.
    written: Mutex<Option<HistoryPoint>>,
}

type Listed = BTreeMap<RelPath, IndexEntry>;

fn unreachable(why: &str) -> RemoteError {
    RemoteError::Unreachable { url: "fake:".to_owned(), why: why.to_owned() }
}

fn unavailable() -> RemoteError {
    RemoteError::Server { url: "fake:".to_owned(), status: 503, detail: "overloaded".to_owned() }
}

fn forbidden() -> RemoteError {
    RemoteError::Auth { url: "fake:".to_owned(), status: 403 }
}

fn path_of(request: &FakeRequest) -> Option<&RelPath> {
    match request {
        FakeRequest::Index => None,
        FakeRequest::Get(path)
        | FakeRequest::Versions(path)
        | FakeRequest::Put { path, .. }
        | FakeRequest::Delete { path, .. }
        | FakeRequest::GetVersion { path, .. } => Some(path),
    }
}

fn is_write(request: &FakeRequest) -> bool {
    matches!(request, FakeRequest::Put { .. } | FakeRequest::Delete { .. })
}

/// A reply, and whether it arrives.
type Carried<T> = Result<T, RemoteError>;

impl FakeServer {
    /// A new client.
    pub fn client(&self) -> FakeRemote {
        let mut store = self.store();
        let client = store.clients;
        store.clients += 1;
        FakeRemote::new(self.clone(), client)
    }
}

impl FakeRemote {
    pub(super) fn new(server: FakeServer, client: usize) -> Self {
        Self { server, client, served: Mutex::default(), listed: Mutex::default(), written: Mutex::default() }
    }

    /// The number by which [`FakeCall`] names this client.
    pub fn number(&self) -> usize {
        self.client
    }

    /// Sends a request to the server and returns the reply, unless a fault prevents it. `act` returns whether it wrote.
    /// `Err` with a value: the request was executed, but the reply is lost.
    async fn carry<T>(
        &self,
        request: FakeRequest,
        act: impl FnOnce(&mut FakeStore) -> (T, bool),
    ) -> Result<T, Lost<T>> {
        self.server.pause().await;
        let outcome = {
            let mut store = self.server.store();
            let silent = path_of(&request).is_some_and(store.silent);
            match if silent { RequestFate::NeverArrives } else { store.fate() } {
                RequestFate::NeverArrives => Err(Lost { error: unreachable("the request was lost"), value: None }),
                RequestFate::Refused => Err(Lost { error: unavailable(), value: None }),
                RequestFate::Arrives { .. } if store.is_read_only && is_write(&request) => {
                    Err(Lost { error: forbidden(), value: None })
                }
                RequestFate::Arrives { loses_reply } => {
                    let (value, wrote) = act(&mut store);
                    store.calls.push(FakeCall { client: self.client, request, wrote });
                    let lost_reply = store.config.faults.lost_reply;
                    if loses_reply || store.chance(lost_reply) {
                        Err(Lost { error: unreachable("the reply was lost"), value: Some(value) })
                    } else {
                        self.note_written(&store, wrote);
                        Ok(value)
                    }
                }
            }
        };
        self.server.pause().await;
        outcome
    }

    /// Stores the history point in the answer to a write.
    fn note_written(&self, store: &FakeStore, wrote: bool) {
        if wrote && store.config.strong {
            *lock(&self.written) = store.point();
        }
    }

    /// A request of a batch in wire form, with the version that it expects. `None`: its source failed.
    fn read(&self, path: RelPath, ask: BatchRequest) -> Option<(FakeRequest, u64, Bytes)> {
        Some(match ask {
            BatchRequest::Get => (FakeRequest::Get(path), 0, Bytes::new()),
            BatchRequest::Delete { md5, version } => (FakeRequest::Delete { path, md5 }, version, Bytes::new()),
            BatchRequest::Put { precondition, version, body } => {
                let (md5, content) = read_whole(body).ok()?;
                (FakeRequest::Put { path, precondition, version, md5 }, version, content)
            }
        })
    }

    /// Executes one request of a batch. Some are refused at random.
    fn carry_out(&self, request: FakeRequest, version: u64, content: Bytes) -> Option<BatchReply> {
        let mut store = self.server.store();
        let unavailable = store.config.faults.unavailable;
        if store.chance(unavailable)
            || content.len() as u64 > store.largest
            || store.is_read_only && is_write(&request)
            || path_of(&request).is_some_and(store.silent)
        {
            return None;
        }
        let (answer, wrote) = match &request {
            FakeRequest::Index | FakeRequest::Versions(_) | FakeRequest::GetVersion { .. } => return None,
            FakeRequest::Get(path) => (Ok(store.get(path)), false),
            FakeRequest::Put { path, precondition, md5, .. } => {
                let put = store.put(path, *precondition, version, *md5, content);
                (Err(BatchReply::Put(put)), matches!(put, PutReply::Stored { .. }))
            }
            FakeRequest::Delete { path, md5 } => {
                let deleted = store.delete(path, *md5, version);
                (Err(BatchReply::Deleted(deleted)), deleted == DeleteReply::Done)
            }
        };
        store.calls.push(FakeCall { client: self.client, request, wrote });
        drop(store);
        Some(match answer {
            Ok(Ok((md5, content, version))) => BatchReply::Got(GetReply::Found(self.blob(md5, content, version, true))),
            Ok(Err(tombstone)) => BatchReply::Got(GetReply::Absent { tombstone }),
            Err(answer) => answer,
        })
    }

    /// A plain index for a client that holds an earlier one.
    fn part(&self, index: FetchedIndex) -> IndexUpdate {
        let Some(last) = lock(&self.listed).replace(index.files.clone()) else { return IndexUpdate::Whole(index) };
        if last.keys().any(|path| !index.files.contains_key(path)) {
            return IndexUpdate::Whole(index);
        }
        let changed = index.files.into_iter().filter(|(path, entry)| last.get(path) != Some(entry));
        IndexUpdate::Delta(FetchedIndex { files: changed.collect(), ..FetchedIndex::default() })
    }

    /// A body in one to three chunks; `whole`: whether its end arrives.
    fn blob(&self, md5: Md5, content: Bytes, version: u64, whole: bool) -> RemoteBlob {
        let size = Some(content.len() as u64);
        let mut cuts = {
            let rng = &mut self.server.store().rng;
            let mut cuts = [0, 0].map(|_: usize| rng.usize(0..=content.len()));
            cuts.sort_unstable();
            cuts
        };
        if content.len() < 2 {
            cuts = [0, 0];
        }
        let pieces = [content.slice(..cuts[0]), content.slice(cuts[0]..cuts[1]), content.slice(cuts[1]..)];
        let mut chunks: Vec<Carried<Bytes>> = pieces.into_iter().filter(|p| !p.is_empty()).map(Ok).collect();
        if !whole {
            chunks.pop();
            chunks.push(Err(unreachable("the body was cut off")));
        }
        let server = self.server.clone();
        let body = futures::stream::iter(chunks).then(move |chunk| {
            let server = server.clone();
            async move {
                server.pause().await;
                chunk
            }
        });
        RemoteBlob { md5, size, version, device: None, body: body.boxed() }
    }
}

/// A request without an answer.
struct Lost<T> {
    error: RemoteError,
    /// The lost answer, if the request was executed.
    value: Option<T>,
}

impl<T> From<Lost<T>> for RemoteError {
    fn from(lost: Lost<T>) -> Self {
        lost.error
    }
}

/// Reads a body to its end.
///
/// # Panics
/// If the body differs from the promised one: the engine broke invariant 10.
fn read_whole(mut body: UploadBody) -> Result<(Md5, Bytes), RemoteError> {
    let mut hasher = Md5Hasher::new();
    let mut pieces = Vec::new();
    while let Some(piece) = body.source.next().map_err(|e| RemoteError::Source(e.to_string()))? {
        hasher.update(&piece);
        pieces.push(piece);
    }
    let content = match <[Bytes; 1]>::try_from(pieces) {
        Ok([one]) => one,
        Err(pieces) => pieces.concat().into(),
    };
    let md5 = hasher.finish();
    assert_eq!(Some(md5), body.md5.get(), "a torn read was uploaded (invariant 10): {content:?}");
    assert_eq!(content.len() as u64, body.size, "an upload was not as long as promised: {content:?}");
    Ok((md5, content))
}

impl Remote for FakeRemote {
    fn written_at(&self) -> Option<HistoryPoint> {
        lock(&self.written).clone()
    }

    fn forget_index(&self) {
        *lock(&self.served) = None;
        *lock(&self.listed) = None;
    }

    async fn index(
        &self,
        since: Option<&IndexCursor>,
        known: Option<&HistoryPoint>,
    ) -> Result<IndexUpdate, RemoteError> {
        let last = lock(&self.served).clone();
        let answer = self
            .carry(FakeRequest::Index, |store| {
                let answer = if store.config.strong {
                    store.strong_index(since, known, last.as_ref())
                } else {
                    IndexUpdate::Whole(store.plain_index())
                };
                (answer, false)
            })
            .await?;
        if let IndexUpdate::Whole(index) | IndexUpdate::Delta(index) = &answer {
            lock(&self.served).clone_from(&index.cursor);
        }
        let etag_delta = self.server.store().config.etag_delta;
        Ok(match answer {
            IndexUpdate::Whole(index) if etag_delta && index.cursor.is_none() => self.part(index),
            answer => answer,
        })
    }

    async fn get(&self, path: &RelPath) -> Result<GetReply, RemoteError> {
        let request = FakeRequest::Get(path.clone());
        match self.carry(request, |store| (store.get(path), false)).await {
            Ok(Ok((md5, content, version))) => Ok(GetReply::Found(self.blob(md5, content, version, true))),
            Ok(Err(tombstone)) => Ok(GetReply::Absent { tombstone }),
            Err(Lost { value: Some(Ok((md5, content, version))), .. }) if self.server.store().rng.bool() => {
                Ok(GetReply::Found(self.blob(md5, content, version, false)))
            }
            Err(lost) => Err(lost.error),
        }
    }

    async fn put(
        &self,
        path: &RelPath,
        precondition: Precondition,
        version: u64,
        body: UploadBody,
    ) -> Result<PutReply, RemoteError> {
        let (md5, content) = read_whole(body)?;
        if content.len() as u64 > self.server.store().largest {
            return Err(RemoteError::TooLarge { url: "fake:".to_owned(), why: "there is a limit".to_owned() });
        }
        let request = FakeRequest::Put { path: path.clone(), precondition, version, md5 };
        let done = self.carry(request, |store| {
            let put = store.put(path, precondition, version, md5, content);
            (put, matches!(put, PutReply::Stored { .. }))
        });
        Ok(done.await?)
    }

    async fn delete(&self, path: &RelPath, md5: Md5, version: u64) -> Result<DeleteReply, RemoteError> {
        let request = FakeRequest::Delete { path: path.clone(), md5 };
        let done = self.carry(request, |store| {
            let deleted = store.delete(path, md5, version);
            (deleted, deleted == DeleteReply::Done)
        });
        Ok(done.await?)
    }

    async fn delete_again(&self, path: &RelPath, tombstone: Md5) -> Result<DeleteReply, RemoteError> {
        let request = FakeRequest::Delete { path: path.clone(), md5: tombstone };
        let done = self.carry(request, |store| {
            let deleted = store.delete_again(path, tombstone);
            (deleted, deleted == DeleteReply::Done)
        });
        Ok(done.await?)
    }

    async fn versions(&self, path: &RelPath) -> Result<Option<Vec<RemoteVersion>>, RemoteError> {
        let request = FakeRequest::Versions(path.clone());
        Ok(self.carry(request, |store| (store.versions(path), false)).await?)
    }

    fn keeps_versions(&self) -> Option<bool> {
        Some(self.server.store().config.keeps_versions)
    }

    async fn get_version(&self, path: &RelPath, number: u64) -> Result<GetReply, RemoteError> {
        let request = FakeRequest::GetVersion { path: path.clone(), number };
        Ok(match self.carry(request, |store| (store.version(path, number), false)).await? {
            Some(content) => GetReply::Found(self.blob(Md5::of(&content), content, 0, true)),
            None => GetReply::Absent { tombstone: None },
        })
    }

    async fn batch(
        &self,
        requests: Vec<(RelPath, BatchRequest)>,
    ) -> Result<Option<Vec<Option<BatchReply>>>, RemoteError> {
        if !self.server.store().config.batch {
            return Ok(None);
        }
        let mut ready = Vec::new();
        for (path, ask) in requests {
            self.server.pause().await;
            ready.push(self.read(path, ask));
        }
        self.server.pause().await;
        // The number of executed requests before the reply is lost.
        let cut = {
            let mut store = self.server.store();
            match store.fate() {
                RequestFate::NeverArrives => return Err(unreachable("the batch was lost")),
                RequestFate::Refused => return Err(unavailable()),
                RequestFate::Arrives { loses_reply } => {
                    let lost_reply = store.config.faults.lost_reply;
                    let lost = loses_reply || store.chance(lost_reply);
                    lost.then(|| store.rng.usize(0..=ready.len()))
                }
            }
        };
        let mut answers = Vec::new();
        for ready in ready.into_iter().take(cut.unwrap_or(usize::MAX)) {
            answers.push(ready.and_then(|(request, version, content)| self.carry_out(request, version, content)));
            // A batch is not a transaction: other clients may act between its requests.
            self.server.pause().await;
        }
        match cut {
            Some(_) => Err(unreachable("the reply to a batch was lost")),
            None => {
                self.note_written(&self.server.store(), true);
                Ok(Some(answers))
            }
        }
    }
}
