//! Tests the conditional writes of a store before it is used. Some stores ignore the conditions, and one of two writers would
//! overwrite the other unnoticed. Such a store is refused.

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::path::Path as Key;

use super::super::body::BodyContent;
use super::super::{StoreError, new_id};
use super::bucket::{Bucket, ConditionalPut, FetchOutcome, ObjectInfo, read_whole};
use super::object_metadata::ObjectMetadata;
use crate::digest::Md5;

/// Concurrent writers in the test.
const RACERS: usize = 8;
/// Attempts of a step without a clear answer.
const ATTEMPTS: usize = 4;

/// Tests the conditional writes on the scratch object `key`. A store that ignores a condition is
/// [`StoreError::S3Refused`]. True if the object can also be copied into the folder `beside`.
pub(super) async fn probe(bucket: &Bucket, key: &Key, beside: &Key) -> Result<bool, StoreError> {
    let tried = match check_conditions(bucket, key).await {
        Ok(()) => can_copy(bucket, key, &beside.clone().join("copy"), beside).await,
        Err(e) => Err(e),
    };
    if let Err(e) = bucket.remove(key).await {
        tracing::warn!("the probe's object {key} could not be removed: {e}");
    }
    tried
}

/// True if the object `key` can be copied to `to`, and the copy can be listed in its folder `of`, read and deleted.
async fn can_copy(bucket: &Bucket, key: &Key, to: &Key, of: &Key) -> Result<bool, StoreError> {
    let tried = async {
        if !bucket.copy(key, to).await? {
            return Ok(false);
        }
        let metadata = |object: Option<ObjectInfo>| object.map(|object| object.metadata);
        let (from, copied) = (metadata(bucket.head(key).await?), metadata(bucket.head(to).await?));
        let listed = bucket.list(Some(of)).try_collect::<Vec<_>>().await?;
        bucket.remove(to).await?;
        Ok(copied.is_some() && copied == from && listed.len() == 1)
    };
    match tried.await {
        // Other failures may be temporary. Without versions the user would notice only when one is missing.
        Err(StoreError::S3Denied(why)) => {
            tracing::debug!("the bucket allows no objects beside the prefix: {why}");
            Ok(false)
        }
        tried => tried,
    }
}

async fn check_conditions(bucket: &Bucket, key: &Key) -> Result<(), StoreError> {
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
        async move { bucket.put(key, Some(second), &probe_metadata("racer"), &content(&format!("racer {n}"))).await }
    }));
    let (mut winners, mut unsure) = (Vec::new(), 0);
    for (n, landing) in racers.await.into_iter().enumerate() {
        match landing? {
            ConditionalPut::Written(_) => winners.push(format!("racer {n}")),
            ConditionalPut::Lost => {}
            ConditionalPut::Unknown(e) => {
                unsure += 1;
                tracing::debug!("a racer of the probe got no answer: {e}");
            }
        }
    }
    let FetchOutcome::Found(object, body) = bucket.get(key, None).await? else {
        return Err(refused("an object that was just written is not there"));
    };
    let now = String::from_utf8_lossy(&read_whole(body, 1024).await?).into_owned();
    // A racer without an answer may have won.
    let decided = winners.len() == 1 || (winners.is_empty() && unsure > 0 && now.starts_with("racer "));
    if !decided || winners.iter().any(|winner| *winner != now) {
        return Err(refused(&format!("of {RACERS} writers that raced, {} won", winners.len())));
    }
    if object.metadata.md5 != Some(Md5::of(b"probe")) || object.metadata.version != Some(1) {
        return Err(refused("it does not keep user metadata"));
    }
    Ok(())
}

/// The new ETag; `None` if the condition does not hold.
async fn put(bucket: &Bucket, key: &Key, held: Option<&str>, text: &str) -> Result<Option<String>, StoreError> {
    let metadata = probe_metadata(&new_id());
    let mut failure = None;
    for _ in 0..ATTEMPTS {
        match bucket.put(key, held, &metadata, &content(text)).await? {
            ConditionalPut::Written(etag) => return Ok(Some(etag)),
            ConditionalPut::Lost => {}
            ConditionalPut::Unknown(e) => failure = Some(e),
        }
        // The write may have succeeded although the answer says otherwise, or was lost.
        match bucket.head(key).await? {
            Some(now) if now.metadata.write == metadata.write => return Ok(Some(now.etag)),
            _ if failure.is_none() => return Ok(None),
            _ => {}
        }
    }
    Err(failure.unwrap_or(StoreError::Closed))
}

fn probe_metadata(write: &str) -> ObjectMetadata {
    ObjectMetadata {
        md5: Some(Md5::of(b"probe")),
        version: Some(1),
        write: Some(write.to_owned()),
        ..ObjectMetadata::default()
    }
}

fn content(text: &str) -> BodyContent {
    BodyContent::Inline(Bytes::copy_from_slice(text.as_bytes()))
}

fn refused(why: &str) -> StoreError {
    StoreError::S3Refused(format!(
        "this S3 store cannot be used: {why}. With it two machines could overwrite each other unseen"
    ))
}
