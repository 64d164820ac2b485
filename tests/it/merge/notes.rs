//! Random notes, and random edits of them, as people and programs make them.

use fastrand::Rng;

const WORDS: &[&str] = &[
    "garden", "train", "milk", "bread", "build", "proxy", "call", "Ana", "rent", "bees", "kites", "roof", "gate",
    "seed", "draft", "index", "deploy", "style", "plan", "log",
];

fn words(rng: &mut Rng, most: usize) -> String {
    let count = rng.usize(1..=most);
    (0..count).map(|_| WORDS[rng.usize(..WORDS.len())]).collect::<Vec<_>>().join(" ")
}

/// One new line of a kind that notes have.
fn line(rng: &mut Rng) -> String {
    let text = words(rng, 4);
    match rng.u8(..12) {
        0 => format!("## {text}"),
        1 | 2 => format!("- {text}"),
        3 => format!("- [ ] {text}"),
        4 => format!("  - {text}"),
        5 => format!("- [{text}]({}.md): {}", words(rng, 1), words(rng, 2)),
        6 => format!("{}. {text}", rng.u8(1..4)),
        7 => format!("| {text} | {} |", words(rng, 1)),
        8 => format!("- 1{}:{}0 {text}", rng.u8(..10), rng.u8(..6)),
        9 | 10 => format!("{text}."),
        _ => String::new(),
    }
}

/// Some lines that belong together.
fn block(rng: &mut Rng) -> Vec<String> {
    let many = rng.usize(1..5);
    match rng.u8(..8) {
        0 => vec![String::new(), format!("## {}", words(rng, 2)), String::new()],
        1 => (0..many).map(|_| format!("- {}", words(rng, 3))).collect(),
        2 => (0..many).map(|_| format!("- [{}] {}", [' ', 'x'][rng.usize(..2)], words(rng, 2))).collect(),
        3 => vec!["```".to_owned(), format!("let {} = 1;", words(rng, 1)), "done".to_owned(), "```".to_owned()],
        4 => (0..many).map(|n| format!("{}. {}", n + 1, words(rng, 2))).collect(),
        5 => {
            let rows = (0..many).map(|_| format!("| {} | {} |", words(rng, 1), words(rng, 1))).collect::<Vec<_>>();
            [vec!["| a | b |".to_owned(), "|---|---|".to_owned()], rows].concat()
        }
        6 => (0..many).map(|_| format!("- [{}]({}.md)", words(rng, 1), words(rng, 1))).collect(),
        _ => (0..many).map(|_| format!("{}.", words(rng, 6))).collect(),
    }
}

/// The lines of a random note.
pub(crate) fn note(rng: &mut Rng) -> Vec<String> {
    let mut lines = Vec::new();
    if rng.u8(..4) == 0 {
        lines.extend(["---", "title: Plan", "status: draft"].map(str::to_owned));
        lines.push(format!("owner: {}", words(rng, 1)));
        lines.push("---".to_owned());
    }
    lines.push(format!("# {}", words(rng, 2)));
    for _ in 0..rng.usize(1..7) {
        lines.push(String::new());
        lines.extend(block(rng));
    }
    lines
}

/// A version of `base` with up to four edits.
pub(crate) fn edited(rng: &mut Rng, base: &[String]) -> Vec<String> {
    let mut lines = base.to_vec();
    for _ in 0..rng.usize(1..5) {
        edit(rng, &mut lines);
    }
    lines
}

fn edit(rng: &mut Rng, lines: &mut Vec<String>) {
    if lines.is_empty() {
        lines.push(line(rng));
        return;
    }
    let at = rng.usize(..lines.len());
    match rng.u8(..10) {
        0 | 1 => lines[at] = line(rng),
        2 => drop(lines.remove(at)),
        3 => lines[at] = format!("{} {}", lines[at], words(rng, 1)),
        4 => lines[at] = lines[at].replace("[ ]", "[x]"),
        5 => drop(lines.splice(at..at, block(rng))),
        6 => {
            lines.push(String::new());
            lines.extend(block(rng));
        }
        7 => {
            let moved = lines.remove(at);
            lines.insert(rng.usize(..=lines.len()), moved);
        }
        _ => lines.insert(at, line(rng)),
    }
}

pub(crate) fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}
