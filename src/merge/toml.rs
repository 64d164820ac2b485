//! TOML: by key in each table, and by line elsewhere. The result must mean what the three texts together mean.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::data::{self, DataContent, DataValue, MAX_DEPTH};
use super::driver::MergeDriver;
use super::key_groups::{GroupSyntax, GroupedLines, merge_groups};
use super::lines::merge_lines;
use super::merged_line::MergedLine;
use super::order::merge_order;
use super::outcome::{ConflictReason, Merged};
use super::places;
use super::text_lines::lines_of;
use super::threeway::ThreeWay;
use super::toml_tables::{TomlTable, toml_tables};
use super::units::LineStyle;

/// Merges TOML files.
pub(super) fn merge(texts: &ThreeWay<&str>) -> Merged<String> {
    let unparsable = ConflictReason::Unparsable(MergeDriver::Toml);
    let data = texts.try_map(|text| parse_toml(text).ok_or_else(|| unparsable.clone()))?;
    let lines = texts.map(|text| lines_of(text));
    let tables = lines.map(|lines| toml_tables(lines));
    let merged = match (tables.base, tables.local, tables.remote) {
        (Some(base), Some(local), Some(remote)) => merge_tables(&ThreeWay { base, local, remote })?,
        _ => merge_lines(&lines, LineStyle::Strict)?.into_iter().map(MergedLine::Kept).collect(),
    };
    let merged: Vec<&str> = merged.iter().map(MergedLine::text).collect();
    places::check_comments(&lines, &merged)?;
    let merged = merged.join("\n");
    let result = parse_toml(&merged).ok_or(ConflictReason::Broken(MergeDriver::Toml))?;
    data::check_data(&data, &result)?;
    Ok(merged)
}

fn parse_toml(text: &str) -> Option<DataValue<'_>> {
    let table: toml::Table = text.parse().ok()?;
    Some(data_of(toml::Value::Table(table), 0))
}

/// The parser limits the depth. A value below the limit of memsync counts as its text.
fn data_of(value: toml::Value, depth: usize) -> DataValue<'static> {
    let content = match value {
        toml::Value::Table(table) if depth < MAX_DEPTH => {
            let members = table.into_iter().map(|(key, value)| (Cow::Owned(key), data_of(value, depth + 1)));
            DataContent::Map(members.collect())
        }
        toml::Value::Array(elements) if depth < MAX_DEPTH => {
            DataContent::List(elements.into_iter().map(|element| data_of(element, depth + 1)).collect())
        }
        toml::Value::String(text) => DataContent::Scalar(Cow::Owned(text)),
        // A text that looks alike differs from a number.
        other => DataContent::Scalar(Cow::Owned(format!("\n{other}"))),
    };
    DataValue::new(content)
}

type TablesByName<'x, 'a, 't> = HashMap<&'t str, &'x TomlTable<'a, 't>>;

fn merge_tables<'t>(texts: &ThreeWay<Vec<TomlTable<'_, 't>>>) -> Merged<Vec<MergedLine<'t>>> {
    let by_name = texts.try_map(|tables| tables_by_name(tables))?;
    let names = texts.map(|tables| tables.iter().map(|table| table.name).collect::<Vec<_>>());
    let order = merge_order(&names);
    if !order.is_agreed {
        return Err(ConflictReason::Reordered);
    }
    let kept: HashSet<&str> = order.keys.iter().copied().collect();
    for name in names.base.iter().filter(|name| !kept.contains(*name)) {
        refuse_change_of_removed(name, &by_name)?;
    }
    let mut out = Vec::new();
    for name in order.keys {
        out.extend(merge_table(name, by_name.map(|tables| tables.get(name).copied()))?);
    }
    Ok(out)
}

fn tables_by_name<'x, 'a, 't>(tables: &'x [TomlTable<'a, 't>]) -> Merged<TablesByName<'x, 'a, 't>> {
    let mut by_name = HashMap::with_capacity(tables.len());
    for table in tables {
        if by_name.insert(table.name, table).is_some() {
            return Err(ConflictReason::KeyTwice(table.name.to_owned()));
        }
    }
    Ok(by_name)
}

