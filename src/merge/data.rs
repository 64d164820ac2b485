//! The content of a data file as keys and values, whatever its syntax is, and the run-time check of such content.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::facts;
use super::outcome::{ConflictReason, Merged};
use super::stamp;
use super::threeway::ThreeWay;

/// Data files nest no deeper.
pub(super) const MAX_DEPTH: usize = 128;

/// The keys by which the objects of a list are known, the best one first.
pub(super) const IDENTITY_KEYS: &[&str] = &["id", "key", "name"];

/// A value of a parsed file.
pub(super) trait DataTree: Sized {
    fn view(&self) -> DataView<'_, Self>;

    /// The value of a key, if this is a map.
    fn member(&self, key: &str) -> Option<&Self>;

    /// Equal for values that mean the same.
    fn meaning(&self) -> u64;
}

/// One level of a value.
pub(super) enum DataView<'v, T> {
    Scalar(Cow<'v, str>),
    List(&'v [T]),
    Map(Vec<(&'v str, &'v T)>),
}

/// A value without a text of its own.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DataValue<'t> {
    content: DataContent<'t>,
    meaning: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum DataContent<'t> {
    Scalar(Cow<'t, str>),
    List(Vec<DataValue<'t>>),
    Map(Vec<(Cow<'t, str>, DataValue<'t>)>),
}

impl<'t> DataValue<'t> {
    pub(super) fn new(content: DataContent<'t>) -> Self {
        let meaning = match &content {
            DataContent::Scalar(text) => hash_of((1u8, text)),
            DataContent::List(elements) => {
                hash_of((2u8, elements.iter().map(|element| element.meaning).collect::<Vec<_>>()))
            }
            // The order of keys means nothing.
            DataContent::Map(members) => {
                members.iter().fold(3, |sum: u64, (key, value)| sum.wrapping_add(hash_of((key, value.meaning))))
            }
        };
        Self { content, meaning }
    }

    pub(super) fn scalar(text: Cow<'t, str>) -> Self {
        Self::new(DataContent::Scalar(text))
    }

    /// The text of a scalar. A list or a map as a key of a map is known by its meaning.
    pub(super) fn into_key(self) -> Cow<'t, str> {
        match self.content {
            DataContent::Scalar(text) => text,
            DataContent::List(_) | DataContent::Map(_) => Cow::Owned(format!("?{}", self.meaning)),
        }
    }
}

impl DataTree for DataValue<'_> {
    fn view(&self) -> DataView<'_, Self> {
        match &self.content {
            DataContent::Scalar(text) => DataView::Scalar(Cow::Borrowed(text)),
            DataContent::List(elements) => DataView::List(elements),
            DataContent::Map(members) => {
                DataView::Map(members.iter().map(|(key, value)| (key.as_ref(), value)).collect())
            }
        }
    }

    fn member(&self, key: &str) -> Option<&Self> {
        let DataContent::Map(members) = &self.content else { return None };
        members.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn meaning(&self) -> u64 {
        self.meaning
    }
}

pub(super) fn hash_of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A fact is a place, and the meaning of the value there.
type DataFact = (u64, u64);

/// One place in base, local, remote and the result.
type PlaceVersions<'v, T> = [Option<&'v T>; 4];

