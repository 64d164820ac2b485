//! [`IgnoreRules`]: which paths take no part in sync.
//!
//! Three layers, later ones stronger: what editors and systems leave behind (built in), the folder's `ignore`
//! list in the configuration, the `.memsyncignore` file at the folder's top. The last two are gitignore syntax.
//! It reads no file; the callers do.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::path::is_private;

/// The rules that travel with the folder. It is synced, whatever the rules say, so that all devices have the
/// same.
pub const IGNORE_FILE: &str = ".memsyncignore";

macro_rules! hex {
    (4) => {
        "[0-9a-f][0-9a-f][0-9a-f][0-9a-f]"
    };
    (8) => {
        concat!(hex!(4), hex!(4))
    };
    (32) => {
        concat!(hex!(8), hex!(8), hex!(8), hex!(8))
    };
}

/// Files that programs make for the moment and no user wrote. They apply to files only: a folder that happens to
/// have such a name holds somebody's work. Not here, because they cannot be told from a user's names: vim's probe
/// whether a folder can be written to (`4913`), `sed -i` (`sedXXXXXX`), rsync and QSaveFile (`name.XXXXXX`), Helix
/// (`nameXXXXXX.bck`), nano (`name.save`). Most live for a moment, and the scan finds them gone; a note that is
/// silently left out would be worse.
const FILES: &[&str] = &[
    // vim: swap files. Backups of vim, emacs, nano, gedit, kate.
    ".*.sw[a-p]",
    ".sw[a-p]",
    "*~",
    // emacs: auto-save, lock (a dangling symlink).
    "#*#",
    ".#*",
    // JetBrains' safe write.
    "*___jb_tmp___",
    "*___jb_old___",
    "*___jb_bak___",
    // LibreOffice: lock, the file it writes before it renames.
    ".~lock.*#",
    "lu[0-9]*.tmp",
    // Microsoft Office: owner file, the file it writes before it renames.
    "~$*",
    "~*.tmp",
    // kate, gedit and all that save through GLib, Sublime Text, Cocoa's safe save (TextEdit, Xcode).
    ".*.kate-swp",
    ".goutputstream-*",
    ".subl*.tmp",
    "*.sb-????????-??????",
    ".dat.nosync*",
    // Browsers and download programs.
    "*.part",
    "*.crdownload",
    // NFS and FUSE: a file removed while it was open.
    ".nfs[0-9a-f]*",
    ".fuse_hidden*",
    // macOS.
    ".DS_Store",
    "._*",
    ".localized",
    "Icon[\r]",
    // Windows.
    "Thumbs.db",
    "thumbs.db",
    "ehthumbs.db",
    "[Dd]esktop.ini",
    // Syncthing's temporary files.
    ".syncthing.*.tmp",
    // Programs that write beside the file and rename: `.tmp-<pid>-<uuid>`, `name.<32 hex>.tmp`.
    concat!(".tmp-[0-9]*-", hex!(8), "-", hex!(4), "-", hex!(4), "-", hex!(4), "-", hex!(8), hex!(4)),
    concat!("*.", hex!(32), ".tmp"),
];

/// Folders that a system puts at the top of a volume.
const FOLDERS: &[&str] = &[
    "/.Trash-[0-9]*/",
    "/.Trashes/",
    "/.Spotlight-V100/",
    "/.fseventsd/",
    "/.TemporaryItems/",
    "/.DocumentRevisions-V100/",
    "/$RECYCLE.BIN/",
    "/System Volume Information/",
    "/lost+found/",
];

/// The built-in patterns, in gitignore syntax.
pub fn built_in_patterns() -> impl Iterator<Item = &'static str> {
    FILES.iter().chain(FOLDERS).copied()
}

/// Where a pattern was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatternOrigin {
    /// The defaults.
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

/// A pattern that is no glob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin} {line}: `{pattern}` is no valid pattern: {why}")]
pub struct PatternError {
    pub origin: PatternOrigin,
    /// From 1: of the list or of the file.
    pub line: usize,
    pub pattern: String,
    pub why: String,
}

/// Which paths take no part. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IgnoreRules(Gitignore);