/// A table that one side removed must be unchanged on the other side.
fn refuse_change_of_removed(name: &str, tables: &ThreeWay<TablesByName<'_, '_, '_>>) -> Merged<()> {
    let [base, local, remote] = [&tables.base, &tables.local, &tables.remote].map(|tables| tables.get(name));
    match local.or(remote) {
        Some(kept) if base.is_none_or(|base| base.keys != kept.keys || base.header != kept.header) => {
            Err(ConflictReason::RemovedAndChanged(name.to_owned()))
        }
        _ => Ok(()),
    }
}

/// The lines of a table that remains.
fn merge_table<'t>(name: &str, tables: ThreeWay<Option<&TomlTable<'_, 't>>>) -> Merged<Vec<MergedLine<'t>>> {
    let (Some(local), Some(remote)) = (tables.local, tables.remote) else {
        let table = tables.local.or(tables.remote);
        let whole = table.map(|table| {
            let keys = ThreeWay { base: table.keys.clone(), local: table.keys.clone(), remote: table.keys.clone() };
            (table.lead, table.header, keys)
        });
        let Some((lead, header, keys)) = whole else { return Ok(Vec::new()) };
        let keys = merge_groups(&keys, GroupSyntax::Toml)?;
        return Ok(lead.iter().chain(header).copied().map(MergedLine::Kept).chain(keys).collect());
    };
    let part = |of: for<'x, 'a, 'y> fn(&'x TomlTable<'a, 'y>) -> &'a [&'y str]| {
        let parts = ThreeWay { base: tables.base.map(of), local: Some(of(local)), remote: Some(of(remote)) };
        parts.resolve().copied().flatten().ok_or_else(|| ConflictReason::SameKey(name.to_owned()))
    };
    let keys = ThreeWay {
        base: tables.base.map_or_else(GroupedLines::default, |table| table.keys.clone()),
        local: local.keys.clone(),
        remote: remote.keys.clone(),
    };
    let (lead, header) = (part(|table| table.lead)?, part(|table| table.header)?);
    let keys = merge_groups(&keys, GroupSyntax::Toml)?;
    Ok(lead.iter().chain(header).copied().map(MergedLine::Kept).chain(keys).collect())
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
    fn keys_of_tables_are_independent() {
        let base = "# top\na = 1\nb = 1\n\n[t] # a table\nc = 1\nd = [\n  1,\n]";
        let local = base.replace("a = 1", "a = 2").replace("  1,", "  1,\n  2,");
        let remote = base.replace("b = 1", "b = 3").replace("c = 1", "c = 4") + "\n\n[u]\ne = 1";
        let expected = "# top\na = 2\nb = 3\n\n[t] # a table\nc = 4\nd = [\n  1,\n  2,\n]\n\n[u]\ne = 1";
        assert_eq!(merged(base, &local, &remote).unwrap(), expected);
    }

    #[test]
    fn removed_table_against_a_change_is_a_conflict() {
        let base = "a = 1\n\n[t]\nb = 1";
        assert_eq!(
            merged(base, "a = 1", "a = 1\n\n[t]\nb = 2"),
            Err(ConflictReason::RemovedAndChanged("t".to_owned()))
        );
        assert_eq!(merged(base, "a = 1", "a = 2\n\n[t]\nb = 1").unwrap(), "a = 2");
    }

    #[test]
    fn one_key_in_two_spellings_is_a_conflict() {
        let result = merged("a = 1", "a = 1\nb = 1", "a = 1\n\"b\" = 2");
        assert_eq!(result, Err(ConflictReason::Broken(MergeDriver::Toml)));
    }

    #[test]
    fn lists_of_tables_are_merged_by_line() {
        let base = "[[p]]\nname = \"a\"\nsize = 1\n\n[[p]]\nname = \"b\"\nsize = 1";
        let local = base.replacen("size = 1", "size = 2", 1);
        let remote = base.replace("\"b\"\nsize = 1", "\"b\"\nsize = 3");
        let expected = "[[p]]\nname = \"a\"\nsize = 2\n\n[[p]]\nname = \"b\"\nsize = 3";
        assert_eq!(merged(base, &local, &remote).unwrap(), expected);
    }

    #[test]
    fn stamps_go_to_the_later_one() {
        let stamped = |time: &str| format!("updated = {time}\na = 1");
        let result = merged(&stamped("2026-11-01"), &stamped("2026-11-02"), &stamped("2026-11-03"));
        assert_eq!(result.unwrap(), stamped("2026-11-03"));
    }
}