/// Refuses merged data that lost a value, or has one that no side has. The values of stamps do not count.
pub(super) fn check_data<T: DataTree>(sides: &ThreeWay<T>, result: &T) -> Merged<()> {
    let mut facts: [Vec<DataFact>; 4] = Default::default();
    let root = [&sides.base, &sides.local, &sides.remote, result].map(Some);
    let mut open: Vec<(u64, PlaceVersions<'_, T>)> = vec![(0, root)];
    // Values that are equal in all four are kept.
    while let Some((place, versions)) = open.pop() {
        let is_equal = versions.iter().all(|v| v.map(T::meaning) == versions[0].map(T::meaning));
        if !is_equal {
            compare_place(place, versions, &mut open, &mut facts);
        }
    }
    let [base, local, remote, result] = facts;
    if are_moved_apart(&base, &local, &remote) {
        return Err(ConflictReason::MovedApart);
    }
    if facts::are_kept(ThreeWay { base, local, remote }, result) { Ok(()) } else { Err(ConflictReason::CheckFailed) }
}

/// True if both versions took a value from its place, and each put it elsewhere.
fn are_moved_apart(base: &[DataFact], local: &[DataFact], remote: &[DataFact]) -> bool {
    let [old, ours, theirs] = [base, local, remote].map(|facts| facts.iter().copied().collect::<HashSet<_>>());
    let left: HashSet<u64> = local.iter().chain(remote).map(|(place, _)| *place).collect();
    let taken: HashSet<u64> = base.iter().filter(|(place, _)| !left.contains(place)).map(|(_, value)| *value).collect();
    let added_again = |side: &HashSet<DataFact>, other: &HashSet<DataFact>| -> HashSet<u64> {
        let is_new = |fact: &&DataFact| !old.contains(fact) && !other.contains(fact) && taken.contains(&fact.1);
        side.iter().filter(is_new).map(|(_, value)| *value).collect()
    };
    !taken.is_empty() && !added_again(&ours, &theirs).is_disjoint(&added_again(&theirs, &ours))
}

/// Adds the places below this one, or the facts of this place.
fn compare_place<'v, T: DataTree>(
    place: u64,
    versions: PlaceVersions<'v, T>,
    open: &mut Vec<(u64, PlaceVersions<'v, T>)>,
    facts: &mut [Vec<DataFact>; 4],
) {
    let Some(children) = children_of(&versions) else {
        for (facts, version) in facts.iter_mut().zip(versions) {
            match version.map(|value| (value.view(), value.meaning())) {
                Some((DataView::List(elements), _)) => facts.extend(elements.iter().map(|e| (place, e.meaning()))),
                Some((_, meaning)) => facts.push((place, meaning)),
                None => {}
            }
        }
        return;
    };
    // An empty map is a value too.
    for (facts, _) in facts.iter_mut().zip(&children).filter(|(_, children)| children.is_some()) {
        facts.push((place, 0));
    }
    if let Some(aligned) = aligned_children(&children) {
        open.extend(aligned.into_iter().filter(counts).map(|(key, versions)| (hash_of((place, key)), versions)));
        return;
    }
    let mut below: HashMap<&str, PlaceVersions<'v, T>> = HashMap::new();
    for (at, children) in children.into_iter().enumerate() {
        for (key, child) in children.into_iter().flatten() {
            below.entry(key).or_insert([None; 4])[at] = Some(child);
        }
    }
    open.extend(below.into_iter().filter(counts).map(|(key, versions)| (hash_of((place, key)), versions)));
}

/// The values of stamps do not count.
fn counts<T: DataTree>((key, versions): &(&str, PlaceVersions<'_, T>)) -> bool {
    let is_scalar = versions.iter().flatten().all(|value| matches!(value.view(), DataView::Scalar(_)));
    !(is_scalar && stamp::is_stamp_key(key))
}

/// The children that differ, if all versions have children of the same names in the same order.
fn aligned_children<'v, T: DataTree>(
    children: &[Option<NamedChildren<'v, T>>; 4],
) -> Option<Vec<(&'v str, PlaceVersions<'v, T>)>> {
    let [Some(base), Some(local), Some(remote), Some(result)] = children else { return None };
    let others = [local, remote, result];
    if others.iter().any(|other| other.len() != base.len()) {
        return None;
    }
    let mut differing = Vec::new();
    for (at, (name, child)) in base.iter().enumerate() {
        if others.iter().any(|other| other[at].0 != *name) {
            return None;
        }
        if others.iter().any(|other| other[at].1.meaning() != child.meaning()) {
            differing.push((*name, [Some(*child), Some(local[at].1), Some(remote[at].1), Some(result[at].1)]));
        }
    }
    Some(differing)
}

/// The children of a value with the names by which they are known.
type NamedChildren<'v, T> = Vec<(&'v str, &'v T)>;

/// The children of all versions, if all of them are maps, or lists whose elements have identities.
fn children_of<'v, T: DataTree>(versions: &PlaceVersions<'v, T>) -> Option<[Option<NamedChildren<'v, T>>; 4]> {
    let views = versions.map(|version| version.map(T::view));
    let is_map = |view: &Option<DataView<'_, T>>| view.as_ref().is_none_or(|view| matches!(view, DataView::Map(_)));
    let is_list = |view: &Option<DataView<'_, T>>| view.as_ref().is_none_or(|view| matches!(view, DataView::List(_)));
    if views.iter().all(is_map) {
        return Some(views.map(|view| match view? {
            DataView::Map(members) => Some(members),
            DataView::Scalar(_) | DataView::List(_) => None,
        }));
    }
    if !views.iter().all(is_list) {
        return None;
    }
    let elements = views.map(|view| match view {
        Some(DataView::List(elements)) => Some(elements),
        _ => None,
    });
    IDENTITY_KEYS.iter().find_map(|key| {
        let named = elements.map(|elements| elements.map(|elements| named_elements(elements, key)));
        let is_named = named.iter().all(|named| named.as_ref().is_none_or(Option::is_some));
        let named = is_named.then(|| named.map(Option::flatten))?;
        let is_distinct = aligned_children(&named).is_some() || named.iter().flatten().all(has_distinct_names);
        is_distinct.then_some(named)
    })
}

/// The elements with the values of `key`, if each of them has one.
fn named_elements<'v, T: DataTree>(elements: &'v [T], key: &str) -> Option<NamedChildren<'v, T>> {
    let name = |element: &'v T| match element.member(key)?.view() {
        DataView::Scalar(Cow::Borrowed(text)) => Some((text, element)),
        _ => None,
    };
    let mut named = Vec::with_capacity(elements.len());
    for element in elements {
        named.push(name(element)?);
    }
    Some(named)
}

