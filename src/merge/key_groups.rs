//! Lines in groups of one key each, as in front matter, flat YAML and the tables of TOML: the merge of such groups.

use std::collections::{HashMap, HashSet};

use super::lines::merge_lines;
use super::merged_line::MergedLine;
use super::order::merge_order;
use super::outcome::{ConflictReason, Merged};
use super::stamp;
use super::tag_list;
use super::threeway::ThreeWay;
use super::units::{self, LineStyle};

/// The lines of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyGroup<'a, 't> {
    pub(super) key: &'t str,
    /// Comments and blank lines before the key.
    pub(super) lead: &'a [&'t str],
    /// The line of the key, and the lines of its value.
    pub(super) body: &'a [&'t str],
}

/// The groups of a text, and the comments and blank lines behind the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GroupedLines<'a, 't> {
    pub(super) groups: Vec<KeyGroup<'a, 't>>,
    pub(super) tail: &'a [&'t str],
}

/// The separator of key and value, and the rules for values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupSyntax {
    Yaml,
    Toml,
}

impl GroupSyntax {
    fn separator(self) -> char {
        match self {
            Self::Yaml => ':',
            Self::Toml => '=',
        }
    }
}

/// Merges groups by key.
pub(super) fn merge_groups<'t>(
    texts: &ThreeWay<GroupedLines<'_, 't>>,
    syntax: GroupSyntax,
) -> Merged<Vec<MergedLine<'t>>> {
    let by_key = texts.try_map(|text| groups_by_key(&text.groups))?;
    let keys = texts.map(|text| text.groups.iter().map(|group| group.key).collect::<Vec<_>>());
    let order = merge_order(&keys);
    if !order.is_agreed {
        return Err(ConflictReason::Reordered);
    }
    let mut out = Vec::new();
    for key in &order.keys {
        merge_group(key, by_key.map(|groups| groups.get(key).copied()), syntax, &mut out)?;
    }
    let kept: HashSet<&str> = order.keys.iter().copied().collect();
    for key in keys.base.iter().filter(|key| !kept.contains(*key)) {
        refuse_change_of_removed(key, by_key.map(|groups| groups.get(key).copied()))?;
    }
    let tail = texts.map(|text| text.tail);
    let tail = tail.resolve().ok_or_else(|| ConflictReason::SameKey("#".to_owned()))?;
    out.extend(tail.iter().copied().map(MergedLine::Kept));
    Ok(out)
}

fn groups_by_key<'a, 't>(groups: &[KeyGroup<'a, 't>]) -> Merged<HashMap<&'t str, KeyGroup<'a, 't>>> {
    let mut by_key = HashMap::with_capacity(groups.len());
    for group in groups {
        if by_key.insert(group.key, *group).is_some() {
            return Err(ConflictReason::KeyTwice(group.key.to_owned()));
        }
    }
    Ok(by_key)
}

/// A key that one side removed must be unchanged on the other side.
fn refuse_change_of_removed(key: &str, groups: ThreeWay<Option<KeyGroup<'_, '_>>>) -> Merged<()> {
    let kept = groups.local.or(groups.remote);
    match (kept, groups.base) {
        (Some(kept), Some(base)) if kept.body != base.body => Err(ConflictReason::RemovedAndChanged(key.to_owned())),
        (Some(kept), Some(base)) if kept.lead != base.lead => Err(ConflictReason::RemovedAndChanged(key.to_owned())),
        _ => Ok(()),
    }
}

/// The group of a key that remains.
fn merge_group<'t>(
    key: &str,
    groups: ThreeWay<Option<KeyGroup<'_, 't>>>,
    syntax: GroupSyntax,
    out: &mut Vec<MergedLine<'t>>,
) -> Merged<()> {
    let conflict = || match groups.base {
        Some(_) => ConflictReason::SameKey(key.to_owned()),
        None => ConflictReason::AddedTwice(key.to_owned()),
    };
    let (Some(local), Some(remote)) = (groups.local, groups.remote) else {
        let added = groups.local.or(groups.remote);
        let lines = added.iter().flat_map(|group| group.lead.iter().chain(group.body));
        out.extend(lines.copied().map(MergedLine::Kept));
        return Ok(());
    };
    let base_lead = groups.base.map(|base| base.lead);
    let lead = ThreeWay { base: base_lead, local: Some(local.lead), remote: Some(remote.lead) };
    let lead = lead.resolve().copied().flatten().ok_or_else(conflict)?;
    out.extend(lead.iter().copied().map(MergedLine::Kept));
    let body = ThreeWay { base: groups.base.map(|base| base.body), local: Some(local.body), remote: Some(remote.body) };
    if let Some(lines) = body.resolve().copied().flatten() {
        out.extend(lines.iter().copied().map(MergedLine::Kept));
        return Ok(());
    }
    let later = later_stamp(key, local.body, remote.body, syntax).map(|line| vec![MergedLine::Stamp(line)]);
    let base = groups.base.map_or(&[][..], |base| base.body);
    let bodies = ThreeWay { base, local: local.body, remote: remote.body };
    let merged = later.or_else(|| match syntax {
        GroupSyntax::Yaml => tag_list::merge(key, &bodies).or_else(|| merge_nested(&bodies)),
        GroupSyntax::Toml => None,
    });
    out.extend(merged.ok_or_else(conflict)?);
    Ok(())
}

/// The value of a key that has several lines, by line. The caller checks that the result means the right thing.
fn merge_nested<'t>(bodies: &ThreeWay<&[&'t str]>) -> Option<Vec<MergedLine<'t>>> {
    if bodies.iter().any(|body| body.len() < 2) {
        return None;
    }
    let below = bodies.map(|body| body[1..].to_vec());
    let are_items = below.iter().all(|lines| units::are_items(lines, LineStyle::Note));
    let head = bodies.map(|body| body[0]).resolve().copied()?;
    let lines = merge_lines(&below, if are_items { LineStyle::Note } else { LineStyle::Strict }).ok()?;
    Some([head].into_iter().chain(lines).map(MergedLine::Kept).collect())
}

/// The line with the later stamp, if the key is one of a stamp and both lines have one.
fn later_stamp<'t>(key: &str, local: &[&'t str], remote: &[&'t str], syntax: GroupSyntax) -> Option<&'t str> {
    let ([one], [other]) = (local, remote) else { return None };
    if !stamp::is_stamp_key(key) {
        return None;
    }
    let value = |line: &'t str| line.split_once(syntax.separator()).map(|(_, value)| value);
    let (a, b) = (value(one)?, value(other)?);
    let later = stamp::later(a, b)?;
    Some(if a == b {
        one.max(other)
    } else if later == a {
        one
    } else {
        other
    })
}
