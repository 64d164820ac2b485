//! [`IgnoreRules`]: the paths that are not synced.
//!
//! There are three layers, and a later one wins: built-in patterns for the leftovers of editors and systems, the folder's
//! `ignore` list in the configuration, and the `.memsyncignore` file at the top of the folder. All have gitignore syntax.
//! This module reads no file.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::path::is_private;

mod built_in;

pub use built_in::built_in_patterns;

/// The file with the rules of the folder. It is always synced, so that all devices have the same rules.
pub(crate) const IGNORE_FILE: &str = ".memsyncignore";

/// The source of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatternOrigin {
    /// The built-in patterns.
    BuiltIn,
    /// The folder's `ignore` list in the configuration.
    Config,
    /// The folder's [`IGNORE_FILE`].
    File,
}

impl fmt::Display for PatternOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "built-in pattern",
            Self::Config => "the folder's `ignore` list, entry",
            Self::File => ".memsyncignore, line",
        })
    }
}

/// An invalid pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin} {line}: `{pattern}` is no valid pattern: {why}")]
pub struct PatternError {
    pub origin: PatternOrigin,
    /// Position in the list or line of the file, from 1.
    pub line: usize,
    pub pattern: String,
    pub why: String,
}

/// Compiled rules. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IgnoreRules(Gitignore);

impl IgnoreRules {
    /// Compiles the rules from the `list` in the configuration and the text of the [`IGNORE_FILE`]. As in git, the last
    /// matching pattern decides, and a `!pattern` admits a path again, but not inside an ignored folder.
    ///
    /// # Errors
    /// The first invalid pattern.
    pub fn new(list: &[String], file: Option<&str>) -> Result<Self, PatternError> {
        let (rules, bad) = Self::from_good_lines(list, file)?;
        bad.into_iter().next().map_or(Ok(rules), Err)
    }

    /// Like [`IgnoreRules::new`], but skips invalid lines of the file and lines that were not UTF-8 (they contain U+FFFD).
    /// Returns those lines as well.
    ///
    /// # Errors
    /// The first invalid pattern of `list`.
    pub(crate) fn from_good_lines(
        list: &[String],
        file: Option<&str>,
    ) -> Result<(Self, Vec<PatternError>), PatternError> {
        let mut all = GitignoreBuilder::new("");
        // A `[` without its `]` is more likely a typing error than a name.
        all.allow_unclosed_class(false);
        for (i, pattern) in built_in_patterns().enumerate() {
            // A leading `#` begins a comment in gitignore syntax.
            let pattern = if pattern.starts_with('#') { format!("\\{pattern}") } else { pattern.to_owned() };
            add(&mut all, PatternOrigin::BuiltIn, i + 1, &pattern)?;
        }
        for (i, pattern) in list.iter().enumerate() {
            add(&mut all, PatternOrigin::Config, i + 1, pattern)?;
        }
        let file = file.unwrap_or_default();
        let mut bad = Vec::new();
        for (i, pattern) in file.strip_prefix('\u{feff}').unwrap_or(file).lines().enumerate() {
            if pattern.contains(char::REPLACEMENT_CHARACTER) {
                let (line, pattern, why) = (i + 1, pattern.to_owned(), "it is not UTF-8".to_owned());
                bad.push(PatternError { origin: PatternOrigin::File, line, pattern, why });
                continue;
            }
            bad.extend(add(&mut all, PatternOrigin::File, i + 1, pattern).err());
        }
        // Valid patterns can still be too large for the matcher when they are taken together.
        let rules = all.build().map(Self).map_err(|e| PatternError {
            origin: PatternOrigin::File,
            line: file.lines().count(),
            pattern: "all patterns together".to_owned(),
            why: e.to_string(),
        })?;
        Ok((rules, bad))
    }

    /// True if `path`, or a folder above it, is ignored. The path is relative and `/`-separated, in any Unicode form.
    pub fn ignored(&self, path: &str, is_dir: bool) -> bool {
        let nfc: Cow<'_, str> = match is_nfc_quick(path.chars()) {
            IsNormalized::Yes => path.into(),
            _ => path.nfc().collect::<String>().into(),
        };
        let path = &*nfc;
        path.match_indices('/').any(|(end, _)| self.ignored_itself(&path[..end], true))
            || self.ignored_itself(path, is_dir)
    }

    /// Like [`IgnoreRules::ignored`], for a path in NFC and without the folders above it.
    fn ignored_itself(&self, path: &str, is_dir: bool) -> bool {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        if is_private(name) {
            return true;
        }
        if path == IGNORE_FILE && !is_dir {
            return false;
        }
        match self.0.matched(Path::new(path), is_dir) {
            Match::Ignore(glob) if glob.from().is_some() => glob.is_only_dir() == is_dir,
            matched => matched.is_ignore(),
        }
    }
}