fn has_distinct_names<T>(children: &NamedChildren<'_, T>) -> bool {
    let mut names = HashSet::with_capacity(children.len());
    children.iter().all(|(name, _)| names.insert(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{key: value}` for each pair, in a list.
    fn list(maps: &[&[(&'static str, &'static str)]]) -> DataValue<'static> {
        let scalar = |text: &'static str| DataValue::scalar(Cow::Borrowed(text));
        let map = |members: &&[(&'static str, &'static str)]| {
            let members = members.iter().map(|(key, text)| (Cow::Borrowed(*key), scalar(text)));
            DataValue::new(DataContent::Map(members.collect()))
        };
        DataValue::new(DataContent::List(maps.iter().map(map).collect()))
    }

    type Maps = &'static [&'static [(&'static str, &'static str)]];

    fn holds(base: Maps, local: Maps, remote: Maps, result: Maps) -> bool {
        let sides = ThreeWay { base: list(base), local: list(local), remote: list(remote) };
        check_data(&sides, &list(result)).is_ok()
    }

    const ONE: &[(&str, &str)] = &[("id", "1"), ("t", "a")];
    const ONE_NEW: &[(&str, &str)] = &[("id", "1"), ("t", "b")];
    const TWO: &[(&str, &str)] = &[("id", "2")];

    #[test]
    fn changes_of_elements_hold_or_are_found_missing() {
        assert!(holds(&[ONE], &[ONE_NEW], &[ONE, TWO], &[ONE_NEW, TWO]));
        assert!(!holds(&[ONE], &[ONE_NEW], &[ONE, TWO], &[ONE, TWO]), "a change is lost");
        assert!(!holds(&[ONE], &[ONE_NEW], &[ONE, TWO], &[ONE_NEW]), "an element is lost");
        assert!(!holds(&[ONE, TWO], &[ONE], &[ONE_NEW, TWO], &[ONE_NEW, TWO]), "a removed element is back");
        assert!(!holds(&[], &[], &[ONE], &[ONE, TWO]), "an element is invented");
    }

    #[test]
    fn stamps_do_not_count() {
        let stamped: [Maps; 3] = [
            &[&[("id", "1"), ("updated", "1")]],
            &[&[("id", "1"), ("updated", "2")]],
            &[&[("id", "1"), ("updated", "3")]],
        ];
        assert!(holds(stamped[0], stamped[1], stamped[2], stamped[2]));
    }
}
