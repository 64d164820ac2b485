//! Many writes handed in together: digested off the async threads, then one message to the writer, which commits them
//! in one group.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::super::{BatchWrite, BlobMeta, BodyWriter, DeleteOutcome, PutOutcome, Store, StoreError, WriteOutcome};
use super::SqliteStore;
use super::spool::{INLINE_MAX, Received, blocking};
use super::writer::{Job, Write};
use crate::path::RelPath;

/// A write of a batch that was handed in.
enum Waiting {
    Put(oneshot::Receiver<Result<PutOutcome, StoreError>>),
    Deleted(oneshot::Receiver<Result<DeleteOutcome, StoreError>>),
    Failed(StoreError),
}

/// [`Store::write_many`].
pub async fn write(
    store: &SqliteStore,
    ns: &str,
    writes: Vec<(RelPath, BatchWrite)>,
    meta: &BlobMeta,
) -> Vec<Result<WriteOutcome, StoreError>> {
    let contents = writes.iter().filter_map(|(_, operation)| match operation {
        BatchWrite::Put { content, .. } => Some(content.clone()),
        BatchWrite::Delete { .. } => None,
    });
    let mut received = received(store, contents.collect()).await.into_iter();
    let (mut jobs, mut answers) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
    for (path, operation) in writes {
        let (write, answer) = match operation {
            BatchWrite::Put { expect, .. } => match received.next().unwrap_or(Err(StoreError::Closed)) {
                Ok(body) => {
                    let (reply, answer) = oneshot::channel();
                    (Write::Put { expect, meta: meta.clone(), body, reply }, Waiting::Put(answer))
                }
                Err(e) => {
                    answers.push(Waiting::Failed(e));
                    continue;
                }
            },
            BatchWrite::Delete { expect } => {
                let (reply, answer) = oneshot::channel();
                (Write::Delete { expect, meta: meta.clone(), reply }, Waiting::Deleted(answer))
            }
        };
        jobs.push(Job { ns: ns.to_owned(), path, write });
        answers.push(answer);
    }
    if !jobs.is_empty()
        && let Err(e) = store.hand_in(jobs).await
    {
        return answers.iter().map(|_| Err(e.clone())).collect();
    }
    let mut written = Vec::with_capacity(answers.len());
    for answer in answers {
        written.push(match answer {
            Waiting::Put(answer) => answer.await.unwrap_or(Err(StoreError::Closed)).map(WriteOutcome::Put),
            Waiting::Deleted(answer) => answer.await.unwrap_or(Err(StoreError::Closed)).map(WriteOutcome::Deleted),
            Waiting::Failed(e) => Err(e),
        });
    }
    written
}

/// Contents of a batch as the writer takes them, in their order.
async fn received(store: &SqliteStore, contents: Vec<Bytes>) -> Vec<Result<Received, StoreError>> {
    if contents.is_empty() {
        return Vec::new();
    }
    let digested = blocking(move || {
        let small = |content: &Bytes| content.len() <= INLINE_MAX;
        let digest = |content: Bytes| if small(&content) { Ok(Received::inline(content)) } else { Err(content) };
        contents.into_iter().map(digest).collect::<Vec<_>>()
    });
    let Ok(digested) = digested.await else { return Vec::new() };
    let mut received = Vec::with_capacity(digested.len());
    for content in digested {
        received.push(match content {
            Ok(inline) => Ok(inline),
            Err(large) => {
                let mut body = store.new_body();
                match body.push(large).await {
                    Ok(()) => body.finish().await,
                    Err(e) => Err(e),
                }
            }
        });
    }
    received
}
