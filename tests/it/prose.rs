//! Counts the words that hide the subject of a sentence, in comments and Markdown. Pronouns used as nouns are the usual
//! ones: the reader must find out which thing they stand for. A word list cannot judge a sentence. It shows where to look.

use std::fs;
use std::path::{Path, PathBuf};

/// The goal. Well-written Rust projects stand at 1 to 4 in 1,000 words of comments. Only ever lower this limit.
const MAX_PER_1000_WORDS: f64 = 3.0;
/// Functions with a vague name. The goal is 0. Only ever lower this limit.
const MAX_VAGUE_NAMES: usize = 5;

/// One of these as a noun hides the thing that the sentence is about.
const PRONOUNS: &[&str] =
    &["what", "who", "whoever", "whatever", "whom", "nobody", "none", "somebody", "anybody", "lest"];
/// The same, of two words.
const PAIRS: &[[&str; 2]] = &[["of", "which"], ["of", "whom"], ["in", "vain"]];
/// A test or function with such a first word does not say its result.
const NAME_STARTS: &[&str] = &["what", "who", "whoever", "whatever", "of", "none", "nobody"];

/// The prose of one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ProseCount {
    words: usize,
    vague: usize,
}

impl ProseCount {
    fn of(prose: &str) -> Self {
        let lower = prose.to_lowercase();
        let words: Vec<&str> =
            lower.split(|c: char| !c.is_ascii_alphabetic() && c != '\'').filter(|word| !word.is_empty()).collect();
        let pronouns = words.iter().filter(|word| PRONOUNS.contains(word)).count();
        let pairs = words.windows(2).filter(|pair| PAIRS.iter().any(|p| p[..] == **pair)).count();
        Self { words: words.len(), vague: pronouns + pairs }
    }

    fn per_1000_words(self) -> f64 {
        self.vague as f64 * 1000.0 / self.words.max(1) as f64
    }
}

/// The text that people read: comments of code, or Markdown without blocks. Inline code is left out.
fn prose_of(file: &Path, text: &str) -> String {
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let lines: Vec<&str> = match extension {
        "md" => outside_of_fences(text),
        "rs" => text.lines().filter_map(|line| line.trim_start().strip_prefix("//")).collect(),
        _ => text.lines().filter_map(|line| line.trim_start().strip_prefix('#')).collect(),
    };
    lines.join("\n").split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

fn outside_of_fences(text: &str) -> Vec<&str> {
    let mut is_inside = false;
    let is_prose = |line: &&str| {
        let is_fence = line.starts_with("```");
        is_inside ^= is_fence;
        !is_inside && !is_fence
    };
    text.lines().filter(is_prose).collect()
}

/// Names of functions that begin with a pronoun.
fn vague_names(text: &str) -> Vec<&str> {
    let declarations = text.lines().filter_map(|line| line.split_once("fn ")).map(|(_, rest)| rest);
    let names = declarations.map(|rest| rest.split(['(', '<']).next().unwrap_or_default());
    names.filter(|name| name.split_once('_').is_some_and(|(first, _)| NAME_STARTS.contains(&first))).collect()
}

/// Every file of the repository that has prose, below these folders and at the top.
fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    add_files(root, false, &mut files);
    for folder in ["src", "tests", "benches", "docs"] {
        add_files(&root.join(folder), true, &mut files);
    }
    files.sort();
    files
}

fn add_files(folder: &Path, recursive: bool, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if path.is_dir() {
            if recursive {
                add_files(&path, true, files);
            }
        } else if ["rs", "md", "toml", "sh"].contains(&extension) {
            files.push(path);
        }
    }
}

#[test]
fn prose_names_its_subjects() {
    let mut counts: Vec<(PathBuf, ProseCount)> = files()
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            let count = ProseCount::of(&prose_of(&file, &text));
            (file, count)
        })
        .collect();
    let total = counts.iter().fold(ProseCount::default(), |sum, (_, count)| ProseCount {
        words: sum.words + count.words,
        vague: sum.vague + count.vague,
    });
    assert!(total.words > 20_000, "only {} words were found", total.words);
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(count.vague));
    let worst = counts.iter().take(20).map(|(file, count)| {
        format!("{}: {} in {} words, {:.1} in 1,000", file.display(), count.vague, count.words, count.per_1000_words())
    });
    let rate = total.per_1000_words();
    assert!(
        rate <= MAX_PER_1000_WORDS,
        "{rate:.1} vague pronouns in 1,000 words, more than {MAX_PER_1000_WORDS}; name the thing in these files:\n{}",
        worst.collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn function_names_are_verb_phrases() {
    let found: Vec<String> = files()
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "rs"))
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            let names = vague_names(&text).into_iter().map(|name| format!("{}: {name}", file.display()));
            names.collect::<Vec<_>>()
        })
        .collect();
    let count = found.len();
    assert!(
        count <= MAX_VAGUE_NAMES,
        "{count} vague names, more than {MAX_VAGUE_NAMES}; rename:\n{}",
        found.join("\n")
    );
}

#[test]
fn counter_finds_planted_pronouns() {
    let count = |file: &str, text: &str| ProseCount::of(&prose_of(Path::new(file), text));
    let planted = count("a.rs", "/// What nobody reads, of which `who` cares.\nlet s = \"what\"; // not counted\n");
    assert_eq!(planted, ProseCount { words: 6, vague: 3 });
    assert_eq!(count("a.md", "Waits in vain.\n```sh\nwhat\n```\nWhatever.\n"), ProseCount { words: 4, vague: 2 });
    assert_eq!(count("a.toml", "# Somebody\nkey = \"none\"\n"), ProseCount { words: 1, vague: 1 });
    assert_eq!(count("a.md", "The proxy answers. Somewhat, whole.\n"), ProseCount { words: 5, vague: 0 });
    assert!((planted.per_1000_words() - 500.0).abs() < f64::EPSILON);
}

#[test]
fn counter_finds_planted_names() {
    // In two pieces, so that this file has no such name.
    let text =
        ["fn what", "_is_gone() {}\n    async fn of", "_two(x: u8) {}\nfn whole_file() {}\nfn offer_all<T>() {}\n"];
    let text = text.concat();
    assert_eq!(vague_names(&text), ["what_is_gone", "of_two"]);
}
