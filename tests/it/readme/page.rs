//! README.md and docs/ as texts: their blocks, commands, tables and links.

use std::fs;
use std::path::{Path, PathBuf};

/// Pages whose commands are run, in the order in which a reader meets them. One reader types them all.
pub(crate) const READING_ORDER: &[&str] = &[
    "README.md",
    "docs/guide.md",
    "docs/agents.md",
    "docs/merge.md",
    "docs/troubleshooting.md",
    "docs/operating.md",
    "docs/s3.md",
    "docs/keys.md",
    "docs/guarantees.md",
    "docs/benchmarks.md",
    "docs/architecture.md",
    "docs/sync-model.md",
    "docs/protocol.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
];

pub(crate) fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

pub(crate) fn shipped(file: &str) -> String {
    fs::read_to_string(repository(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Every Markdown file at the top and in docs/.
pub(crate) fn markdown_files() -> Vec<String> {
    let mut files = Vec::new();
    for folder in ["", "docs/"] {
        for entry in fs::read_dir(repository(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                files.push(format!("{folder}{name}"));
            }
        }
    }
    files.sort();
    files
}

/// A fenced block.
pub(crate) struct FencedBlock {
    pub file: &'static str,
    /// The `##` title above it.
    pub section: String,
    /// The first word of the fence.
    pub language: String,
    /// The second word of the fence. For `sh`: the machine on which the commands are typed (empty for the first machine),
    /// or `no-test`. For `text`: empty for printed output, or `drawing`.
    pub mark: String,
    pub lines: Vec<String>,
}

impl FencedBlock {
    pub(crate) fn is_run(&self) -> bool {
        self.language == "sh" && self.mark != "no-test"
    }

    pub(crate) fn is_printed_output(&self) -> bool {
        self.language == "text" && self.mark.is_empty()
    }
}

/// The blocks of all pages in reading order.
pub(crate) fn blocks() -> Vec<FencedBlock> {
    READING_ORDER.iter().flat_map(|file| blocks_of(file)).collect()
}

pub(crate) fn blocks_of(file: &'static str) -> Vec<FencedBlock> {
    let (mut blocks, mut section, mut open) = (Vec::new(), String::new(), None::<FencedBlock>);
    for line in shipped(file).lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(fence), None) => {
                let mut words = fence.split_whitespace().map(str::to_owned);
                let (language, mark) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                open = Some(FencedBlock { file, section: section.clone(), language, mark, lines: Vec::new() });
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
    assert!(open.is_none(), "{file}: a block is not closed");
    blocks
}

/// The rows of the table in `file` whose head begins with this cell.
pub(crate) fn table(file: &str, head: &str) -> Vec<Vec<String>> {
    let text = shipped(file);
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {head} |")));
    lines.next().unwrap_or_else(|| panic!("{file}: no table with the head {head:?}"));
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The parts between single backticks, outside of blocks.
pub(crate) fn inline_code(text: &str) -> Vec<String> {
    let mut inside = false;
    let prose = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The anchors that GitHub gives to the titles of a page.
pub(crate) fn anchors(text: &str) -> Vec<String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    titles
        .map(|title| {
            let plain = title.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
            plain.replace(|c: char| !c.is_alphanumeric() && !['-', '_'].contains(&c), "")
        })
        .collect()
}

/// A line of output without the parts that differ each time: numbers, paths, names, times.
pub(crate) fn shape(line: &str) -> String {
    let differs = |word: &str| {
        let hex = word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
        hex || word.contains('/') || word.contains(|c: char| c.is_ascii_digit()) || word.ends_with([',', ':', '`'])
    };
    let words = line.replace("just now", "0 s ago");
    let words: Vec<_> = words.split_whitespace().map(|word| if differs(word) { "#" } else { word }).collect();
    words.join(" ")
}
