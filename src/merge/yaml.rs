//! YAML: by key where the text is flat, by entry where it is a list, and by line elsewhere. The result must mean what the
//! three texts together mean.

use super::data;
use super::key_groups::{GroupSyntax, merge_groups};
use super::lines::merge_lines;
use super::merged_line::MergedLine;
use super::outcome::{ConflictReason, Merged};
use super::places;
use super::text_lines::lines_of;
use super::threeway::ThreeWay;
use super::units::{self, LineStyle};
use super::yaml_data::parse_yaml;
use super::yaml_groups::yaml_groups;

/// Merges YAML files.
pub(super) fn merge(texts: &ThreeWay<&str>) -> Merged<String> {
    let lines = texts.map(|text| lines_of(text));
    let merged = merge_yaml_lines(&lines)?;
    let merged: Vec<&str> = merged.iter().map(MergedLine::text).collect();
    places::check_comments(&lines, &merged)?;
    let merged = merged.join("\n");
    check_yaml(texts, &merged)?;
    Ok(merged)
}

/// Refuses a version that is broken, and a result that is not what the three texts say together.
pub(super) fn check_yaml(texts: &ThreeWay<&str>, merged: &str) -> Merged<()> {
    let data = texts.try_map(|text| parse_yaml(text))?;
    let result = parse_yaml(merged).map_err(|reason| match reason {
        ConflictReason::Unparsable(driver) => ConflictReason::Broken(driver),
        other => other,
    })?;
    data::check_data(&data, &result)
}

pub(super) fn merge_yaml_lines<'t>(lines: &ThreeWay<Vec<&'t str>>) -> Merged<Vec<MergedLine<'t>>> {
    let groups = lines.map(|lines| yaml_groups(lines));
    if let (Some(base), Some(local), Some(remote)) = (groups.base, groups.local, groups.remote) {
        return merge_groups(&ThreeWay { base, local, remote }, GroupSyntax::Yaml);
    }
    let are_lists = lines.iter().all(|lines| units::are_items(lines, LineStyle::Note));
    let style = if are_lists { LineStyle::Note } else { LineStyle::Strict };
    Ok(merge_lines(lines, style)?.into_iter().map(MergedLine::Kept).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(base: &str, local: &str, remote: &str) -> Merged<String> {
        let result = merge(&ThreeWay { base, local, remote });
        assert_eq!(result, merge(&ThreeWay { base, local: remote, remote: local }));
        result
    }

    #[test]
    fn nested_values_are_merged_by_line() {
        let base = "a:\n  x: 1\n  y: 1\n  z: 1\nb: 1";
        let local = "a:\n  x: 2\n  y: 1\n  z: 1\nb: 1";
        let remote = "a:\n  x: 1\n  y: 1\n  z: 3\nb: 2";
        assert_eq!(merged(base, local, remote).unwrap(), "a:\n  x: 2\n  y: 1\n  z: 3\nb: 2");
    }

    #[test]
    fn lists_of_maps_grow_by_whole_entries() {
        let base = "people:\n  - name: Ana\n    town: Ulm";
        let local = "people:\n  - name: Ana\n    town: Ulm\n  - name: Ben\n    town: Rom";
        let remote = "people:\n  - name: Ana\n    town: Ulm\n  - name: Eva\n    town: Linz";
        let expected =
            "people:\n  - name: Ana\n    town: Ulm\n  - name: Ben\n    town: Rom\n  - name: Eva\n    town: Linz";
        assert_eq!(merged(base, local, remote).unwrap(), expected);
        let moved = remote.replace("Ulm", "Bern");
        let expected =
            "people:\n  - name: Ana\n    town: Bern\n  - name: Eva\n    town: Linz\n  - name: Ben\n    town: Rom";
        assert_eq!(merged(base, local, &moved).unwrap(), expected);
        assert!(merged(base, local, &local.replace("Rom", "Oslo")).is_err(), "two entries of one name");
    }

    #[test]
    fn key_twice_in_a_nested_map_is_a_conflict() {
        let base = "a:\n  x: 1\n  y: 1";
        let result = merged(base, "a:\n  n: 1\n  x: 1\n  y: 1", "a:\n  x: 1\n  y: 1\n  n: 2");
        assert_eq!(result, Err(ConflictReason::KeyTwice("n".to_owned())));
    }

    #[test]
    fn broken_version_is_a_conflict() {
        let result = merged("a: 1\nb: 1", "a: [1\nb: 1", "a: 1\nb: 2");
        assert_eq!(result, Err(ConflictReason::Unparsable(crate::merge::MergeDriver::Yaml)));
    }

    #[test]
    fn comments_stay_with_their_keys() {
        let base = "# one\na: 1\n\n# two\nb: 1";
        let merged = merged(base, "# one\na: 2\n\n# two\nb: 1", "# two\nb: 1\n\n# one\na: 1\n\nc: 1").unwrap();
        assert_eq!(merged, "# two\nb: 1\n\n# one\na: 2\n\nc: 1");
    }
}
