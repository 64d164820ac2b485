//! Properties that hold for every merge of random notes. The checks here are their own: they do not use the ones of the
//! merge.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use memsync::merge::{ConflictReason, MergeDriver, MergeOutcome, MergeRules, MergeSides, merge};

use super::notes::{edited, note, text};
use memsync::testing::seed;

/// `MEMSYNC_TEST_MERGES`, or enough for each run.
#[expect(clippy::disallowed_methods, reason = "runs more merges by hand")]
pub(crate) fn merge_count(usual: usize) -> usize {
    std::env::var("MEMSYNC_TEST_MERGES").map_or(usual, |count| count.parse().unwrap())
}

fn merged(name: &str, base: &str, local: &str, remote: &str) -> MergeOutcome {
    let sides = MergeSides { base: Some(base.as_bytes()), local: local.as_bytes(), remote: remote.as_bytes() };
    merge(MergeRules::for_name(name), sides)
}

fn count_lines(text: &str) -> BTreeMap<&str, i64> {
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        *counts.entry(line).or_default() += 1;
    }
    counts
}

/// Lines that a clean result has too often or not often enough.
pub(crate) fn line_faults(base: &str, local: &str, remote: &str, result: &str) -> Vec<String> {
    let counts = [base, local, remote, result].map(count_lines);
    let lines: BTreeSet<&str> = counts.iter().flat_map(|counts| counts.keys().copied()).collect();
    let mut faults = Vec::new();
    for line in lines {
        let [base, local, remote, result] = [0, 1, 2, 3].map(|n| counts[n].get(line).copied().unwrap_or_default());
        let is_lost = (local > base || remote > base) && local >= base && remote >= base && result < local.max(remote);
        let is_back =
            (local < base && remote == base && result > local) || (remote < base && local == base && result > remote);
        let is_invented = result > base.max(local).max(remote).max(local + remote - base);
        if is_lost || is_back || is_invented {
            faults.push(format!(
                "{line:?}: {base} in base, {local} and {remote} in the versions, {result} in the result"
            ));
        }
    }
    faults
}

#[test]
fn random_notes_lose_and_invent_nothing() {
    let mut rng = Rng::with_seed(seed());
    let mut clean = 0;
    let total = merge_count(4_000);
    for _ in 0..total {
        let base = note(&mut rng);
        let (local, remote) = (edited(&mut rng, &base), edited(&mut rng, &base));
        let [base, local, remote] = [&base, &local, &remote].map(|lines| text(lines));
        let outcome = merged("a.md", &base, &local, &remote);
        assert_eq!(outcome, merged("a.md", &base, &remote, &local), "swapped:\n{base:?}\n{local:?}\n{remote:?}");
        let MergeOutcome::Clean(result) = outcome else { continue };
        clean += 1;
        let result = String::from_utf8(result).unwrap();
        let faults = line_faults(&base, &local, &remote, &result);
        assert!(faults.is_empty(), "{}\n{base:?}\n{local:?}\n{remote:?}\n{result:?}", faults.join("\n"));
    }
    println!("{clean} of {total} merges were clean");
    assert!(clean > total / 4, "only {clean} of {total} merges were clean");
}

#[test]
fn change_of_one_side_is_taken_as_it_is() {
    let mut rng = Rng::with_seed(seed());
    for driver in DRIVERS {
        for _ in 0..200 {
            let base = note(&mut rng);
            let side = text(&edited(&mut rng, &base));
            let base = text(&base);
            let rules = MergeRules::with_driver(driver, "a.md");
            for (base, local, remote) in [(&base, &side, &base), (&base, &base, &side), (&base, &side, &side)] {
                let sides =
                    MergeSides { base: Some(base.as_bytes()), local: local.as_bytes(), remote: remote.as_bytes() };
                assert_eq!(merge(rules, sides), MergeOutcome::Clean(side.clone().into_bytes()));
            }
        }
    }
}

const DRIVERS: [MergeDriver; 7] = [
    MergeDriver::Markdown,
    MergeDriver::Text,
    MergeDriver::Json,
    MergeDriver::Jsonl,
    MergeDriver::Toml,
    MergeDriver::Yaml,
    MergeDriver::Copy,
];

/// Pieces of every syntax, and bytes that break it.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "'",
    "a",
    "b",
    "1",
    "-",
    "- ",
    "#",
    "\n",
    "\n\n",
    "  ",
    "\t",
    "---\n",
    "```\n",
    "| a |",
    "= ",
    "[a]\n",
    "[[a]]\n",
    "a: ",
    "a = ",
    "\"a\": ",
    "null",
    "\r\n",
    "\u{feff}",
    "é",
    "😀",
    "\\",
    "\"\"\"",
    "&x ",
    "*x",
    "<<: ",
    "|\n",
    ">\n",
    "%",
    "!",
    "?",
    "{\"id\":1}",
    "true",
    "- [ ] ",
    "1. ",
    "2026-11-20",
    "updated: ",
    "$$\n",
    "~~~\n",
];

fn pieces(rng: &mut Rng) -> Vec<Vec<u8>> {
    let piece = |rng: &mut Rng| match rng.u8(..60) {
        0 => vec![rng.u8(..)],
        _ => PIECES[rng.usize(..PIECES.len())].as_bytes().to_vec(),
    };
    let count = rng.usize(..40);
    (0..count).map(|_| piece(rng)).collect()
}

#[test]
fn random_bytes_never_panic() {
    let mut rng = Rng::with_seed(seed());
    let mut clean = 0;
    for _ in 0..merge_count(3_000) {
        let base = pieces(&mut rng);
        let side = |rng: &mut Rng| {
            let mut side = base.clone();
            for _ in 0..rng.usize(..4) {
                let at = rng.usize(..=side.len());
                let end = (at + rng.usize(..3)).min(side.len());
                side.splice(at..end, pieces(rng).into_iter().take(3));
            }
            side.concat()
        };
        let (local, remote) = (side(&mut rng), side(&mut rng));
        let base = base.concat();
        for driver in DRIVERS {
            for known in [Some(base.as_slice()), None] {
                let rules = MergeRules::with_driver(driver, if rng.bool() { "daily/a.log" } else { "a.md" });
                let outcome = merge(rules, MergeSides { base: known, local: &local, remote: &remote });
                let swapped = merge(rules, MergeSides { base: known, local: &remote, remote: &local });
                assert_eq!(outcome, swapped, "{driver}: {base:?} {local:?} {remote:?}");
                clean += usize::from(matches!(outcome, MergeOutcome::Clean(_)));
            }
        }
    }
    assert!(clean > 100, "the pieces make texts that can be merged");
}

#[test]
fn deep_nesting_is_a_conflict() {
    for (name, open, close) in [("a.json", "[", "]"), ("a.yaml", "[", "]"), ("a.toml", "a = [", "]")] {
        let nested = |depth: usize, inner: &str| {
            let (first, rest) = (open, &open[open.len() - 1..]);
            format!("{first}{}{inner}{}{close}\n", rest.repeat(depth), close.repeat(depth))
        };
        for depth in [20_000, 200] {
            let outcome = merged(name, &nested(depth, "1"), &nested(depth, "1,2"), &nested(depth, "1,3"));
            assert!(matches!(outcome, MergeOutcome::Conflict(_)), "{name}: {outcome:?}");
        }
    }
    let items = |last: &str| (0..1_000).map(|n| format!("{}- item {n}{last}\n", " ".repeat(n))).collect::<String>();
    assert_eq!(
        merged("a.md", &items(""), &items(" a"), &items(" b")),
        MergeOutcome::Conflict(ConflictReason::SameLine(1))
    );
}
