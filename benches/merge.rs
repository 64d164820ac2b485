//! The time of a merge of 1 MiB. The goal is 50 ms for each kind of file.

use std::fmt::Write;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use memsync::merge::{MAX_MERGE_BYTES, MergeOutcome, MergeRules, MergeSides, merge};

/// Three versions of a file, and its name.
struct MergeInput {
    name: &'static str,
    base: String,
    local: String,
    remote: String,
}

impl MergeInput {
    /// Each side replaces its own parts of the base.
    fn new(name: &'static str, base: String, local: [&str; 2], remote: [&str; 2]) -> Self {
        let side = |[old, new]: [&str; 2]| base.replace(old, new);
        let input = Self { name, local: side(local), remote: side(remote), base };
        for text in [&input.base, &input.local, &input.remote] {
            assert!((MAX_MERGE_BYTES * 9 / 10..=MAX_MERGE_BYTES).contains(&text.len()), "{name}: {}", text.len());
        }
        assert!(matches!(input.merge(), MergeOutcome::Clean(_)), "{name}: {:?}", input.merge());
        input
    }

    fn merge(&self) -> MergeOutcome {
        let sides = MergeSides {
            base: Some(self.base.as_bytes()),
            local: self.local.as_bytes(),
            remote: self.remote.as_bytes(),
        };
        merge(MergeRules::for_name(self.name), sides)
    }
}

/// Repeats a part until the text has nearly 1 MiB.
fn filled(head: &str, tail: &str, mut part: impl FnMut(&mut String, usize)) -> String {
    let mut text = head.to_owned();
    let mut n = 0;
    while text.len() < MAX_MERGE_BYTES * 19 / 20 {
        part(&mut text, n);
        n += 1;
    }
    text + tail
}

fn markdown() -> MergeInput {
    let base = filled("# Notes\n", "", |text, n| {
        writeln!(text, "\n## Section {n}\n\nSome words about {n}. {}\n", "They go on. ".repeat(8)).unwrap();
        writeln!(text, "- [ ] task {n}\n- item {n}\n- [note {n}](n{n}.md)").unwrap();
    });
    MergeInput::new("a.md", base, ["- [ ] task 1", "- [x] task 1"], ["- item 2", "- item two 2"])
}

fn json() -> MergeInput {
    let base = filled("{\n  \"notes\": [", "\n  ]\n}\n", |text, n| {
        let comma = if n == 0 { "" } else { "," };
        write!(
            text,
            "{comma}\n    {{\"id\": \"n{n}\", \"title\": \"Note {n}\", \"tags\": [\"a\", \"b\"], \"size\": {n}}}"
        )
        .unwrap();
    });
    MergeInput::new("a.json", base, ["\"Note 1", "\"Entry 1"], ["\"size\": 2", "\"size\": 32"])
}

fn jsonl() -> MergeInput {
    let base =
        filled("", "", |text, n| writeln!(text, "{{\"id\":{n},\"text\":\"some words of the record {n}\"}}").unwrap());
    MergeInput::new("a.jsonl", base, ["record 11", "entry 11"], ["record 22", "entry 22"])
}

fn yaml() -> MergeInput {
    let base = filled("", "", |text, n| writeln!(text, "key{n}: some words of the value {n}").unwrap());
    MergeInput::new("a.yaml", base, ["value 11", "entry 11"], ["value 22", "entry 22"])
}

fn toml() -> MergeInput {
    let base = filled("", "", |text, n| {
        writeln!(text, "[table{n}]\nname = \"some words of {n}, and some more of them, so that a line has its usual length\"\nsize = {n}\n").unwrap()
    });
    MergeInput::new("a.toml", base, ["size = 11", "size = 911"], ["of 22", "at 22"])
}

/// Two versions that have hardly a line in common.
fn rewritten() -> MergeInput {
    let base = filled("# Notes\n", "", |text, n| {
        writeln!(text, "Line {n} of {}, with some words, and then a few more words to fill it.\n", n % 97).unwrap()
    });
    let mut input = MergeInput::new("a.md", base, ["Line 1", "Row 1"], ["Line 2", "Item 2"]);
    input.remote = input.base.replace("Line", "Item");
    input
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge 1 MiB");
    group.sample_size(20);
    for (name, input) in [
        ("markdown", markdown()),
        ("json", json()),
        ("jsonl", jsonl()),
        ("yaml", yaml()),
        ("toml", toml()),
        ("rewritten", rewritten()),
    ] {
        group.bench_function(name, |b| b.iter(|| black_box(input.merge())));
    }
    group.finish();
}

criterion_group!(merges, benches);
criterion_main!(merges);
