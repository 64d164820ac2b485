//! Random JSON files: each value of the result is the one that the three files call for.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use serde_json::{Map, Value, json};

use memsync::merge::{MergeOutcome, MergeRules, MergeSides, merge};
use memsync::testing::seed;

use super::properties::merge_count;

const KEYS: &[&str] = &["alpha", "beta", "gamma", "delta", "list", "tags"];

fn scalar(rng: &mut Rng) -> Value {
    match rng.u8(..5) {
        0 => json!(rng.u8(..4)),
        1 => json!(rng.bool()),
        2 => Value::Null,
        3 => json!(1.5),
        _ => json!(["é", "a \"b\"", "line\nline", "{", "ok"][rng.usize(..5)]),
    }
}

fn object(rng: &mut Rng, depth: u8) -> Map<String, Value> {
    (0..rng.usize(..4)).map(|_| (KEYS[rng.usize(..KEYS.len())].to_owned(), value(rng, depth + 1))).collect()
}

fn value(rng: &mut Rng, depth: u8) -> Value {
    match rng.u8(..if depth > 3 { 3 } else { 8 }) {
        0..=2 => scalar(rng),
        3 | 4 => Value::Object(object(rng, depth)),
        5 => {
            let ids: BTreeSet<u8> = (0..rng.usize(..4)).map(|_| rng.u8(..6)).collect();
            let element = |id: u8, rng: &mut Rng| {
                let mut element = object(rng, depth);
                element.insert("id".to_owned(), json!(id));
                Value::Object(element)
            };
            Value::Array(ids.into_iter().map(|id| element(id, rng)).collect())
        }
        6 => json!((0..rng.usize(..4)).map(|n| format!("t{n}")).collect::<Vec<_>>()),
        _ => json!([1, 2]),
    }
}

/// Changes one place.
fn edit(rng: &mut Rng, value: &mut Value, depth: u8) {
    match value {
        Value::Object(members) if !members.is_empty() && rng.u8(..3) > 0 => {
            let at = rng.usize(..members.len());
            let key = members.keys().nth(at).unwrap().clone();
            if key != "id" {
                edit(rng, members.get_mut(&key).unwrap(), depth + 1);
            }
        }
        Value::Object(members) => {
            let key = KEYS[rng.usize(..KEYS.len())];
            if members.remove(key).is_none() || rng.bool() {
                members.insert(key.to_owned(), self::value(rng, depth + 1));
            }
        }
        Value::Array(elements) if elements.iter().all(Value::is_object) && !elements.is_empty() => {
            let at = rng.usize(..elements.len());
            match rng.u8(..4) {
                0 => drop(elements.remove(at)),
                1 => elements.insert(at, json!({"id": rng.u8(10..40), "alpha": rng.u8(..3)})),
                _ => edit(rng, &mut elements[at], depth + 1),
            }
        }
        Value::Array(elements) if elements.iter().all(Value::is_string) => {
            elements.push(json!(format!("n{}", rng.u8(..9))));
        }
        other => *other = scalar(rng),
    }
}

fn written(rng: &mut Rng, value: &Value) -> String {
    if rng.bool() { serde_json::to_string_pretty(value).unwrap() + "\n" } else { value.to_string() }
}

/// The scalars with their paths. Elements with an id are known by it.
fn leaves(value: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| leaves(value, &format!("{path}/{key}"), found))
        }
        Value::Array(elements) => {
            for element in elements {
                match element.get("id") {
                    Some(id) => leaves(element, &format!("{path}/[{id}]"), found),
                    None => drop(found.insert(format!("{path}/[{element}]"), element.to_string())),
                }
            }
        }
        scalar => drop(found.insert(path.to_owned(), scalar.to_string())),
    }
}

#[test]
fn random_json_has_each_value_of_both_sides() {
    let mut rng = Rng::with_seed(seed());
    let (mut clean, mut joined) = (0, 0);
    for _ in 0..merge_count(4_000) {
        let base = Value::Object(object(&mut rng, 0));
        let side = |rng: &mut Rng| {
            let mut side = base.clone();
            (0..rng.usize(1..4)).for_each(|_| edit(rng, &mut side, 0));
            side
        };
        let (local, remote) = (side(&mut rng), side(&mut rng));
        let texts = [&base, &local, &remote].map(|value| written(&mut rng, value));
        let merged = |local: &str, remote: &str| {
            let sides =
                MergeSides { base: Some(texts[0].as_bytes()), local: local.as_bytes(), remote: remote.as_bytes() };
            merge(MergeRules::for_name("a.json"), sides)
        };
        let outcome = merged(&texts[1], &texts[2]);
        assert_eq!(outcome, merged(&texts[2], &texts[1]), "{texts:?}");
        let MergeOutcome::Clean(text) = outcome else { continue };
        clean += 1;
        let result: Value = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{e}: {texts:?}"));
        let [base, local, remote, result] = [&base, &local, &remote, &result].map(|value| {
            let mut found = BTreeMap::new();
            leaves(value, "", &mut found);
            found
        });
        joined += usize::from(result != local && result != remote);
        let paths: BTreeSet<&String> =
            base.keys().chain(local.keys()).chain(remote.keys()).chain(result.keys()).collect();
        for path in paths {
            let [base, local, remote, result] = [&base, &local, &remote, &result].map(|leaves| leaves.get(path));
            let expected = if local == base { remote } else { local };
            assert!(local == base || remote == base || local == remote, "{path} was changed twice: {texts:?}");
            assert_eq!(result, expected, "{path}: {texts:?}\n{}", String::from_utf8_lossy(&text));
        }
    }
    println!("{clean} clean merges, {joined} of them join both sides");
    assert!(joined > 100, "only {joined} merges join both sides");
}
