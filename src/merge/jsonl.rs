//! JSONL and logs, by line. Lines of the base are never taken for duplicates, and removals hold.

use std::collections::{BTreeMap, HashMap};

use super::driver::MergeDriver;
use super::json::JsonNode;
use super::lines::merge_lines;
use super::note_line::is_blank;
use super::outcome::{ConflictReason, Merged};
use super::record;
use super::text_lines::{self, check_lines, lines_of};
use super::threeway::ThreeWay;
use super::units::LineStyle;

/// Merges files with one record in each line. The lines of a log need not be JSON.
pub(super) fn merge(texts: &ThreeWay<&str>, is_log: bool) -> Merged<String> {
    let lines = texts.map(|text| lines_of(text));
    let is_json = !is_log && are_records(&lines.base);
    let changed = changed_lines(&lines);
    if is_json {
        refuse_broken_records(&changed)?;
        refuse_records_of_both(&changed)?;
    }
    let merged = merge_lines(&lines, LineStyle::Log)?;
    check_lines(&lines, &merged)?;
    if merged.is_empty() { Err(ConflictReason::Emptied) } else { Ok(merged.join("\n")) }
}

/// Merges two versions without a base that have the same head, and then new records.
pub(super) fn merge_appends(one: &[&str], other: &[&str], is_log: bool) -> Merged<String> {
    let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let (head, one_tail, other_tail) = (&one[..same], &one[same..], &other[same..]);
    let has_common_line = text_lines::common_line(one_tail, other_tail).is_some();
    let is_readable = is_log || (are_records(one) && are_records(other));
    if head.iter().all(|line| is_blank(line)) || has_common_line || !is_readable {
        return Err(ConflictReason::NoBase);
    }
    let [base, local, remote] = [head, one, other].map(|lines| lines.join("\n"));
    merge(&ThreeWay { base: &base, local: &local, remote: &remote }, is_log)
}

fn are_records(lines: &[&str]) -> bool {
    lines.iter().filter(|line| !is_blank(line)).all(|line| JsonNode::parse(line).is_ok())
}

/// How often a line is there in base, local and remote.
type LineCounts = [usize; 3];

/// The lines that a side added or removed, in alphabetical order.
fn changed_lines<'t>(lines: &ThreeWay<Vec<&'t str>>) -> BTreeMap<&'t str, LineCounts> {
    let mut counts: HashMap<&str, LineCounts> = HashMap::new();
    for (at, lines) in lines.iter().enumerate() {
        for line in lines.iter().filter(|line| !is_blank(line)) {
            counts.entry(line).or_default()[at] += 1;
        }
    }
    counts.into_iter().filter(|(_, [base, local, remote])| base != local || base != remote).collect()
}

fn refuse_broken_records(changed: &BTreeMap<&str, LineCounts>) -> Merged<()> {
    let mut added = changed.iter().filter(|(_, [base, ..])| *base == 0);
    if added.all(|(line, _)| JsonNode::parse(line).is_ok()) {
        Ok(())
    } else {
        Err(ConflictReason::Unparsable(MergeDriver::Jsonl))
    }
}

/// Both sides added or changed a record of one identity, and not in the same way.
fn refuse_records_of_both(changed: &BTreeMap<&str, LineCounts>) -> Merged<()> {
    /// The changes of local and remote: lines, and how often more or less they are there.
    type RecordChanges<'t> = [Vec<(&'t str, usize)>; 2];
    let mut by_id: BTreeMap<String, RecordChanges<'_>> = BTreeMap::new();
    for (line, [base, local, remote]) in changed {
        let Some(id) = JsonNode::parse(line).ok().and_then(|record| record::record_id(&record)) else { continue };
        let changes = by_id.entry(id).or_default();
        for (side, count) in [local, remote].into_iter().enumerate().filter(|(_, count)| *count != base) {
            changes[side].push((line, *count));
        }
    }
    match by_id.into_iter().find(|(_, [local, remote])| !local.is_empty() && !remote.is_empty() && local != remote) {
        Some((id, _)) => Err(ConflictReason::AddedTwice(id)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(base: &str, local: &str, remote: &str) -> Merged<String> {
        let result = merge(&ThreeWay { base, local, remote }, false);
        assert_eq!(result, merge(&ThreeWay { base, local: remote, remote: local }, false));
        result
    }

    #[test]
    fn changes_of_neighbouring_records_are_joined() {
        let base = "{\"id\":1,\"t\":0}\n{\"id\":2,\"t\":0}";
        let local = "{\"id\":1,\"t\":1}\n{\"id\":2,\"t\":0}";
        let remote = "{\"id\":1,\"t\":0}\n{\"id\":2,\"t\":2}";
        assert_eq!(merged(base, local, remote).unwrap(), "{\"id\":1,\"t\":1}\n{\"id\":2,\"t\":2}");
    }

    #[test]
    fn record_changed_and_added_again_is_a_conflict() {
        let base = "{\"id\":1,\"t\":0}\n{\"n\":1}";
        let local = "{\"id\":1,\"t\":1}\n{\"n\":1}";
        let remote = "{\"id\":1,\"t\":0}\n{\"n\":1}\n{\"id\":1,\"t\":2}";
        assert_eq!(merged(base, local, remote), Err(ConflictReason::AddedTwice("1".to_owned())));
    }

    #[test]
    fn half_a_record_is_refused() {
        let result = merged("{\"n\":1}", "{\"n\":1}\n{\"n\":", "{\"n\":1}\n{\"n\":3}");
        assert_eq!(result, Err(ConflictReason::Unparsable(MergeDriver::Jsonl)));
    }

    #[test]
    fn records_with_times_go_by_time() {
        let at = |time: &str| format!("{{\"timestamp\":\"2026-11-20T{time}Z\"}}");
        let lines = ["10:00:00", "10:05:00", "10:10:00", "10:20:00"].map(at);
        let local = format!("{}\n{}\n{}", lines[0], lines[1], lines[3]);
        let remote = format!("{}\n{}", lines[0], lines[2]);
        assert_eq!(merged(&lines[0], &local, &remote).unwrap(), lines.join("\n"));
    }
}
