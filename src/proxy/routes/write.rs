//! Writes of either dialect, alone or in a batch: [`ParsedWrite`], and the result for the client.

use std::str::FromStr;

use bytes::Bytes;
use http::header::{HeaderValue, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};

use crate::digest::Md5;
use crate::path::RelPath;
use crate::protocol::batch::RequestHead;
use crate::protocol::{self, CONTENT_MD5, IF_MATCH_VERSION, X_MEMSYNC_MD5};
use crate::proxy::error::{ApiError, SentPrecondition};
use crate::proxy::routes::names::stored_path;
use crate::store::{BatchWrite, DeleteOutcome, IndexEntry, PutOutcome, WriteCondition, WriteOutcome};

/// A put or a deletion, without its content.
pub(crate) struct ParsedWrite {
    pub path: RelPath,
    pub action: WriteAction,
    /// The MD5 that the content of a put must have, unpacked, if the client names it.
    pub promised: Option<Md5>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum WriteAction {
    Put(WriteCondition),
    /// Without a precondition it deletes any content.
    Delete(Option<WriteCondition>),
}

impl ParsedWrite {
    /// A PUT or a DELETE. `is_flat`: preconditions are contents; in a namespace they are versions.
    pub(crate) fn from_request(path: RelPath, request: &Parts, is_flat: bool) -> Result<Self, ApiError> {
        let headers = &request.headers;
        let (action, promised) = if request.method == Method::DELETE {
            (WriteAction::Delete(delete_precondition(headers, is_flat)?), None)
        } else {
            (WriteAction::Put(put_precondition(headers, is_flat)?), promised_md5(headers, is_flat)?)
        };
        Ok(Self { path, action, promised })
    }

    /// A `put` or `delete` of a batch.
    pub(crate) fn from_frame(head: &RequestHead, content: &Bytes, is_flat: bool) -> Result<Self, ApiError> {
        let path = stored_path(&head.path)?;
        let action = match head.op.as_str() {
            "put" if is_flat => {
                let text = head.precondition.as_deref().ok_or(ApiError::PreconditionRequired)?;
                let precondition: protocol::Precondition =
                    text.parse().map_err(|_| ApiError::InvalidPrecondition("precondition, where it is not `new`,"))?;
                WriteAction::Put(expected(precondition))
            }
            "put" => WriteAction::Put(expected_version(head.version.ok_or(ApiError::VersionRequired)?)),
            _ if !content.is_empty() => return Err(ApiError::InvalidBatch("only a put has content".to_owned())),
            "delete" if is_flat => {
                let md5 = head.md5.as_deref().map(str::parse).transpose();
                let md5: Option<Md5> = md5.map_err(|_| ApiError::InvalidPrecondition("md5"))?;
                WriteAction::Delete(md5.map(WriteCondition::Md5))
            }
            "delete" => WriteAction::Delete(head.version.map(WriteCondition::Version)),
            _ => return Err(ApiError::InvalidBatch("op must be get, put or delete".to_owned())),
        };
        Ok(Self { path, action, promised: None })
    }

    pub(crate) fn into_operation(self, content: Bytes) -> (RelPath, BatchWrite) {
        let operation = match self.action {
            WriteAction::Put(expect) => BatchWrite::Put { expect, content },
            WriteAction::Delete(expect) => BatchWrite::Delete { expect },
        };
        (self.path, operation)
    }

