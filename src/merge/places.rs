//! Checks that each line of a merged note stands where one of the versions has it: below the same heading and the same
//! item. The number of such lines is merged like any other value, with the number in the base.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::rc::Rc;

use super::data::hash_of;
use super::fences;
use super::note_line::{self, LineIdentity, LineKind};
use super::outcome::{ConflictReason, Merged};
use super::threeway::ThreeWay;

/// A line with the heading, the table and the item that it belongs to. Ticking the item does not change the place.
#[derive(PartialEq, Eq, Hash)]
struct PlacedLine<'t> {
    /// 0: none.
    heading: SectionHash,
    /// The cells of the table's header, however they are spaced.
    header: Option<Rc<str>>,
    item: Option<LineIdentity<'t>>,
    line: &'t str,
}

/// A heading. If a text has it twice, the headings above it count too.
type SectionHash = u64;

/// Refuses a result in which a line was lost, came back, or moved to a place that no version has.
pub(super) fn check(sides: &ThreeWay<Vec<&str>>, result: &[&str]) -> Merged<()> {
    let repeated: HashSet<&str> = sides.iter().flat_map(|lines| repeated_headings(lines)).collect();
    let counts = count_each(sides, result, |lines| placed_lines(lines, &repeated));
    let is_fault = |(placed, count): (&PlacedLine<'_>, &[usize; 4])| {
        let [base, local, remote, _] = *count;
        let are_two_tables = is_table_ruler(placed.line) && local > base && remote > base;
        !is_merged_count(*count) || are_two_tables
    };
    if counts.iter().any(is_fault) {
        return Err(ConflictReason::Misplaced);
    }
    if are_moved_apart(sides) {
        return Err(ConflictReason::MovedApart);
    }
    // One version may have moved a line that the other removed.
    let is_right = count_each(sides, result, full_lines_of).into_values().all(is_merged_count);
    if is_right { Ok(()) } else { Err(ConflictReason::CheckFailed) }
}

/// True if both versions took an item away, and each wrote it again with another ending, such as the day it was done.
fn are_moved_apart(sides: &ThreeWay<Vec<&str>>) -> bool {
    let mut counts: HashMap<&str, [usize; 3]> = HashMap::new();
    for (column, lines) in sides.iter().enumerate() {
        lines.iter().for_each(|line| counts.entry(line).or_default()[column] += 1);
    }
    let texts = |is_wanted: fn(&[usize; 3]) -> bool| -> Vec<&str> {
        let items = counts.iter().filter(|(_, count)| is_wanted(count)).filter_map(|(line, _)| item_text(line));
        let mut texts: Vec<&str> = items.collect();
        texts.sort_unstable();
        texts
    };
    let taken = texts(|[base, local, remote]| base > local && base > remote);
    if taken.is_empty() {
        return false;
    }
    let ours = texts(|[base, local, remote]| local > base && local > remote);
    let theirs = texts(|[base, local, remote]| remote > base && remote > local);
    taken.iter().any(|text| continues_one_of(&ours, text) && continues_one_of(&theirs, text))
}

fn item_text(line: &str) -> Option<&str> {
    match note_line::kind_of(line) {
        LineKind::Item(item) if !item.text.is_empty() => Some(item.text),
        _ => None,
    }
}

/// True if one of the sorted `texts` is `start`, or goes on after its last word.
fn continues_one_of(texts: &[&str], start: &str) -> bool {
    let from = texts.partition_point(|text| *text < start);
    let mut continued = texts[from..].iter().map_while(|text| text.strip_prefix(start));
    continued.any(|rest| !rest.starts_with(char::is_alphanumeric))
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

/// For each line: true if it is in a fenced block or in front matter.
fn opaque_lines(lines: &[&str]) -> Vec<bool> {
    let mut is_opaque = fences::fenced_lines(lines);
    is_opaque[..front_matter_len(lines)].fill(true);
    is_opaque
}

/// The headings that are there more than once, each as its line.
fn repeated_headings<'t>(lines: &[&'t str]) -> Vec<&'t str> {
    let mut known = HashSet::new();
    let is_opaque = opaque_lines(lines);
    let headings = (0..lines.len()).filter(|at| !is_opaque[*at] && heading_level(lines, *at).is_some());
    headings.map(|at| lines[at]).filter(|line| !known.insert(*line)).collect()
}

fn placed_lines<'t>(lines: &[&'t str], repeated: &HashSet<&str>) -> Vec<PlacedLine<'t>> {
    let mut places = Places::default();
    let mut placed = Vec::with_capacity(lines.len());
    let is_fenced = opaque_lines(lines);
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| !note_line::is_blank(line)) {
        let level = if is_fenced[at] { None } else { heading_level(lines, at) };
        match level {
            Some(level) => places.end_section(level),
            None if is_fenced[at] => {}
            None => places.enter_line(line),
        }
        placed.push(places.place(line));
        match level {
            Some(level) => places.begin_section(level, line, repeated.contains(line)),
            None if is_fenced[at] => {}
            None => places.leave_line(line),
        }
    }
    placed
}

/// The lines of front matter with its fences, where it is merged as a part of the body.
fn front_matter_len(lines: &[&str]) -> usize {
    let is_fence = |line: &&str| line.trim_end() == "---";
    let inner = lines.split_first().filter(|(first, _)| is_fence(first)).map(|(_, rest)| rest);
    inner.and_then(|rest| rest.iter().position(is_fence)).map_or(0, |end| end + 2)
}

