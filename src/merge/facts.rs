//! The run-time check of a merge: nothing is lost and nothing is invented. A fact is a line, or a key with its value. The
//! merged text has each fact as often as the three texts allow.

use std::collections::HashMap;
use std::hash::Hash;

use super::threeway::ThreeWay;

/// How often a fact is there: in base, local, remote, and in the result.
type FactCounts = [i64; 4];

/// True if `result` has every fact that a side added, no fact that a side removed, and no other fact.
pub(super) fn are_kept<F: Hash + Eq>(sides: ThreeWay<Vec<F>>, result: Vec<F>) -> bool {
    let mut counts: HashMap<F, FactCounts> = HashMap::with_capacity(result.len());
    let ThreeWay { base, local, remote } = sides;
    for (at, facts) in [base, local, remote, result].into_iter().enumerate() {
        for fact in facts {
            counts.entry(fact).or_default()[at] += 1;
        }
    }
    counts.values().all(|[base, local, remote, result]| {
        let (least, most) = bounds(*base, *local, *remote);
        (least..=most).contains(result)
    })
}

/// Both sides may have made the same change, which counts once. So two changes allow a range.
fn bounds(base: i64, local: i64, remote: i64) -> (i64, i64) {
    let (by_local, by_remote) = (local - base, remote - base);
    let both = base + by_local + by_remote;
    if by_local > 0 && by_remote > 0 {
        (local.max(remote), both)
    } else if by_local < 0 && by_remote < 0 {
        (both.max(0), local.min(remote))
    } else {
        (both, both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(base: &str, local: &str, remote: &str, result: &str) -> bool {
        let facts = |text: &str| text.chars().collect::<Vec<_>>();
        are_kept(ThreeWay { base: facts(base), local: facts(local), remote: facts(remote) }, facts(result))
    }

    #[test]
    fn additions_and_removals_of_both_sides_hold() {
        assert!(holds("ab", "abc", "b", "bc"));
        assert!(holds("a", "ax", "ax", "ax"), "the same addition once");
        assert!(holds("a", "ax", "ax", "axx"), "or twice");
        assert!(holds("aa", "aaa", "aa", "aaa"));
    }

    #[test]
    fn lost_and_invented_facts_are_found() {
        assert!(!holds("ab", "abc", "b", "b"), "an addition is lost");
        assert!(!holds("ab", "abc", "b", "abc"), "a removed fact is back");
        assert!(!holds("a", "ax", "ay", "axyz"), "a fact of no side");
        assert!(!holds("a", "a", "a", "aa"), "a fact is doubled");
        assert!(!holds("aab", "ab", "aab", "aab"), "one of two equal facts is back");
    }
}
