//! The cases of `cases.json`: merges from public bug reports, each with the text that a careful person wants.

use serde::Deserialize;

use memsync::merge::{MergeOutcome, MergeRules, MergeSides, merge};

#[derive(Debug, Deserialize)]
struct MergeCase {
    name: String,
    kind: String,
    path: Option<String>,
    base: Option<String>,
    local: String,
    remote: String,
    /// `None` means a conflict.
    want: Option<String>,
    /// A conflict is right too.
    #[serde(default)]
    conflict_ok: bool,
    /// Other texts that are right.
    #[serde(default)]
    also: Vec<String>,
}

impl MergeCase {
    fn merged(&self, local: &str, remote: &str) -> MergeOutcome {
        let name = self.path.clone().unwrap_or_else(|| format!("notes/a.{}", self.kind));
        let base = self.base.as_deref().map(str::as_bytes);
        let sides = MergeSides { base, local: local.as_bytes(), remote: remote.as_bytes() };
        merge(MergeRules::for_name(&name), sides)
    }

    /// The fault of an outcome, if it is not wanted.
    fn fault(&self, outcome: &MergeOutcome) -> Option<String> {
        let is_right = match outcome {
            MergeOutcome::Clean(text) => self.want.iter().chain(&self.also).any(|right| right.as_bytes() == text),
            MergeOutcome::Conflict(_) => self.want.is_none() || self.conflict_ok,
        };
        let shown = match outcome {
            MergeOutcome::Clean(text) => format!("{:?}", String::from_utf8_lossy(text)),
            MergeOutcome::Conflict(reason) => format!("conflict: {reason}"),
        };
        (!is_right).then(|| format!("{}: {shown}\n  want: {:?}", self.name, self.want))
    }
}

fn cases() -> Vec<MergeCase> {
    serde_json::from_str(include_str!("cases.json")).unwrap()
}

#[test]
fn every_case_is_merged_as_a_person_would() {
    let cases = cases();
    assert_eq!(cases.len(), 68);
    let mut faults = Vec::new();
    for case in &cases {
        let outcome = case.merged(&case.local, &case.remote);
        faults.extend(case.fault(&outcome));
        let swapped = case.merged(&case.remote, &case.local);
        if outcome != swapped {
            faults.push(format!("{}: swapped it is another text: {outcome:?} {swapped:?}", case.name));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// A crash may come between the placing of a result and the note that the proxy's version is in it. Then the result is
/// merged with that version again.
#[test]
fn result_merged_with_one_of_its_versions_stays() {
    let mut again = 0;
    for case in cases() {
        let MergeOutcome::Clean(text) = case.merged(&case.local, &case.remote) else { continue };
        let text = String::from_utf8(text).unwrap();
        for version in [&case.local, &case.remote] {
            match case.merged(&text, version) {
                MergeOutcome::Clean(same) => assert_eq!(String::from_utf8(same).unwrap(), text, "{}", case.name),
                // Both versions are kept then.
                MergeOutcome::Conflict(reason) => {
                    println!("{}: {reason}", case.name);
                    again += 1;
                }
            }
        }
    }
    assert!(again <= 5, "{again} results conflict with their own versions");
}

#[test]
fn clean_cases_are_not_lost_to_conflicts() {
    // A conflict is allowed in some cases. The merge is better than that in most of them.
    let clean =
        cases().iter().filter(|case| matches!(case.merged(&case.local, &case.remote), MergeOutcome::Clean(_))).count();
    assert!(clean >= 44, "only {clean} cases are merged");
}
