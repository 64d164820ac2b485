//! Whether a store keeps what its conditional writes promise. Some ignore the conditions; with those, the last of
//! two writers would win silently, so they are refused before the first write.

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::path::Path as Key;

use super::super::StoreError;
use super::bucket::{Bucket, Fetched, Landing, Object, whole};
use super::layout::Described;
use super::ledger::write_id;
use super::spool::Content;
use crate::digest::Md5;

/// Writers in the race.
const RACERS: usize = 8;
/// Attempts at a step that got no clear answer.
const ATTEMPTS: usize = 4;

/// Tries the store on the scratch object `key`, and whether it can be copied to below `beside`, which is the answer.
///
/// # Errors
/// [`StoreError::S3Refused`] says what the store does wrong; [`StoreError::S3`] that it could not be asked.
pub async fn probe(bucket: &Bucket, key: &Key, beside: &Key) -> Result<bool, StoreError> {
    let tried = match conditions(bucket, key).await {
        Ok(()) => copies(bucket, key, &beside.clone().join("copy"), beside).await,
        Err(e) => Err(e),
    };
    if let Err(e) = bucket.remove(key).await {
        tracing::warn!("the probe's object {key} could not be removed: {e}");
    }
    tried
}

/// Whether the object `key` can be copied to `to`, and be found, read and removed in the folder `of` that.
async fn copies(bucket: &Bucket, key: &Key, to: &Key, of: &Key) -> Result<bool, StoreError> {
    let tried = async {
        if !bucket.copy(key, to).await? {
            return Ok(false);
        }
        let said = |object: Option<Object>| object.map(|object| object.described);
        let (from, copied) = (said(bucket.head(key).await?), said(bucket.head(to).await?));
        let listed = bucket.list(Some(of)).try_collect::<Vec<_>>().await?;
        bucket.remove(to).await?;
        Ok(copied.is_some() && copied == from && listed.len() == 1)
    };
    match tried.await {
        // Whatever else fails may work in a moment: that nothing is kept would be found out when it is missed.
        Err(StoreError::S3Denied(why)) => {
            tracing::debug!("nothing can be kept beside the prefix: {why}");
            Ok(false)
        }
        tried => tried,
    }
}

async fn conditions(bucket: &Bucket, key: &Key) -> Result<(), StoreError> {
    let first = match put(bucket, key, None, "first").await? {
        Some(etag) => etag,
        None => return Err(refused("it refuses to create an object that is not there (If-None-Match: *)")),
    };
    if put(bucket, key, None, "second").await?.is_some() {
        return Err(refused("it created the same object twice: it ignores `If-None-Match: *`"));
    }
    let second = match put(bucket, key, Some(&first), "third").await? {
        Some(etag) => etag,
        None => {
            return Err(refused(
                "it refuses to replace an object by its own ETag (If-Match); some stores want the ETag without \
                 quotes: try S3_ETAG_QUOTES=strip",
            ));
        }
    };
    if put(bucket, key, Some(&first), "fourth").await?.is_some() {
        return Err(refused("it replaced an object that had changed: it ignores `If-Match`"));
    }
    let racers = join_all((0..RACERS).map(|n| {
        let second = &second;
        async move { bucket.put(key, Some(second), &described("racer"), &content(&format!("racer {n}"))).await }
    }));
    let (mut winners, mut unsure) = (Vec::new(), 0);
    for (n, landing) in racers.await.into_iter().enumerate() {
        match landing? {
            Landing::Landed(_) => winners.push(format!("racer {n}")),
            Landing::Lost => {}
            Landing::Unsure(e) => {
                unsure += 1;
                tracing::debug!("a racer of the probe got no answer: {e}");
            }
        }
    }
    let Fetched::Found(object, body) = bucket.get(key, None).await? else {
        return Err(refused("an object that was just written is not there"));
    };
    let now = String::from_utf8_lossy(&whole(body, 1024).await?).into_owned();
    // A racer without an answer may be the one that won.
    let decided = winners.len() == 1 || (winners.is_empty() && unsure > 0 && now.starts_with("racer "));
    if !decided || winners.iter().any(|winner| *winner != now) {
        return Err(refused(&format!("of {RACERS} writers that raced, {} won", winners.len())));
    }
    if object.described.md5 != Some(Md5::of(b"probe")) || object.described.version != Some(1) {
        return Err(refused("it does not keep user metadata"));
    }
    Ok(())
}

/// The new ETag, `None` where the store held the condition against it.
async fn put(bucket: &Bucket, key: &Key, held: Option<&str>, text: &str) -> Result<Option<String>, StoreError> {
    let described = described(&write_id());
    let mut failure = None;
    for _ in 0..ATTEMPTS {
        match bucket.put(key, held, &described, &content(text)).await? {
            Landing::Landed(etag) => return Ok(Some(etag)),
            Landing::Lost => {}
            Landing::Unsure(e) => failure = Some(e),
        }
        // It may have landed although the answer says otherwise, or was lost.
        match bucket.head(key).await? {
            Some(now) if now.described.write == described.write => return Ok(Some(now.etag)),
            _ if failure.is_none() => return Ok(None),
            _ => {}
        }
    }
    Err(failure.unwrap_or(StoreError::Closed))
}

fn described(write: &str) -> Described {
    Described { md5: Some(Md5::of(b"probe")), version: Some(1), write: Some(write.to_owned()), ..Described::default() }
}

fn content(text: &str) -> Content {
    Content::Inline(Bytes::copy_from_slice(text.as_bytes()))
}

fn refused(why: &str) -> StoreError {
    StoreError::S3Refused(format!(
        "this S3 store cannot be used: {why}. With it two machines could overwrite each other unseen"
    ))
}
