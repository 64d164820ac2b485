//! The identities of array elements.

use std::collections::HashSet;

use super::tree::{JsonContent, JsonNode};
use crate::merge::data::IDENTITY_KEYS;
use crate::merge::threeway::ThreeWay;

/// The identity of an element. Texts and numbers differ.
pub(super) type ElementIdentity<'n> = (bool, &'n str);

/// The values of the first key by which all elements of all versions are known.
pub(super) fn object_identities<'n>(
    elements: &ThreeWay<&'n [JsonNode<'_>]>,
) -> Option<ThreeWay<Vec<ElementIdentity<'n>>>> {
    IDENTITY_KEYS.iter().find_map(|key| values_of(elements, key))
}

/// The values of `key`, if all elements of all versions have one and no version has one twice.
fn values_of<'n>(elements: &ThreeWay<&'n [JsonNode<'_>]>, key: &str) -> Option<ThreeWay<Vec<ElementIdentity<'n>>>> {
    let of = |elements: &&'n [JsonNode<'_>]| {
        distinct(elements.iter().map(|e| e.member(key)?.scalar()).collect::<Option<_>>())
    };
    elements.try_map(|elements| of(elements).ok_or(())).ok()
}

/// The elements themselves, if all of them are texts.
pub(super) fn text_identities<'n>(
    elements: &ThreeWay<&'n [JsonNode<'_>]>,
) -> Option<ThreeWay<Vec<ElementIdentity<'n>>>> {
    let of = |elements: &&'n [JsonNode<'_>]| {
        let is_text = |element: &JsonNode<'_>| matches!(element.content, JsonContent::Text(_));
        distinct(elements.iter().map(|e| e.scalar().filter(|_| is_text(e))).collect::<Option<_>>())
    };
    elements.try_map(|elements| of(elements).ok_or(())).ok()
}

fn distinct(identities: Option<Vec<ElementIdentity<'_>>>) -> Option<Vec<ElementIdentity<'_>>> {
    identities.filter(|all| all.iter().collect::<HashSet<_>>().len() == all.len())
}
