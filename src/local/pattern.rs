//! [`PathPattern`]: one pattern of the configuration that selects files.

use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use unicode_normalization::UnicodeNormalization;

/// A pattern in gitignore syntax. It selects files, and all files in the folders that it names.
#[derive(Debug, Clone)]
pub struct PathPattern {
    text: String,
    matcher: Gitignore,
}

impl PathPattern {
    /// Compiles a pattern. A comment and a `!pattern` select no file, so they are refused.
    ///
    /// # Errors
    /// The fault of the pattern.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() || text.starts_with(['#', '!']) {
            return Err("it names no file".to_owned());
        }
        let mut builder = GitignoreBuilder::new("");
        // A `[` without its `]` is more likely a typing error than a name.
        builder.allow_unclosed_class(false);
        // Paths are in NFC. A user may have typed the pattern in any form.
        let nfc: String = text.nfc().collect();
        let reason = |e: ignore::Error| match e {
            ignore::Error::Glob { err, .. } => err,
            other => other.to_string(),
        };
        builder.add_line(None, &nfc).map_err(reason)?;
        let matcher = builder.build().map_err(reason)?;
        Ok(Self { text: text.to_owned(), matcher })
    }

    /// True if the pattern selects the file at `path`, which is relative and in NFC.
    pub fn selects(&self, path: &str) -> bool {
        self.matcher.matched_path_or_any_parents(Path::new(path), false).is_ignore()
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_selects_files_as_gitignore_does() {
        for (pattern, path, expected) in [
            ("*.canvas", "a.canvas", true),
            ("*.canvas", "n/m/a.canvas", true),
            ("*.canvas", "a.canvas.md", false),
            ("/todo.txt", "todo.txt", true),
            ("/todo.txt", "n/todo.txt", false),
            ("private/", "private/n/a.md", true),
            ("private/", "private", false),
            ("n/**/*.log", "n/m/a.log", true),
            ("r\u{e9}sum\u{e9}.md", "r\u{e9}sum\u{e9}.md", true),
            ("re\u{301}sume\u{301}.md", "r\u{e9}sum\u{e9}.md", true),
        ] {
            assert_eq!(PathPattern::new(pattern).unwrap().selects(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn pattern_that_selects_nothing_is_refused() {
        for pattern in ["", " ", "# a", "!a", "a[b", "[z-a]"] {
            assert!(PathPattern::new(pattern).is_err(), "{pattern:?}");
        }
    }
}