    /// The precondition as the client sent it.
    pub(crate) fn sent_precondition(&self, is_flat: bool) -> SentPrecondition {
        let precondition = match self.action {
            WriteAction::Put(precondition) => Some(precondition),
            WriteAction::Delete(precondition) => precondition,
        };
        match precondition {
            Some(WriteCondition::Md5(md5)) => SentPrecondition::Md5(md5.to_string()),
            Some(WriteCondition::Version(version)) => SentPrecondition::Version(version),
            Some(WriteCondition::Absent) if is_flat => SentPrecondition::Md5(protocol::Precondition::New.to_string()),
            None if is_flat => SentPrecondition::Md5(String::new()),
            Some(WriteCondition::Absent) | None => SentPrecondition::Version(0),
        }
    }
}

/// The status and the new entry of a write that happened. The entry of a deletion is the tombstone.
pub(crate) fn write_result(
    outcome: WriteOutcome,
    sent: SentPrecondition,
) -> Result<(StatusCode, IndexEntry), ApiError> {
    match outcome {
        WriteOutcome::Put(PutOutcome::Created(entry)) => Ok((StatusCode::CREATED, entry)),
        WriteOutcome::Put(PutOutcome::Updated(entry)) => Ok((StatusCode::OK, entry)),
        WriteOutcome::Put(PutOutcome::Mismatch(current)) => Err(ApiError::PreconditionFailed { sent, current }),
        WriteOutcome::Deleted(DeleteOutcome::Done(entry)) => Ok((StatusCode::NO_CONTENT, entry)),
        WriteOutcome::Deleted(DeleteOutcome::Tombstone(entry)) => Err(ApiError::Tombstone(entry)),
        WriteOutcome::Deleted(DeleteOutcome::Absent) => Err(ApiError::NotFound),
        WriteOutcome::Deleted(DeleteOutcome::Mismatch(current)) => {
            Err(ApiError::PreconditionFailed { sent, current: Some(current) })
        }
    }
}

/// The precondition of a PUT. Flat: in `Content-MD5`, or without that in `If-Match` or `If-None-Match`. In a namespace:
/// in `If-Match-Version`.
fn put_precondition(headers: &HeaderMap, is_flat: bool) -> Result<WriteCondition, ApiError> {
    if !is_flat {
        return version(headers)?.map(expected_version).ok_or(ApiError::VersionRequired);
    }
    if let Some(value) = headers.get(CONTENT_MD5) {
        let precondition = parsed(value).map(expected);
        return precondition.ok_or(ApiError::InvalidPrecondition("Content-MD5, where it is not `new`,"));
    }
    match (headers.get(IF_MATCH), headers.get(IF_NONE_MATCH)) {
        (None, None) => Err(ApiError::PreconditionRequired),
        (Some(value), None) => if_match(value).map(WriteCondition::Md5),
        (None, Some(value)) if value.as_bytes().trim_ascii() == b"*" => Ok(WriteCondition::Absent),
        _ => Err(ApiError::ConflictingConditions),
    }
}

/// The precondition of a DELETE, in `If-Match` or, in a namespace, in `If-Match-Version`.
fn delete_precondition(headers: &HeaderMap, is_flat: bool) -> Result<Option<WriteCondition>, ApiError> {
    if is_flat {
        Ok(headers.get(IF_MATCH).map(if_match).transpose()?.map(WriteCondition::Md5))
    } else {
        Ok(version(headers)?.map(WriteCondition::Version))
    }
}

/// The MD5 that the unpacked body of a PUT must have, in `X-Memsync-Md5` or, in a namespace, in `Content-MD5`.
fn promised_md5(headers: &HeaderMap, is_flat: bool) -> Result<Option<Md5>, ApiError> {
    let name = if is_flat { X_MEMSYNC_MD5 } else { CONTENT_MD5 };
    let Some(value) = headers.get(name) else { return Ok(None) };
    parsed(value).map(Some).ok_or(if is_flat {
        ApiError::InvalidHeader("X-Memsync-Md5 is not an MD5")
    } else {
        ApiError::InvalidDigest
    })
}

fn expected(precondition: protocol::Precondition) -> WriteCondition {
    match precondition {
        protocol::Precondition::New => WriteCondition::Absent,
        protocol::Precondition::Holds(md5) => WriteCondition::Md5(md5),
    }
}

fn expected_version(version: u64) -> WriteCondition {
    if version == 0 { WriteCondition::Absent } else { WriteCondition::Version(version) }
}

fn parsed<T: FromStr>(value: &HeaderValue) -> Option<T> {
    header_text(value)?.parse().ok()
}

/// An MD5, bare or quoted. A weak tag (`W/"…"`) says nothing about bytes, so it is refused.
fn if_match(value: &HeaderValue) -> Result<Md5, ApiError> {
    let bare = |text| str::strip_prefix(text, '"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let md5 = header_text(value).and_then(|text| bare(text).parse().ok());
    md5.ok_or(ApiError::InvalidPrecondition("If-Match"))
}

/// `If-Match-Version`: digits and nothing else.
fn version(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(IF_MATCH_VERSION) else { return Ok(None) };
    let digits = header_text(value).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).map(Some).ok_or(ApiError::InvalidVersion)
}

pub(crate) fn header_text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn if_match_version(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(IF_MATCH_VERSION.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn version_header_takes_digits_only() {
        for (sent, number) in [("0", Some(0)), ("1700000000000", Some(1_700_000_000_000)), (" 7 ", Some(7))] {
            assert_eq!(version(&if_match_version(sent)).unwrap(), number);
        }
        for bad in ["", "-1", "+1", "1.5", "x", "\"1\"", "99999999999999999999", "*"] {
            assert!(matches!(version(&if_match_version(bad)), Err(ApiError::InvalidVersion)), "{bad}");
        }
    }
}
