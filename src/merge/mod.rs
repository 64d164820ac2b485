//! Merges two versions of a note that come from one base. Pure: the result depends on the three texts only, and swapping
//! the two versions gives the same bytes. In doubt the answer is a conflict, because a wrong clean merge is worse.

mod changes;
mod data;
mod diff;
mod driver;
mod facts;
mod fences;
mod front_matter;
mod insertions;
mod json;
mod jsonl;
mod key_groups;
mod limits;
mod lines;
mod markdown;
mod merged_line;
mod note_line;
mod order;
mod outcome;
mod places;
mod properties;
mod record;
mod seams;
mod stamp;
mod tag_list;
mod text_lines;
mod threeway;
mod toml;
mod toml_tables;
mod unbased;
mod units;
mod yaml;
mod yaml_data;
mod yaml_groups;

pub use driver::{MergeDriver, MergeRules};
pub use limits::{MAX_MERGE_BYTES, MAX_MERGE_LINES};
pub use outcome::{ConflictReason, MergeOutcome};

use outcome::Merged;
use properties::{PlainText, TextProperties};
use threeway::ThreeWay;

/// The texts of a merge.
#[derive(Debug, Clone, Copy)]
pub struct MergeSides<'a> {
    /// The version that both sides had before. `None` and an empty text mean that it is not known.
    pub base: Option<&'a [u8]>,
    pub local: &'a [u8],
    pub remote: &'a [u8],
}

/// Merges `local` and `remote`.
pub fn merge(rules: MergeRules, sides: MergeSides<'_>) -> MergeOutcome {
    match merge_sides(rules, sides) {
        Ok(bytes) => MergeOutcome::Clean(bytes),
        Err(reason) => MergeOutcome::Conflict(reason),
    }
}

fn merge_sides(rules: MergeRules, sides: MergeSides<'_>) -> Merged<Vec<u8>> {
    let MergeSides { base, local, remote } = sides;
    if local == remote || base == Some(remote) {
        return Ok(local.to_vec());
    }
    if base == Some(local) {
        return Ok(remote.to_vec());
    }
    if rules.driver == MergeDriver::Copy {
        return Err(ConflictReason::NotMerged);
    }
    let base = base.filter(|base| !base.is_empty());
    let (local, remote) = threeway::both(limits::text_of(local), limits::text_of(remote))?;
    match base.map(limits::text_of).transpose()? {
        Some(base) => merge_texts(rules, &ThreeWay { base, local, remote }),
        None => merge_without_base(rules, local, remote),
    }
}

/// Line ends, byte order mark and final newline are merged by themselves, and then the text without them.
fn merge_texts(rules: MergeRules, texts: &ThreeWay<&str>) -> Merged<Vec<u8>> {
    let properties = texts.map(|text| TextProperties::of(text));
    let merged = TextProperties::merge(Some(properties.base), properties.local, properties.remote);
    let is_mixed = properties.iter().any(|p| p.has_mixed_ends());
    let plain = texts.map(|text| PlainText::of(text, is_mixed));
    limits::refuse(&plain)?;
    let text = if plain.local == plain.remote || plain.remote == plain.base {
        plain.local.text.clone().into_owned()
    } else if plain.local == plain.base {
        plain.remote.text.clone().into_owned()
    } else {
        let content = plain.map(|p| p.text.as_ref());
        match rules.driver {
            MergeDriver::Markdown => markdown::merge(&content)?,
            MergeDriver::Text => markdown::merge_text(&content, rules.is_prose)?,
            MergeDriver::Json => json::merge(&content)?,
            MergeDriver::Jsonl => jsonl::merge(&content, rules.is_log)?,
            MergeDriver::Toml => toml::merge(&content)?,
            MergeDriver::Yaml => yaml::merge(&content)?,
            MergeDriver::Copy => return Err(ConflictReason::NotMerged),
        }
    };
    Ok(merged.apply(&text, is_mixed))
}

fn merge_without_base(rules: MergeRules, local: &str, remote: &str) -> Merged<Vec<u8>> {
    let properties = [local, remote].map(TextProperties::of);
    let merged = TextProperties::merge(None, properties[0], properties[1]);
    let is_mixed = properties.iter().any(|p| p.has_mixed_ends());
    let [local, remote] = [local, remote].map(|text| PlainText::of(text, is_mixed));
    limits::refuse_markers([&local, &remote])?;
    let text = unbased::merge(rules, &local.text, &remote.text)?;
    Ok(merged.apply(&text, is_mixed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(base: Option<&[u8]>, local: &[u8], remote: &[u8]) -> MergeOutcome {
        let rules = MergeRules::for_name("a.md");
        let outcome = merge(rules, MergeSides { base, local, remote });
        assert_eq!(outcome, merge(rules, MergeSides { base, local: remote, remote: local }));
        outcome
    }

    #[test]
    fn reason_does_not_depend_on_the_side() {
        let large = vec![b'a'; MAX_MERGE_BYTES + 1];
        assert_eq!(outcome(Some(b"x"), &large, b"\xff"), MergeOutcome::Conflict(ConflictReason::TooLarge));
        let rules = MergeRules::for_name("a.yaml");
        let merged = |local: &[u8], remote: &[u8]| merge(rules, MergeSides { base: Some(b"a: 1"), local, remote });
        assert_eq!(merged(b"a: [", b"a: 1\na: 2"), merged(b"a: 1\na: 2", b"a: ["));
    }

    #[test]
    fn change_of_one_side_needs_no_text() {
        assert_eq!(outcome(Some(b"a"), b"\xff", b"a"), MergeOutcome::Clean(b"\xff".to_vec()));
        assert_eq!(outcome(None, b"\xff", b"\xff"), MergeOutcome::Clean(b"\xff".to_vec()));
    }

    #[test]
    fn empty_base_is_no_base() {
        assert_eq!(outcome(Some(b""), b"a\n", b"a\nb\n"), MergeOutcome::Clean(b"a\nb\n".to_vec()));
        assert_eq!(outcome(None, b"a\n", b"b\n"), MergeOutcome::Conflict(ConflictReason::NoBase));
    }

    #[test]
    fn copy_is_never_merged() {
        let rules = MergeRules::with_driver(MergeDriver::Copy, "a.md");
        let sides = MergeSides { base: Some(b"a\n\nb\n"), local: b"x\n\nb\n", remote: b"a\n\ny\n" };
        assert_eq!(merge(rules, sides), MergeOutcome::Conflict(ConflictReason::NotMerged));
    }
}
