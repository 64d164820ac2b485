//! The README as a text: its blocks, its commands, its tables.

use std::fs;
use std::path::{Path, PathBuf};

pub fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

pub fn shipped(file: &str) -> String {
    fs::read_to_string(repository(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// A fenced block of the README.
pub struct Block {
    /// The section that it stands in.
    pub section: String,
    pub language: String,
    /// The second word of the fence: on which machine it is typed; the first machine has no name.
    pub machine: String,
    pub lines: Vec<String>,
}

pub fn blocks() -> Vec<Block> {
    let (mut blocks, mut section, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in shipped("README.md").lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(fence), None) => {
                let mut words = fence.split_whitespace().map(str::to_owned);
                let (language, machine) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                open = Some(Block { section: section.clone(), language, machine, lines: Vec::new() });
            }
            (None, Some(mut block)) => {
                block.lines.push(line.to_owned());
                open = Some(block);
            }
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ") {
                    section = title.to_owned();
                }
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

pub fn commands() -> Vec<(String, String)> {
    let shell = blocks().into_iter().filter(|b| b.language == "sh");
    shell.flat_map(|b| b.lines.into_iter().map(move |line| (b.machine.clone(), line))).collect()
}

/// The rows of the table whose head begins with this cell.
pub fn table(head: &str) -> Vec<Vec<String>> {
    let text = shipped("README.md");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {head} |")));
    lines.next().unwrap_or_else(|| panic!("there is no table of {head}"));
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The parts between single backticks, outside of blocks.
pub fn code(text: &str) -> Vec<String> {
    let mut inside = false;
    let prose = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// A line of output without what is different each time: numbers, paths, names, times.
pub fn shape(line: &str) -> String {
    let differs = |word: &str| {
        let hex = word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
        hex || word.contains('/') || word.contains(|c: char| c.is_ascii_digit()) || word.ends_with([',', ':', '`'])
    };
    let words = line.replace("just now", "0 s ago");
    let words: Vec<_> = words.split_whitespace().map(|word| if differs(word) { "#" } else { word }).collect();
    words.join(" ")
}
