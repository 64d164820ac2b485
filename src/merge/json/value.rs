//! The merge of values: objects by key, arrays of objects by identity, and arrays of texts as a set to which both sides only
//! add. Any other array is one value.

use std::collections::{HashMap, HashSet};

use super::elements::{ElementIdentity, object_identities, text_identities};
use super::layout::{LaidOutPart, LayoutChoice, leads};
use super::tree::{JsonContent, JsonMember, JsonNode};
use crate::merge::order::merge_order;
use crate::merge::outcome::{ConflictReason, Merged};
use crate::merge::stamp;
use crate::merge::threeway::ThreeWay;

/// One value in the three texts. Without a base, both sides added it.
#[derive(Clone, Copy)]
pub(super) struct JsonVersions<'n, 't> {
    pub(super) base: Option<&'n JsonNode<'t>>,
    pub(super) local: &'n JsonNode<'t>,
    pub(super) remote: &'n JsonNode<'t>,
}

/// The text of a merged value. `key` is the key of the value, for stamps and for the reason of a conflict.
pub(super) fn merge_value(versions: JsonVersions<'_, '_>, key: &str, layout: &LayoutChoice) -> Merged<String> {
    let JsonVersions { base, local, remote } = versions;
    let Some(base) = base else {
        let same = ThreeWay { base: "", local: local.text, remote: remote.text };
        return if local.means(remote) {
            Ok(layout.choose(same).to_owned())
        } else {
            later_stamp(key, local, remote).ok_or_else(|| ConflictReason::AddedTwice(key.to_owned()))
        };
    };
    let texts = ThreeWay { base: base.text, local: local.text, remote: remote.text };
    if let Some(text) = texts.resolve() {
        return Ok((*text).to_owned());
    }
    match [&base.content, &local.content, &remote.content] {
        [JsonContent::Object(b), JsonContent::Object(l), JsonContent::Object(r)] => {
            let members = ThreeWay { base: &b[..], local: &l[..], remote: &r[..] };
            let nodes = ThreeWay { base, local, remote };
            return merge_members(&nodes, &members, layout);
        }
        [JsonContent::Array(b), JsonContent::Array(l), JsonContent::Array(r)] => {
            let elements = ThreeWay { base: &b[..], local: &l[..], remote: &r[..] };
            let nodes = ThreeWay { base, local, remote };
            if let Some(merged) = merge_elements(&nodes, &elements, layout)? {
                return Ok(merged);
            }
        }
        _ => {}
    }
    if local.means(remote) {
        Ok(layout.choose(texts).to_owned())
    } else if local.means(base) {
        Ok(remote.text.to_owned())
    } else if remote.means(base) {
        Ok(local.text.to_owned())
    } else {
        later_stamp(key, local, remote).ok_or_else(|| ConflictReason::SameKey(key.to_owned()))
    }
}

fn later_stamp(key: &str, local: &JsonNode<'_>, remote: &JsonNode<'_>) -> Option<String> {
    let are_scalars = local.scalar().is_some() && remote.scalar().is_some();
    if !are_scalars || !stamp::is_stamp_key(key) {
        return None;
    }
    stamp::later(local.text, remote.text).map(str::to_owned)
}

/// A member, and the text with the comma before it.
type PlacedMember<'n, 't> = (&'n JsonMember<'t>, Option<&'t str>);

fn merge_members<'n, 't>(
    nodes: &ThreeWay<&'n JsonNode<'t>>,
    members: &ThreeWay<&'n [JsonMember<'t>]>,
    layout: &LayoutChoice,
) -> Merged<String> {
    let leads = nodes.map(|node| leads(node));
    let by_key = ThreeWay {
        base: members_by_key(members.base, &leads.base),
        local: members_by_key(members.local, &leads.local),
        remote: members_by_key(members.remote, &leads.remote),
    };
    for member in members.base {
        refuse_change_of_removed(member, &by_key)?;
    }
    let keys = members.map(|members| members.iter().map(|member| member.key.as_ref()).collect::<Vec<&str>>());
    // The order of keys means nothing, so it is no conflict.
    let order = merge_order(&keys);
    let parts = order.keys.iter().map(|key| {
        let placed = by_key.map(|members| members.get(key).copied());
        let text = member_text(&placed, layout)?;
        Ok(LaidOutPart { leads: placed.map(|placed| placed.and_then(|(_, lead)| lead)), text })
    });
    Ok(layout.write(nodes, &parts.collect::<Merged<Vec<_>>>()?))
}

fn members_by_key<'n, 't>(
    members: &'n [JsonMember<'t>],
    leads: &[Option<&'t str>],
) -> HashMap<&'n str, PlacedMember<'n, 't>> {
    members.iter().zip(leads).map(|(member, lead)| (member.key.as_ref(), (member, *lead))).collect()
}

/// A member that one side removed must be unchanged on the other side.
fn refuse_change_of_removed(
    base: &JsonMember<'_>,
    by_key: &ThreeWay<HashMap<&str, PlacedMember<'_, '_>>>,
) -> Merged<()> {
    let of = |members: &HashMap<&str, PlacedMember<'_, '_>>| {
        members.get(base.key.as_ref()).map(|(member, _)| member.value.means(&base.value))
    };
    match (of(&by_key.local), of(&by_key.remote)) {
        (Some(false), None) | (None, Some(false)) => Err(ConflictReason::RemovedAndChanged(base.key.to_string())),
        _ => Ok(()),
    }
}