fn add(to: &mut GitignoreBuilder, origin: PatternOrigin, line: usize, pattern: &str) -> Result<(), PatternError> {
    // The file name marks built-in patterns for `ignored_itself`.
    let from = (origin == PatternOrigin::BuiltIn).then(|| PathBuf::from("built in"));
    // Paths are compared in NFC. A user may have typed the pattern in any form.
    let nfc: String = pattern.nfc().collect();
    match to.add_line(from, &nfc) {
        Ok(_) => Ok(()),
        Err(e) => {
            let why = match e {
                ignore::Error::Glob { err, .. } => err,
                other => other.to_string(),
            };
            Err(PatternError { origin, line, pattern: pattern.to_owned(), why })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(list: &[&str], file: &str) -> IgnoreRules {
        IgnoreRules::new(&list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>(), Some(file)).unwrap()
    }

    #[test]
    fn built_in_patterns_match_leftovers_of_editors() {
        let rules = rules(&[], "");
        for name in [
            ".note.md.swp",
            ".note.md.swo",
            ".note.md.swn",
            ".swp",
            "note.md~",
            ".note.md.un~",
            "#note.md#",
            ".#note.md",
            "note.md___jb_tmp___",
            "note.md___jb_old___",
            ".~lock.plan.odt#",
            "lu1234abc.tmp",
            "~$plan.docx",
            "~WRL0001.tmp",
            ".note.md.kate-swp",
            ".goutputstream-X1Y2Z3",
            ".subl4f2.tmp",
            "a.txt.sb-1a2b3c4d-Xy12Zw",
            "film.mkv.part",
            "film.mkv.crdownload",
            ".nfs00000000012a",
            ".fuse_hidden0001",
            ".DS_Store",
            "._note.md",
            "Icon\r",
            "Thumbs.db",
            "desktop.ini",
            "Desktop.ini",
            ".syncthing.note.md.tmp",
            ".tmp-4711-6f9619ff-8b86-d011-b42d-00cf4fc964ff",
            "note.md.6f9619ff8b86d011b42d00cf4fc964ff.tmp",
        ] {
            assert!(rules.ignored(name, false), "{name:?}");
            assert!(rules.ignored(&format!("a/b/{name}"), false), "{name:?} deeper");
        }
        for dir in [".Trash-1000", ".Trashes", ".Spotlight-V100", ".fseventsd", "lost+found", "$RECYCLE.BIN"] {
            assert!(rules.ignored(dir, true), "{dir}");
            assert!(rules.ignored(&format!("{dir}/x/y"), false), "{dir}/x/y");
            assert!(!rules.ignored(&format!("notes/{dir}"), true), "notes/{dir}");
        }
    }

    #[test]
    fn built_in_patterns_spare_the_names_of_users() {
        let rules = rules(&[], "");
        for name in [
            "note.md",
            ".hidden",
            "notes.swift",
            "a.swp.md",
            "4913",
            "2024",
            "#hashtag.md",
            "c#",
            "a~b",
            "part",
            "my.part.md",
            "Icons",
            "sedABCDEF",
            "note.md.save",
            "lunch.tmp",
            "database.db",
            ".memsyncignore",
            "sub/.memsyncignore",
            ".nfsnotes.md.txt/x",
            "a.bak",
            "a.tmp",
            "a.lock",
            ".tmp-4711-notes",
            ".tmp-x-6f9619ff-8b86-d011-b42d-00cf4fc964ff",
            ".tmp-4711-6f9619ff-8b86-d011-b42d-00cf4fc964ff.md",
            "note.6f9619ff8b86d011b42d00cf4fc964f.tmp",
            "note.6f9619ff8b86d011b42d00cf4fc964ffa.tmp",
            "6f9619ff8b86d011b42d00cf4fc964ff.tmp",
            "note.to be or not to be is the questi.tmp",
        ] {
            assert!(!rules.ignored(name, false), "{name}");
        }
        // The patterns for files do not apply to folders.
        for dir in ["old~", "book.part", "#drafts#", "~$"] {
            assert!(!rules.ignored(dir, true), "{dir}");
            assert!(!rules.ignored(&format!("{dir}/note.md"), false), "{dir}/note.md");
        }
    }

    #[test]
    fn private_folder_is_always_ignored() {
        let rules = rules(&["!.memsync", "!.memsync/**"], "!.memsync/");
        for path in [
            ".memsync",
            ".memsync/id",
            ".MemSync/history/x",
            "sub/.memsync/id",
            ".memsync/note.md",
            ".mem\u{17f}ync/id",
        ] {
            assert!(rules.ignored(path, false), "{path}");
        }
        assert!(!rules.ignored(".memsync2", true) && !rules.ignored("x.memsync", false));
    }

    #[test]
    fn patterns_follow_gitignore_syntax() {
        for (patterns, path, is_dir, ignored) in [
            ("*.tmp", "a.tmp", false, true),
            ("*.tmp", "x/y/a.tmp", false, true),
            ("cache/", "cache", true, true),
            ("cache/", "cache", false, false),
            ("cache/", "cache/a/b", false, true),
            ("cache/", "x/cache/a", false, true),
            ("/cache/", "x/cache/a", false, false),
            ("/top.md", "top.md", false, true),
            ("/top.md", "x/top.md", false, false),
            ("a/*.md", "a/x.md", false, true),
            ("a/*.md", "a/b/x.md", false, false),
            ("a/**/x.md", "a/b/c/x.md", false, true),
            ("**/drafts", "x/drafts/y", false, true),
            ("a/**", "a", true, false),
            ("a/**", "a/b", false, true),
            ("# comment\n\n*.log  \n", "x.log", false, true),
            ("\\#x", "#x", false, true),
            ("\\!x", "!x", false, true),
            ("[ab].md", "a.md", false, true),
            ("*.tmp\n!keep.tmp", "keep.tmp", false, false),
            ("!keep.tmp\n*.tmp", "keep.tmp", false, true),
            ("d/\n!d/keep", "d/keep", false, true),
            ("!*.part", "score.part", false, false),
            ("\u{feff}*.log", "x.log", false, true),
            ("*.log\r\n*.tmp\r\n", "x.log", false, true),
            ("cafe\u{301}.md", "caf\u{e9}.md", false, true),
            ("caf\u{e9}.md", "cafe\u{301}.md", false, true),
            ("caf\u{e9}/", "cafe\u{301}/x.md", false, true),
            ("caf*.md", "x/cafe\u{301}.md", false, true),
            ("*", "note.md", false, true),
            ("*", ".memsyncignore", false, false),
        ] {
            assert_eq!(rules(&[], patterns).ignored(path, is_dir), ignored, "file {patterns:?} on {path:?}");
        }
        assert!(rules(&["*.log"], "").ignored("a/x.log", false));
        // The file in the folder wins.
        assert!(!rules(&["*.log"], "!x.log").ignored("x.log", false));
        assert!(rules(&["!x.log"], "*.log").ignored("x.log", false));
    }

    #[test]
    fn invalid_pattern_is_named() {
        let bad = IgnoreRules::new(&["*.ok".to_owned(), "a[b".to_owned()], None).unwrap_err();
        assert_eq!((bad.origin, bad.line, bad.pattern.as_str()), (PatternOrigin::Config, 2, "a[b"));
        assert!(bad.to_string().starts_with("the folder's `ignore` list, entry 2: `a[b` is no valid pattern: "));
        let bad = IgnoreRules::new(&[], Some("# fine\n*.ok\n{a,b\n")).unwrap_err();
        assert_eq!((bad.origin, bad.line, bad.pattern.as_str()), (PatternOrigin::File, 3, "{a,b"));
        // The other lines still apply.
        let (rules, bad) = IgnoreRules::from_good_lines(&[], Some("*.ok\n{a,b\n[\n*.fine\n")).unwrap();
        assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2, 3]);
        assert!(rules.ignored("x.ok", false) && rules.ignored("x.fine", false));
        assert!(IgnoreRules::from_good_lines(&["a[b".to_owned()], None).is_err());
    }
}
