//! Every dependency may be used under a licence that `deny.toml` allows.

use std::collections::BTreeSet;
use std::process::Command;

/// True if the licences in `allow` satisfy an SPDX expression (`OR`, `AND`, parentheses, the old `/`).
fn is_met(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "+");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allow);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words, allow: &BTreeSet<String>) -> bool {
    let mut met = all(words, allow);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allow);
    }
    met
}

fn all(words: &mut Words, allow: &BTreeSet<String>) -> bool {
    let mut met = one(words, allow);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allow);
    }
    met
}

fn one(words: &mut Words, allow: &BTreeSet<String>) -> bool {
    match words.next() {
        Some("(") => {
            let met = any(words, allow);
            words.next() == Some(")") && met
        }
        Some(licence) => allow.contains(&licence.replace('+', " WITH ")),
        None => false,
    }
}

fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    let deny: toml::Table = text.parse().unwrap();
    let allow = deny["licenses"]["allow"].as_array().unwrap();
    allow.iter().map(|licence| licence.as_str().unwrap().to_owned()).collect()
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn expressions_are_read_right() {
    let allow: BTreeSet<String> = ["MIT", "ISC", "A WITH E"].map(str::to_owned).into();
    for yes in ["MIT", "X OR MIT", "MIT/X", "MIT AND ISC", "(X OR MIT) AND ISC", "A WITH E OR X", "X AND Y OR MIT"] {
        assert!(is_met(yes, &allow), "{yes}");
    }
    for no in ["", "X", "MIT AND X", "(MIT OR ISC) AND X", "A", "MIT ISC", "(MIT"] {
        assert!(!is_met(no, &allow), "{no}");
    }
}

#[test]
fn every_dependency_may_be_used() {
    let version = String::from_utf8(output(Command::new("rustc").arg("-vV"))).unwrap();
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).unwrap();
    // The crates of other platforms are not on this disk. `cargo deny` checks all of them.
    let metadata = output(
        Command::new(env!("CARGO"))
            .args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", host])
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    );
    let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "the dependencies were found");
    let allow = allowed();
    let refused: Vec<String> = packages
        .iter()
        .map(|p| (p["name"].as_str().unwrap(), p["license"].as_str().unwrap_or("none given")))
        .filter(|(_, licence)| !is_met(licence, &allow))
        .map(|(name, licence)| format!("{name}: {licence}"))
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}
