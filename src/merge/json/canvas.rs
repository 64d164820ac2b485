//! A drawing of boxes and arrows, such as a `.canvas` file: each arrow needs the boxes at its ends.

use std::collections::HashSet;

use super::tree::{JsonContent, JsonNode};
use crate::merge::outcome::{ConflictReason, Merged};
use crate::merge::threeway::ThreeWay;

/// Refuses a result in which an arrow has lost a box: one version removed the box, and the other one drew the arrow.
pub(super) fn check_edges(versions: &ThreeWay<JsonNode<'_>>, result: &JsonNode<'_>) -> Merged<()> {
    let loose = loose_ends(result);
    if loose.is_empty() {
        return Ok(());
    }
    let known: HashSet<&str> = versions.iter().flat_map(|version| loose_ends(version)).collect();
    match loose.into_iter().filter(|end| !known.contains(end)).min() {
        Some(end) => Err(ConflictReason::RemovedAndChanged(end.to_owned())),
        None => Ok(()),
    }
}

/// The boxes that arrows name and that are not there.
fn loose_ends<'n>(drawing: &'n JsonNode<'_>) -> Vec<&'n str> {
    let (Some(nodes), Some(edges)) = (elements_of(drawing, "nodes"), elements_of(drawing, "edges")) else {
        return Vec::new();
    };
    let text_of = |node: &'n JsonNode<'_>, key: &str| node.member(key)?.scalar().map(|(_, text)| text);
    let boxes: HashSet<&str> = nodes.iter().filter_map(|node| text_of(node, "id")).collect();
    let ends = edges.iter().flat_map(|edge| ["fromNode", "toNode"].map(|key| text_of(edge, key)));
    ends.flatten().filter(|end| !boxes.contains(end)).collect()
}

fn elements_of<'n, 't>(node: &'n JsonNode<'t>, key: &str) -> Option<&'n [JsonNode<'t>]> {
    match &node.member(key)?.content {
        JsonContent::Array(elements) => Some(elements),
        _ => None,
    }
}
