//! The order of keys or elements after a merge: which of them remain, and where the new ones stand.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::threeway::ThreeWay;

/// The order of three lists without equal elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MergedOrder<K> {
    /// Elements of all three lists, and elements that a side added.
    pub(super) keys: Vec<K>,
    /// False if both sides reordered the common elements differently. Then the order of the base remains.
    pub(super) is_agreed: bool,
}

/// Merges the orders of three lists. Each list has no element twice. An element that one side removed is removed.
pub(super) fn merge_order<K: Copy + Eq + Hash + Ord>(lists: &ThreeWay<Vec<K>>) -> MergedOrder<K> {
    if let Some(list) = lists.resolve() {
        return MergedOrder { keys: list.clone(), is_agreed: true };
    }
    let sets = lists.map(|list| list.iter().copied().collect::<HashSet<K>>());
    let is_common = |key: &K| sets.iter().all(|set| set.contains(key));
    let common = lists.map(|list| list.iter().copied().filter(is_common).collect::<Vec<K>>());
    let agreed = common.resolve();
    let is_agreed = agreed.is_some();
    let order = agreed.unwrap_or(&common.base);
    let is_new = |key: &K| !sets.base.contains(key);
    let [local, remote] = [&lists.local, &lists.remote].map(|list| runs_of_new(list, is_common, is_new));
    let mut keys = Vec::with_capacity(order.len());
    let mut seen = HashSet::new();
    for anchor in std::iter::once(None).chain(order.iter().copied().map(Some)) {
        keys.extend(anchor);
        let run = |runs: &HashMap<Option<K>, Vec<K>>| runs.get(&anchor).cloned().unwrap_or_default();
        let (one, other) = (run(&local), run(&remote));
        let (first, second) = if one <= other { (one, other) } else { (other, one) };
        keys.extend(first.into_iter().chain(second).filter(|key| seen.insert(*key)));
    }
    MergedOrder { keys, is_agreed }
}

/// The new elements behind each common element, and before the first one (`None`).
fn runs_of_new<K: Copy + Eq + Hash>(
    list: &[K],
    is_common: impl Fn(&K) -> bool,
    is_new: impl Fn(&K) -> bool,
) -> HashMap<Option<K>, Vec<K>> {
    let mut runs: HashMap<Option<K>, Vec<K>> = HashMap::new();
    let mut anchor = None;
    for key in list {
        if is_common(key) {
            anchor = Some(*key);
        } else if is_new(key) {
            runs.entry(anchor).or_default().push(*key);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(base: &str, local: &str, remote: &str) -> (String, bool) {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        let lists = ThreeWay { base: chars(base), local: chars(local), remote: chars(remote) };
        let order = merge_order(&lists);
        let swapped = ThreeWay { base: lists.base, local: lists.remote, remote: lists.local };
        assert_eq!(order, merge_order(&swapped));
        (order.keys.into_iter().collect(), order.is_agreed)
    }

    #[test]
    fn removals_and_additions_of_both_sides_hold() {
        assert_eq!(merged("abc", "ac", "abcd"), ("acd".to_owned(), true));
        assert_eq!(merged("a", "ax", "ay"), ("axy".to_owned(), true));
        assert_eq!(merged("", "ba", "c"), ("bac".to_owned(), true));
        assert_eq!(merged("ab", "axb", "axb"), ("axb".to_owned(), true));
        assert_eq!(merged("ab", "axb", "abx"), ("axb".to_owned(), true));
        assert_eq!(merged("abc", "abxc", "ac"), ("axc".to_owned(), true));
    }

    #[test]
    fn order_of_the_side_that_changed_it_wins() {
        assert_eq!(merged("abc", "bca", "abcd"), ("bcda".to_owned(), true));
        assert_eq!(merged("abc", "bca", "cab"), ("abc".to_owned(), false));
    }
}