impl IgnoreRules {
    /// Compiles the rules: `list` from the configuration, `file` the text of the [`IGNORE_FILE`] where there is one.
    /// The last pattern that matches a path decides, as in git, and a `!pattern` can bring back what is left out by
    /// default. As in git, nothing inside a folder that is left out can be brought back.
    ///
    /// # Errors
    /// The first pattern that is no glob.
    pub fn new(list: &[String], file: Option<&str>) -> Result<Self, PatternError> {
        let (rules, bad) = Self::of_good_lines(list, file)?;
        bad.into_iter().next().map_or(Ok(rules), Err)
    }

    /// As [`IgnoreRules::new`], without the lines of the file that are no globs, or were not UTF-8 (U+FFFD stands in them);
    /// gives those, too.
    ///
    /// # Errors
    /// The first pattern of `list` that is no glob.
    pub fn of_good_lines(list: &[String], file: Option<&str>) -> Result<(Self, Vec<PatternError>), PatternError> {
        let mut all = GitignoreBuilder::new("");
        // A `[` without its `]` is a slip of the pen rather than a name.
        all.allow_unclosed_class(false);
        for (i, pattern) in built_in_patterns().enumerate() {
            // In gitignore a leading `#` opens a comment.
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
        // Each pattern is valid by now; together they can still be too large for the matcher.
        let rules = all.build().map(Self).map_err(|e| PatternError {
            origin: PatternOrigin::File,
            line: file.lines().count(),
            pattern: "all patterns together".to_owned(),
            why: e.to_string(),
        })?;
        Ok((rules, bad))
    }

    /// Whether `path` (relative, `/`-separated, in any Unicode form) takes no part, by itself or because a folder above
    /// it does not.
    pub fn ignored(&self, path: &str, is_dir: bool) -> bool {
        let nfc: Cow<'_, str> = match is_nfc_quick(path.chars()) {
            IsNormalized::Yes => path.into(),
            _ => path.nfc().collect::<String>().into(),
        };
        let path = &*nfc;
        path.match_indices('/').any(|(end, _)| self.ignored_itself(&path[..end], true))
            || self.ignored_itself(path, is_dir)
    }

    /// As [`IgnoreRules::ignored`], of a path in NFC, whatever becomes of the folders above.
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
    // What is built in is marked by a file it is said to come from.
    let from = (origin == PatternOrigin::BuiltIn).then(|| PathBuf::from("built in"));
    // Paths are compared in NFC; a pattern may have been typed in any form.
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
    fn leaves_out_what_editors_and_systems_leave_behind() {
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
    fn keeps_what_users_write() {
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
        // A folder is somebody's work, whatever its name.
        for dir in ["old~", "book.part", "#drafts#", "~$"] {
            assert!(!rules.ignored(dir, true), "{dir}");
            assert!(!rules.ignored(&format!("{dir}/note.md"), false), "{dir}/note.md");
        }
    }

    #[test]
    fn the_private_folder_is_never_in() {
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
    fn gitignore_syntax() {
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
        // The file in the folder has the last word.
        assert!(!rules(&["*.log"], "!x.log").ignored("x.log", false));
        assert!(rules(&["!x.log"], "*.log").ignored("x.log", false));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let bad = IgnoreRules::new(&["*.ok".to_owned(), "a[b".to_owned()], None).unwrap_err();
        assert_eq!((bad.origin, bad.line, bad.pattern.as_str()), (PatternOrigin::Config, 2, "a[b"));
        assert!(bad.to_string().starts_with("the folder's `ignore` list, entry 2: `a[b` is no valid pattern: "));
        let bad = IgnoreRules::new(&[], Some("# fine\n*.ok\n{a,b\n")).unwrap_err();
        assert_eq!((bad.origin, bad.line, bad.pattern.as_str()), (PatternOrigin::File, 3, "{a,b"));
        // The other lines hold.
        let (rules, bad) = IgnoreRules::of_good_lines(&[], Some("*.ok\n{a,b\n[\n*.fine\n")).unwrap();
        assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2, 3]);
        assert!(rules.ignored("x.ok", false) && rules.ignored("x.fine", false));
        assert!(IgnoreRules::of_good_lines(&["a[b".to_owned()], None).is_err());
    }
}