/// The headings, the items and the table above a line.
#[derive(Default)]
struct Places<'t> {
    /// Each heading with its level, alone and with those above it.
    headings: Vec<(usize, SectionHash, SectionHash)>,
    items: Vec<(usize, &'t str)>,
    header: Option<Rc<str>>,
}

impl<'t> Places<'t> {
    fn end_section(&mut self, level: usize) {
        self.headings.retain(|(above, ..)| *above < level);
        self.items.clear();
        self.header = None;
    }

    fn begin_section(&mut self, level: usize, line: &str, is_repeated: bool) {
        let path = hash_of((self.headings.last().map(|(.., path)| *path), line));
        let section = if is_repeated { path } else { hash_of(line) };
        self.headings.push((level, section, path));
    }

    fn enter_line(&mut self, line: &str) {
        let indent = note_line::indent_of(line);
        let kind = note_line::kind_of(line);
        if indent > 0 || matches!(kind, LineKind::Item(_)) {
            self.items.retain(|(above, _)| *above < indent);
        } else {
            self.items.clear();
        }
        if kind != LineKind::TableRow {
            self.header = None;
        }
    }

    fn place(&self, line: &'t str) -> PlacedLine<'t> {
        let heading = self.headings.last().map_or(0, |(_, section, _)| *section);
        let item = self.items.last().and_then(|(_, item)| note_line::identity_of(item));
        PlacedLine { heading, header: self.header.clone().filter(|_| !is_table_ruler(line)), item, line }
    }

    fn leave_line(&mut self, line: &'t str) {
        match note_line::kind_of(line) {
            LineKind::Item(_) => self.items.push((note_line::indent_of(line), line)),
            LineKind::TableRow if self.header.is_none() => self.header = Some(header_of(line)),
            _ => {}
        }
    }
}

fn header_of(row: &str) -> Rc<str> {
    row.trim().split('|').map(str::trim).collect::<Vec<_>>().join("|").into()
}

/// The level of a line that stands over the text behind it: a heading, a line with a rule below it, or a paragraph in bold.
fn heading_level(lines: &[&str], at: usize) -> Option<usize> {
    let line = lines[at];
    match note_line::kind_of(line) {
        LineKind::Heading(level) => return Some(level),
        LineKind::Other => {}
        _ => return None,
    }
    let rule = lines.get(at + 1).map_or("", |next| next.trim());
    let is_rule_of = |mark: char| rule.len() > 1 && rule.chars().all(|c| c == mark);
    let is_alone = at.checked_sub(1).is_none_or(|before| note_line::is_blank(lines[before]));
    if is_rule_of('=') {
        Some(1)
    } else if is_rule_of('-') && !is_rule_of_marks(line) {
        Some(2)
    } else {
        (is_alone && is_bold(line.trim())).then_some(BOLD_LEVEL)
    }
}

/// Below all other headings.
const BOLD_LEVEL: usize = 7;

fn is_bold(text: &str) -> bool {
    let inner = ["**", "__"].iter().find_map(|mark| text.strip_prefix(mark)?.strip_suffix(mark));
    inner.is_some_and(|inner| !inner.is_empty() && !inner.contains("**") && !inner.contains("__"))
}

fn is_rule_of_marks(line: &str) -> bool {
    line.trim().chars().all(|c| matches!(c, '-' | '=' | '*' | '_' | ' '))
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
            ["T/==//One./", "T/==//One.//Two./", "T/==//One.//S/--//x/"],
            ["## Mon/### Done/- x/", "## Mon/### Done/- x/## Tue/### Done/- gym/", "## Mon/### Done/- x/- run/"],
            ["# A/## N/a/# B/## N/a/", "# B/## N/a/# A/## N/a/", "# A/## N/a/b/# B/## N/a/"],
            ["**T**//One./", "**T**//One.//Two./", "**T**//One.//**S**//x/"],
        ] {
            assert_eq!(merged("a.md", texts), None, "{texts:?}");
        }
    }

    #[test]
    fn new_title_does_not_move_the_lines_below_other_headings() {
        let merged = merged("a.md", ["# T//## A//a/", "# New//## A//a/", "# T//## A//a//b/"]);
        assert_eq!(merged.as_deref(), Some("# New//## A//a//b/"));
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
    fn row_stays_below_the_header_of_its_table() {
        let base = "| name | age |/|---|---|/| Ana | 7 |/";
        let turned = "| age | name |/|---|---|/| 7 | Ana |/";
        assert_eq!(merged("a.md", [base, turned, &format!("{base}| Ben | 8 |/")]), None);
        let spaced = "| name  | age |/|---|---|/| Ana | 7 |/";
        let both = format!("{spaced}| Ben | 8 |/");
        assert_eq!(merged("a.md", [base, spaced, &format!("{base}| Ben | 8 |/")]), Some(both));
    }

    #[test]
    fn item_moved_with_two_endings_is_a_conflict() {
        let base = "## Todo//- [ ] call/- [ ] tea//## Done//- [x] mail/";
        let done = |day: &str| format!("## Todo//- [ ] tea//## Done//- [x] call {day}/- [x] mail/");
        let later = "## Todo//- [ ] tea//## Done//- [x] mail/- [x] call 2026-11-21/";
        assert_eq!(merged("a.md", [base, &done("2026-11-20"), later]), None);
        assert_eq!(merged("a.md", [base, &done("2026-11-20"), &done("2026-11-20")]), Some(done("2026-11-20")));
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
