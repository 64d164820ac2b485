//! Records of JSONL: their identities and times.

use super::json::JsonNode;
use super::stamp::{self, WrittenTime};

/// The keys of the time of a record, the best one first.
const TIME_KEYS: &[&str] = &["timestamp", "time", "ts", "created_at", "date"];

/// The identity of a record, as it is written.
pub(super) fn record_id(record: &JsonNode<'_>) -> Option<String> {
    record.member("id").filter(|id| id.scalar().is_some()).map(|id| id.text.to_owned())
}

/// The time of a line: of a JSON record by its key, else at the head of the line.
pub(super) fn line_time(line: &str) -> Option<WrittenTime> {
    if !line.starts_with('{') {
        return stamp::leading_time(line);
    }
    let record = JsonNode::parse(line).ok()?;
    let value = TIME_KEYS.iter().find_map(|key| record.member(key))?;
    stamp::leading_time(value.scalar()?.1)
}
