//! Checks that each line of a merged note stands where one of the versions has it: below the same heading and the same
//! item. The number of such lines is merged like any other value, with the number in the base.

use std::collections::HashMap;
use std::hash::Hash;

use super::note_line::{self, LineIdentity, LineKind};
use super::outcome::{ConflictReason, Merged};
use super::threeway::ThreeWay;

/// A line with the heading and the item that it belongs to. Ticking the item does not change the place.
#[derive(PartialEq, Eq, Hash)]
struct PlacedLine<'t> {
    heading: Option<&'t str>,
    item: Option<LineIdentity<'t>>,
    line: &'t str,
}

/// Refuses a result in which a line was lost, came back, or moved to a place that no version has.
pub(super) fn check(sides: &ThreeWay<Vec<&str>>, result: &[&str]) -> Merged<()> {
    let counts = count_each(sides, result, placed_lines);
    let is_fault = |(placed, count): (&PlacedLine<'_>, &[usize; 4])| {
        let [base, local, remote, _] = *count;
        let are_two_tables = is_table_ruler(placed.line) && local > base && remote > base;
        !is_merged_count(*count) || are_two_tables
    };
    if counts.iter().any(is_fault) {
        return Err(ConflictReason::Misplaced);
    }
    // One version may have moved a line that the other removed.
    let is_right = count_each(sides, result, full_lines_of).into_values().all(is_merged_count);
    if is_right { Ok(()) } else { Err(ConflictReason::CheckFailed) }
}

fn full_lines_of<'t>(lines: &[&'t str]) -> Vec<&'t str> {
    lines.iter().copied().filter(|line| !note_line::is_blank(line)).collect()
}

/// Refuses merged data in which a comment was lost or came back. Comments belong to no key, so no other check sees them.
pub(super) fn check_comments(sides: &ThreeWay<Vec<&str>>, result: &[&str]) -> Merged<()> {
    let is_right = count_each(sides, result, comments_of).into_values().all(is_merged_count);
    if is_right { Ok(()) } else { Err(ConflictReason::CheckFailed) }
}

fn comments_of<'t>(lines: &[&'t str]) -> Vec<&'t str> {
    lines.iter().map(|line| line.trim()).filter(|line| line.starts_with('#')).collect()
}

