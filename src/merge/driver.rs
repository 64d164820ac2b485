//! The kinds of files, each with its own way to merge, and the choice by file name.

use std::fmt;

/// The way in which files of one kind are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MergeDriver {
    /// Front matter by key, the rest by line and by item.
    Markdown,
    /// By line and by item.
    Text,
    /// By key, over spans of the text.
    Json,
    /// By line, with one record in each line. Logs too.
    Jsonl,
    Toml,
    Yaml,
    /// Never merged: both versions are kept.
    Copy,
}

impl MergeDriver {
    pub const ALL: [Self; 7] =
        [Self::Markdown, Self::Text, Self::Json, Self::Jsonl, Self::Toml, Self::Yaml, Self::Copy];

    /// The driver for a file of this name. Other text is merged as [`MergeDriver::Text`].
    pub fn for_name(name: &str) -> Self {
        let file = name.rsplit('/').next().unwrap_or(name);
        let extension = file.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        match extension.as_deref() {
            Some("md" | "markdown" | "mdx") => Self::Markdown,
            Some("json" | "canvas" | "excalidraw" | "geojson") => Self::Json,
            Some("jsonl" | "ndjson" | "log") => Self::Jsonl,
            Some("toml") => Self::Toml,
            Some("yaml" | "yml") => Self::Yaml,
            // The lines of a cell are an array there.
            Some("ipynb") => Self::Copy,
            _ => Self::Text,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Markdown => "markdown",
            Self::Text => "text",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Toml => "toml",
            Self::Yaml => "yaml",
            Self::Copy => "copy",
        }
    }
}

impl fmt::Display for MergeDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The driver of a file, and the facts of its name that the merge uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeRules {
    pub driver: MergeDriver,
    /// A daily note, a journal or a log: people and programs append to it.
    pub is_journal: bool,
    /// The lines are log lines, not JSON.
    pub is_log: bool,
    /// Text that people write, and no source code or settings: two insertions at one place are both kept.
    pub is_prose: bool,
}

/// The ends of the names of texts that people write. A name without an extension is one too.
const PROSE: &[&str] = &["md", "markdown", "mdx", "txt", "text", "org", "rst", "adoc", "asciidoc", "wiki"];

impl MergeRules {
    pub fn for_name(name: &str) -> Self {
        let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
        let is_prose = file.rsplit_once('.').is_none_or(|(_, extension)| PROSE.contains(&extension));
        Self { is_prose, ..Self::with_driver(MergeDriver::for_name(name), name) }
    }

    /// A driver that the user chose for the file of this name.
    pub fn with_driver(driver: MergeDriver, name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        let (folders, file) = name.rsplit_once('/').unwrap_or(("", &name));
        let is_journal = has_date(file)
            || folders.split('/').any(|folder| matches!(folder, "daily" | "journal" | "journals" | "log" | "logs"));
        let is_log = file.rsplit_once('.').is_some_and(|(_, extension)| extension == "log");
        Self { driver, is_journal: is_journal || is_log, is_log, is_prose: true }
    }
}

/// True if a file name contains a date such as 2026-11-20.
fn has_date(file: &str) -> bool {
    file.as_bytes()
        .windows(10)
        .any(|w| w.iter().enumerate().all(|(at, b)| if matches!(at, 4 | 7) { *b == b'-' } else { b.is_ascii_digit() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_follows_the_file_name() {
        for (name, driver) in [
            ("notes/a.md", MergeDriver::Markdown),
            ("A.MD", MergeDriver::Markdown),
            ("a.json", MergeDriver::Json),
            ("a.ndjson", MergeDriver::Jsonl),
            ("log/agent.log", MergeDriver::Jsonl),
            ("a.yml", MergeDriver::Yaml),
            ("a.toml", MergeDriver::Toml),
            ("draw.excalidraw", MergeDriver::Json),
            ("lab.ipynb", MergeDriver::Copy),
            ("todo.txt", MergeDriver::Text),
            ("json", MergeDriver::Text),
            ("a.json/readme", MergeDriver::Text),
        ] {
            assert_eq!(MergeDriver::for_name(name), driver, "{name}");
        }
    }

    #[test]
    fn prose_is_told_from_code_and_settings() {
        for (name, is_prose) in [
            ("a.md", true),
            ("todo.txt", true),
            ("notes/README", true),
            ("a.py", false),
            ("b/.env", false),
            ("a.ini", false),
        ] {
            assert_eq!(MergeRules::for_name(name).is_prose, is_prose, "{name}");
        }
        assert!(MergeRules::with_driver(MergeDriver::Text, "a.ini").is_prose, "the user chose it");
    }

    #[test]
    fn journals_are_known_by_their_names() {
        for (name, is_journal) in [
            ("daily/2026-11-20.md", true),
            ("2026-11-20 Friday.md", true),
            ("journal/x.md", true),
            ("agent.log", true),
            ("notes/plan.md", false),
            ("2026-11.md", false),
        ] {
            assert_eq!(MergeRules::for_name(name).is_journal, is_journal, "{name}");
        }
    }
}
