//! Random merges compared with `git merge-file`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use fastrand::Rng;

use memsync::merge::{ConflictReason, MergeOutcome, MergeRules, MergeSides, merge};

use super::notes::{edited, note, text};
use super::properties::{line_faults, merge_count};
use crate::common::left_out::left_out;
use memsync::testing::seed;

/// The merge by git. `None` for a conflict.
fn merge_by_git(dir: &Path, base: &str, local: &str, remote: &str) -> std::io::Result<Option<String>> {
    for (name, text) in [("base", base), ("local", local), ("remote", remote)] {
        fs::write(dir.join(name), text)?;
    }
    let out = Command::new("git")
        .args(["merge-file", "-p", "local", "base", "remote"])
        .current_dir(dir)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .output()?;
    Ok(out.status.success().then(|| String::from_utf8(out.stdout).unwrap()))
}

/// The lines of a text that are not blank.
fn full_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().is_empty()).collect()
}

/// The same in alphabetical order.
fn sorted_lines(text: &str) -> Vec<&str> {
    let mut lines = full_lines(text);
    lines.sort_unstable();
    lines
}

/// The rule by which memsync refuses a merge that git makes line by line. `None` if no rule explains the refusal.
fn stricter_rule(reason: &ConflictReason) -> Option<&'static str> {
    Some(match reason {
        ConflictReason::SameBlock => "a fenced block is one unit",
        ConflictReason::KeyTwice(_) | ConflictReason::SameKey(_) | ConflictReason::AddedTwice(_) => {
            "keys of front matter"
        }
        ConflictReason::RemovedAndChanged(_) | ConflictReason::Reordered => "keys of front matter",
        ConflictReason::Unparsable(_) | ConflictReason::Broken(_) => "front matter must parse",
        ConflictReason::Numbering => "numbers count on",
        ConflictReason::TableShape => "rows fit the table",
        ConflictReason::Misplaced => "items keep the item above",
        ConflictReason::HeadingTwice(_) | ConflictReason::RowTwice(_) => "names are there once",
        ConflictReason::CheckFailed => "no line is there twice by a move of both sides",
        ConflictReason::Counter => "numbers that both sides counted",
        ConflictReason::Emptied => "an emptied version",
        ConflictReason::SameLine(_) => "another alignment of equal lines",
        _ => return None,
    })
}

#[test]
fn clean_merges_agree_with_git() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(e) = merge_by_git(dir.path(), "", "", "") {
        return left_out(&format!("no git here: {e}"));
    }
    let mut rng = Rng::with_seed(seed());
    let mut tally: BTreeMap<String, usize> = BTreeMap::new();
    let total = merge_count(2_000);
    for _ in 0..total {
        let base = note(&mut rng);
        let (local, remote) = (edited(&mut rng, &base), edited(&mut rng, &base));
        let [base, local, remote] = [&base, &local, &remote].map(|lines| text(lines));
        let by_git = merge_by_git(dir.path(), &base, &local, &remote).unwrap();
        let sides = MergeSides { base: Some(base.as_bytes()), local: local.as_bytes(), remote: remote.as_bytes() };
        let class = match (merge(MergeRules::for_name("a.md"), sides), by_git) {
            (MergeOutcome::Clean(_), None) => "merged by item, and a conflict for git".to_owned(),
            (MergeOutcome::Conflict(_), None) => "a conflict for both".to_owned(),
            (MergeOutcome::Clean(ours), Some(git)) if ours == git.as_bytes() => "equal".to_owned(),
            (MergeOutcome::Clean(ours), Some(git)) => {
                let ours = String::from_utf8(ours).unwrap();
                let shown = || format!("{base:?}\n{local:?}\n{remote:?}\n{ours:?}\n{git:?}");
                if full_lines(&ours) == full_lines(&git) {
                    "other blank lines".to_owned()
                } else if sorted_lines(&ours) == sorted_lines(&git) {
                    "the same lines in another order".to_owned()
                } else {
                    let faults = line_faults(&base, &local, &remote, &git);
                    assert!(!faults.is_empty(), "{}", shown());
                    "git doubles a line that was moved, or brings it back".to_owned()
                }
            }
            (MergeOutcome::Conflict(reason), Some(git)) => {
                let rule = stricter_rule(&reason);
                let shown = || format!("{reason}\n{base:?}\n{local:?}\n{remote:?}\n{git:?}");
                format!("refused, and merged by git: {}", rule.unwrap_or_else(|| panic!("{}", shown())))
            }
        };
        *tally.entry(class).or_default() += 1;
    }
    println!("{tally:#?}");
    let count = |class: &str| tally.get(class).copied().unwrap_or_default();
    assert!(count("equal") * 4 > total, "few merges are equal: {tally:#?}");
    assert!(count("the same lines in another order") * 50 < total, "many merges differ in order: {tally:#?}");
    assert!(count("refused, and merged by git: another alignment of equal lines") * 50 < total, "{tally:#?}");
}
