//! YAML: by key where the text is flat, by entry where it is a list, and by line elsewhere. The result must mean what the
//! three texts together mean.

use super::data;
use super::key_groups::{GroupSyntax, merge_groups};
use super::lines::merge_lines;
use super::merged_line::MergedLine;
use super::outcome::{ConflictReason, Merged};
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