/// Counts each key in the base, the two versions and the result.
fn count_each<'t, K: Hash + Eq>(
    sides: &ThreeWay<Vec<&'t str>>,
    result: &[&'t str],
    keys_of: impl Fn(&[&'t str]) -> Vec<K>,
) -> HashMap<K, [usize; 4]> {
    let mut counts: HashMap<K, [usize; 4]> = HashMap::new();
    for (column, lines) in
        [&sides.base, &sides.local, &sides.remote].into_iter().map(Vec::as_slice).chain([result]).enumerate()
    {
        for key in keys_of(lines) {
            counts.entry(key).or_default()[column] += 1;
        }
    }
    counts
}

/// True if the last of the numbers is a merge of the first three: base, local, remote.
fn is_merged_count([base, local, remote, merged]: [usize; 4]) -> bool {
    if local == remote || remote == base {
        return merged == local;
    }
    if local == base {
        return merged == remote;
    }
    let sum = (local + remote).saturating_sub(base);
    let both_added = local > base && remote > base;
    merged == sum || both_added && (local.max(remote)..=sum).contains(&merged)
}

/// The line below the header of a table.
fn is_table_ruler(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('|') && line.contains('-') && line.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '))
}

fn placed_lines<'t>(lines: &[&'t str]) -> Vec<PlacedLine<'t>> {
    let mut placed = Vec::with_capacity(lines.len());
    let mut headings: Vec<(usize, &str)> = Vec::new();
    let mut items: Vec<(usize, &str)> = Vec::new();
    for line in lines {
        let indent = note_line::indent_of(line);
        match note_line::kind_of(line) {
            LineKind::Blank => continue,
            LineKind::Heading(level) => {
                headings.retain(|(above, _)| *above < level);
                items.clear();
                placed.push(PlacedLine { heading: headings.last().map(|(_, heading)| *heading), item: None, line });
                headings.push((level, line));
                continue;
            }
            LineKind::Item(_) => items.retain(|(above, _)| *above < indent),
            _ if indent > 0 => items.retain(|(above, _)| *above < indent),
            _ => items.clear(),
        }
        let item = items.last().and_then(|(_, item)| note_line::identity_of(item));
        placed.push(PlacedLine { heading: headings.last().map(|(_, heading)| *heading), item, line });
        if matches!(note_line::kind_of(line), LineKind::Item(_)) {
            items.push((indent, line));
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use crate::merge::{MergeOutcome, MergeRules, MergeSides, merge};

    /// Both orders give the same result. `/` stands for a line end.
    fn merged(name: &str, [base, local, remote]: [&str; 3]) -> Option<String> {
        let [base, local, remote] = [base, local, remote].map(|text| text.replace('/', "\n"));
        let one = |local: &str, remote: &str| {
            let sides = MergeSides { base: Some(base.as_bytes()), local: local.as_bytes(), remote: remote.as_bytes() };
            merge(MergeRules::for_name(name), sides)
        };
        let outcome = one(&local, &remote);
        assert_eq!(outcome, one(&remote, &local));
        match outcome {
            MergeOutcome::Clean(text) => Some(String::from_utf8(text).unwrap().replace('\n', "/")),
            MergeOutcome::Conflict(_) => None,
        }
    }

    #[test]
    fn line_never_moves_below_another_heading_or_item() {
        for texts in [
            ["# T//One./", "# T//One.//Two./", "# T//One.//## S//x/"],
            ["# T/- a/", "# T/- a/- b/", "# T/- a/## S/- x/"],
            ["# T//## A//a/", "# T//## A//a//### Sub//s/", "# T//## A//a//## B//b/"],
            ["- Zoe/", "- Zoe/- Ana/  - paid/", "- Zoe/- Ana/- Ben/  - paid/"],
            ["# D/- z/", "# D/- z/## Mon/- gym/", "# D/- z/## Mon/- run/## Tue/- gym/"],
            ["# T//- b/", "# T//Intro.//- b/", "# T//- y/- b/"],
        ] {
            assert_eq!(merged("a.md", texts), None, "{texts:?}");
        }
    }

    #[test]
    fn item_stays_below_an_item_that_was_ticked() {
        let merged = merged("a.md", ["- [ ] b/", "- [x] b/", "- [ ] b/  - c/"]);
        assert_eq!(merged.as_deref(), Some("- [x] b/  - c/"));
    }

    #[test]
    fn two_new_tables_are_not_joined() {
        let (one, other) = ("T//| x | y |/|---|---|/| 1 | 2 |/", "T//| p | q |/|---|---|/| 3 | 4 |/");
        assert_eq!(merged("a.md", ["T/", one, other]), None);
    }

    #[test]
    fn comment_of_a_data_file_is_neither_lost_nor_revived() {
        for (name, texts) in [
            ("a.toml", ["a = 1/# old/[t]/b = 1/", "a = 1/", "a = 1/# IMPORTANT/[t]/b = 1/"]),
            ("a.yaml", ["a: 1/# footer/", "a: 1/# footer/b: 2/", "a: 1/# footer/c: 3/"]),
            ("a.toml", ["a = 1/# secret/", "a = 1/", "a = 1/# secret/b = 2/"]),
        ] {
            assert_eq!(merged(name, texts), None, "{name} {texts:?}");
        }
        let note = |block: &str| format!("---/{block}/---/x/");
        let front = |texts: [&str; 3]| merged("a.md", texts.map(note).each_ref().map(String::as_str));
        let stamps = ["2026-01-01/a: 1/# x", "2026-01-02/a: 1/# x/b: 2", "2026-01-03/a: 1/# x/c: 3"];
        assert_eq!(front(stamps.map(|stamp| format!("updated: {stamp}")).each_ref().map(String::as_str)), None);
        let joined = front(["tags: [a]/# secret", "tags: [a, b]", "tags: [a, c]/# secret"]);
        assert_eq!(joined, Some(note("tags: [a, b, c]")), "a removed comment stays away");
        let kept = merged("a.yaml", ["# x/a: 1/b: 1/", "# x/a: 1/b: 2/", "# x/a: 3/b: 1/"]);
        assert_eq!(kept.as_deref(), Some("# x/a: 3/b: 2/"));
    }

    #[test]
    fn spelling_of_a_json_value_does_not_depend_on_the_side() {
        let texts = ["{\"a\":[1,2],\"b\":1}", "{\"a\":[1, 2],\"b\":2}", "{\"a\":[ 1,2 ],\"b\":1,\"c\":3}"];
        assert_eq!(merged("a.json", texts).as_deref(), Some("{\"a\":[1, 2],\"b\":2,\"c\":3}"));
    }
}