/// The text of a member that remains: key, colon and value.
fn member_text(placed: &ThreeWay<Option<PlacedMember<'_, '_>>>, layout: &LayoutChoice) -> Merged<String> {
    let member = placed.map(|placed| placed.map(|(member, _)| member));
    let (Some(local), Some(remote)) = (member.local, member.remote) else {
        let added = member.local.or(member.remote);
        return Ok(added.map(|m| format!("{}{}{}", m.name, m.colon, m.value.text)).unwrap_or_default());
    };
    let base = member.base;
    let name = ThreeWay { base: base.map(|m| m.name), local: Some(local.name), remote: Some(remote.name) };
    let colon = ThreeWay { base: base.map(|m| m.colon), local: Some(local.colon), remote: Some(remote.colon) };
    let versions = JsonVersions { base: base.map(|m| &m.value), local: &local.value, remote: &remote.value };
    let value = merge_value(versions, &local.key, layout)?;
    let [name, colon] = [name, colon].map(|part| layout.choose(part).unwrap_or_default());
    Ok(format!("{name}{colon}{value}"))
}

/// `None` if the array is one value.
fn merge_elements<'n, 't>(
    nodes: &ThreeWay<&'n JsonNode<'t>>,
    elements: &ThreeWay<&'n [JsonNode<'t>]>,
    layout: &LayoutChoice,
) -> Merged<Option<String>> {
    if let Some(identities) = object_identities(elements) {
        return merge_objects(nodes, elements, &identities, layout).map(Some);
    }
    Ok(text_identities(elements).and_then(|texts| merge_texts(nodes, elements, &texts, layout)))
}

/// An element, and the text with the comma before it.
type PlacedElement<'n, 't> = (&'n JsonNode<'t>, Option<&'t str>);

fn placed_elements<'n, 't>(
    nodes: &ThreeWay<&'n JsonNode<'t>>,
    elements: &ThreeWay<&'n [JsonNode<'t>]>,
    identities: &ThreeWay<Vec<ElementIdentity<'n>>>,
) -> ThreeWay<HashMap<ElementIdentity<'n>, PlacedElement<'n, 't>>> {
    let leads = nodes.map(|node| leads(node));
    let place = |elements: &'n [JsonNode<'t>], leads: &[Option<&'t str>], identities: &[ElementIdentity<'n>]| {
        identities.iter().copied().zip(elements.iter().zip(leads.iter().copied())).collect()
    };
    ThreeWay {
        base: place(elements.base, &leads.base, &identities.base),
        local: place(elements.local, &leads.local, &identities.local),
        remote: place(elements.remote, &leads.remote, &identities.remote),
    }
}

fn merge_objects<'n, 't>(
    nodes: &ThreeWay<&'n JsonNode<'t>>,
    elements: &ThreeWay<&'n [JsonNode<'t>]>,
    identities: &ThreeWay<Vec<ElementIdentity<'n>>>,
    layout: &LayoutChoice,
) -> Merged<String> {
    let placed = placed_elements(nodes, elements, identities);
    for (identity, base) in identities.base.iter().zip(elements.base) {
        let is_kept = |side: &HashMap<ElementIdentity<'_>, PlacedElement<'_, '_>>| {
            side.get(identity).map(|(element, _)| element.means(base))
        };
        if let (Some(false), None) | (None, Some(false)) = (is_kept(&placed.local), is_kept(&placed.remote)) {
            return Err(ConflictReason::RemovedAndChanged(identity.1.to_owned()));
        }
    }
    let order = merge_order(identities);
    if !order.is_agreed {
        return Err(ConflictReason::Reordered);
    }
    let parts = order.keys.iter().map(|identity| {
        let element = placed.map(|elements| elements.get(identity).copied());
        let text = match (element.local, element.remote) {
            (Some((local, _)), Some((remote, _))) => {
                let versions = JsonVersions { base: element.base.map(|(base, _)| base), local, remote };
                merge_value(versions, identity.1, layout)?
            }
            (one, other) => one.or(other).map(|(node, _)| node.text.to_owned()).unwrap_or_default(),
        };
        Ok(LaidOutPart { leads: element.map(|element| element.and_then(|(_, lead)| lead)), text })
    });
    Ok(layout.write(nodes, &parts.collect::<Merged<Vec<_>>>()?))
}

/// `None` unless both sides only add texts.
fn merge_texts<'n, 't>(
    nodes: &ThreeWay<&'n JsonNode<'t>>,
    elements: &ThreeWay<&'n [JsonNode<'t>]>,
    identities: &ThreeWay<Vec<ElementIdentity<'n>>>,
    layout: &LayoutChoice,
) -> Option<String> {
    let keeps_base = |side: &[ElementIdentity<'_>]| {
        let known: HashSet<_> = identities.base.iter().collect();
        side.iter().filter(|text| known.contains(text)).eq(identities.base.iter())
    };
    if !keeps_base(&identities.local) || !keeps_base(&identities.remote) {
        return None;
    }
    let placed = placed_elements(nodes, elements, identities);
    let parts = merge_order(identities).keys.into_iter().map(|text| {
        let element = placed.map(|elements| elements.get(&text).copied());
        let node = element.local.or(element.remote).map_or("", |(node, _)| node.text);
        let texts = element.map(|element| element.map(|(node, _)| node.text));
        let text =
            if texts.local.is_some() && texts.remote.is_some() { layout.choose(texts).unwrap_or(node) } else { node };
        LaidOutPart { leads: element.map(|element| element.and_then(|(_, lead)| lead)), text: text.to_owned() }
    });
    Some(layout.write(nodes, &parts.collect::<Vec<_>>()))
}
