//! Markdown and plain text. Front matter is merged by key, and the body by line and by item.

use super::front_matter::{NoteParts, merge_front_matter};
use super::lines::merge_lines;
use super::merged_line::MergedLine;
use super::outcome::{ConflictReason, Merged};
use super::places;
use super::seams;
use super::text_lines::{check_lines, lines_of};
use super::threeway::ThreeWay;
use super::units::LineStyle;

/// Merges notes with front matter.
pub(super) fn merge(texts: &ThreeWay<&str>) -> Merged<String> {
    let lines = texts.map(|text| lines_of(text));
    let notes = lines.map(|lines| NoteParts::of(lines));
    if notes.base.fences.is_some() && notes.iter().any(|note| note.fences.is_none()) {
        // A side removed the front matter, or wrote a text before it.
        return joined(&merge_body(&lines)?);
    }
    let front = merge_front_matter(&notes)?;
    let body = merge_body(&notes.map(|note| note.body.to_vec()))?;
    let merged: Vec<&str> = front.iter().map(MergedLine::text).chain(body).collect();
    // A line may have moved from one part to the other. Stamps and joined lists are lines of no version.
    if !front.is_empty() && front.iter().all(|line| matches!(line, MergedLine::Kept(_))) {
        check_lines(&lines, &merged)?;
    }
    joined(&merged)
}

/// Merges texts without front matter. Text that is no prose, such as source code, is merged only where the changes of
/// both sides do not touch.
pub(super) fn merge_text(texts: &ThreeWay<&str>, is_prose: bool) -> Merged<String> {
    let lines = texts.map(|text| lines_of(text));
    if is_prose {
        return joined(&merge_body(&lines)?);
    }
    let merged = merge_lines(&lines, LineStyle::Strict)?;
    check_lines(&lines, &merged)?;
    joined(&merged)
}

fn merge_body<'t>(lines: &ThreeWay<Vec<&'t str>>) -> Merged<Vec<&'t str>> {
    if let Some(lines) = lines.resolve() {
        return Ok(lines.clone());
    }
    let merged = merge_lines(lines, LineStyle::Note)?;
    seams::check(lines, &merged)?;
    places::check(lines, &merged)?;
    check_lines(lines, &merged)?;
    Ok(merged)
}

/// Both sides together may have removed everything.
fn joined(lines: &[&str]) -> Merged<String> {
    let text = lines.join("\n");
    if text.trim().is_empty() { Err(ConflictReason::Emptied) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both orders give the same text. `/` stands for a line end.
    fn merged(base: &str, local: &str, remote: &str) -> Merged<String> {
        let [base, local, remote] = [base, local, remote].map(|text| text.replace('/', "\n"));
        let texts = ThreeWay { base: base.as_str(), local: &local, remote: &remote };
        let result = merge(&texts);
        assert_eq!(result, merge(&ThreeWay { base: texts.base, local: texts.remote, remote: texts.local }));
        result.map(|text| text.replace('\n', "/"))
    }

    #[test]
    fn changed_paragraph_and_new_section_behind_it_are_joined() {
        assert_eq!(
            merged("# T//one", "# T//one, better", "# T//one//## New//x").unwrap(),
            "# T//one, better//## New//x"
        );
        assert_eq!(merged("# T//one", "# T//one, better", "# T//one/more").ok(), None, "the same paragraph");
    }

    #[test]
    fn addition_to_a_removed_section_is_a_conflict() {
        let base = "# T//## A//- a//## B//- b";
        assert!(merged(base, "# T//## A//- a", "# T//## A//- a//## B//- b/- c").is_err());
        assert!(merged(base, "# T//## A//- a", "# T//## A//- a//## B//- b//More on b.").is_err());
        assert_eq!(merged(base, "# T//## A//- a", &format!("{base}//## C//- c")).unwrap(), "# T//## A//- a//## C//- c");
    }

    #[test]
    fn item_below_a_removed_item_is_a_conflict() {
        let base = "- a/- move/  - boxes";
        assert_eq!(merged(base, "- a", "- a/- move/  - boxes/  - lamp"), Err(ConflictReason::Misplaced));
    }

    #[test]
    fn ticks_of_overlapping_items_are_joined() {
        let base = "- [ ] a/- [ ] b/- [ ] c";
        assert_eq!(
            merged(base, "- [x] a/- [x] b/- [ ] c", "- [ ] a/- [x] b/- [x] c").unwrap(),
            "- [x] a/- [x] b/- [x] c"
        );
    }

    #[test]
    fn second_lines_of_items_are_no_neighbours_of_other_items() {
        let base = "- a/  more/- b";
        assert_eq!(merged(base, "- a/  less/- b", "- a/  more/- c").unwrap(), "- a/  less/- c");
        assert!(merged(base, "- a/  less/- b", "- x/  more/- b").is_err(), "lines of one item");
        assert!(merged(base, "- a/- b", "- x/  more/- b").is_err(), "lines of one item");
    }

    #[test]
    fn line_moved_to_two_places_is_a_conflict() {
        let base = "a//b//c//d//x";
        assert!(merged(base, "a//x//b//c//d", "a//b//c//x//d").is_err());
    }

    #[test]
    fn changes_of_one_fenced_block_are_a_conflict() {
        let base = "```/one/two/three/four/```";
        assert_eq!(merged(base, &base.replace("one", "1"), &base.replace("four", "4")), Err(ConflictReason::SameBlock));
        assert_eq!(
            merged(base, &base.replace("one", "1"), &format!("{base}//text")).unwrap(),
            "```/1/two/three/four/```//text"
        );
    }

    #[test]
    fn same_count_of_both_sides_is_a_conflict() {
        let result = merged("Total: 2//- a", "Total: 3//- a/- b", "Total: 3//- a/- c");
        assert_eq!(result, Err(ConflictReason::Counter));
        let dated = merged("Date: 2026-11-20//- a", "Date: 2026-11-21//- a/- b", "Date: 2026-11-21//- a/- c");
        assert_eq!(dated.unwrap(), "Date: 2026-11-21//- a/- b/- c");
    }

    #[test]
    fn two_definitions_of_one_label_are_a_conflict() {
        assert!(merged("a[^1]", "a[^1]//[^1]: one", "a[^1]//[^1]: two").is_err());
        assert!(merged("a", "a//status:: open", "a//status:: done").is_err());
    }

    #[test]
    fn text_before_the_front_matter_is_no_removal() {
        let base = "---/a: 1/---/x";
        assert_eq!(merged(base, "x", "---/a: 1/---/x//y").unwrap(), "x//y", "the block was removed");
        assert!(merged(base, "x", "---/a: 2/---/x").is_err());
    }

    #[test]
    fn front_matter_of_both_sides_is_merged_by_key() {
        assert_eq!(merged("x", "---/a: 1/---/x", "---/b: 1/---/x").unwrap(), "---/a: 1/b: 1/---/x");
        assert!(merged("x", "---/a: 1/---/x", "---/a: 2/---/x").is_err());
    }

    #[test]
    fn template_without_yaml_is_merged_by_key() {
        let base = "---/title: {{title}}/a: 1/b: 1/---/x";
        let result = merged(base, &base.replace("a: 1", "a: 2"), &base.replace("b: 1", "b: 2"));
        assert_eq!(result.unwrap(), "---/title: {{title}}/a: 2/b: 2/---/x");
    }
}
