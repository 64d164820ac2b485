//! [`FolderRules`]: the ignore rules of an open folder, from the configuration and its [`IGNORE_FILE`].
//!
//! A rule may keep secrets off the proxy, so rules are dropped with care. A bad line does not affect the others. While
//! the file cannot be read, the rules stay. A file that is gone or has shrunk must be so in two checks, because editors
//! remove a file before they write its new version.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::disk::{Disk, DiskFile};
use crate::local::ignore::{IGNORE_FILE, IgnoreRules, PatternError};

/// Longest [`IGNORE_FILE`] that is read, bytes.
const MAX_IGNORE_FILE: usize = 1024 * 1024;

/// The current rules, for the engine and the watcher.
pub struct SharedRules(RwLock<Arc<IgnoreRules>>);

impl SharedRules {
    pub fn get(&self) -> Arc<IgnoreRules> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, rules: IgnoreRules) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }
}

/// The text of the file, `None` without a file, or why it cannot be read.
type IgnoreText = Result<Option<String>, String>;

/// The result of a check of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RulesCheck {
    /// Nothing has changed.
    Same,
    /// The rules or their problem have changed.
    Changed,
    /// The file is gone or shorter than before. Check it again at this time.
    Doubtful(Instant),
}

/// The rules of a folder, and the state of its ignore file.
pub struct FolderRules {
    pub shared: Arc<SharedRules>,
    /// The problem of the file, and its effect.
    pub problem: Option<String>,
    /// The text that the last check found.
    text: IgnoreText,
    /// Bytes of the file that the rules come from.
    size: usize,
    /// A text that must be confirmed by a second check, and the time of the first.
    doubted: Option<(IgnoreText, Instant)>,
}

impl FolderRules {
    /// The problem of the ignore file, by its path.
    pub fn problems(&self) -> BTreeMap<String, String> {
        self.problem.iter().map(|why| (IGNORE_FILE.to_owned(), why.clone())).collect()
    }

    /// Reads the rules. `list`: the patterns of the configuration. A bad pattern in it is an error.
    pub fn open<D: Disk>(root: &D, list: &[String]) -> Result<Self, PatternError> {
        let text = read(root);
        let believed = text.as_ref().ok().and_then(Option::as_deref);
        let (rules, mut problem) = make(list, believed)?;
        if let Err(why) = &text {
            problem = Some(format!("{why}; until it can be read, its patterns do not count"));
        }
        let size = believed.map_or(0, str::len);
        let shared = Arc::new(SharedRules(RwLock::new(Arc::new(rules))));
        Ok(Self { shared, problem, text, size, doubted: None })
    }

    /// Checks the file again. A file that is gone or shorter must be so in two checks that are `apart` from each other.
    /// After a bad pattern in `list` the rules stay as they are.
    pub fn check<D: Disk>(
        &mut self,
        root: &D,
        list: &[String],
        now: Instant,
        apart: Duration,
    ) -> Result<RulesCheck, PatternError> {
        let text = read(root);
        let doubted = self.doubted.take();
        if text == self.text {
            return Ok(RulesCheck::Same);
        }
        match &text {
            Err(why) => {
                self.problem = Some(format!("{why}; until it can be read, its last patterns stay in force"));
            }
            Ok(said) => {
                let size = said.as_ref().map_or(0, String::len);
                let first = doubted.filter(|(before, _)| *before == text).map_or(now, |(_, first)| first);
                if size < self.size && now < first + apart {
                    self.doubted = Some((text, first));
                    return Ok(RulesCheck::Doubtful(first + apart));
                }
                let (rules, problem) = make(list, said.as_deref())?;
                self.shared.set(rules);
                self.problem = problem;
                self.size = size;
            }
        }
        self.text = text;
        Ok(RulesCheck::Changed)
    }
}

/// The rules of the configuration's list and of the file, and the problem of the file.
fn make(list: &[String], text: Option<&str>) -> Result<(IgnoreRules, Option<String>), PatternError> {
    let (rules, bad) = IgnoreRules::from_good_lines(list, text)?;
    let problem = bad.first().map(|first| {
        let more =
            if bad.len() > 1 { format!(" ({} more of its lines are bad)", bad.len() - 1) } else { String::new() };
        format!("{first}{more}; bad lines do not count until you fix them")
    });
    Ok((rules, problem))
}

fn read<D: Disk>(root: &D) -> IgnoreText {
    let read = || -> io::Result<Option<String>> {
        let mut file = match root.open(IGNORE_FILE) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let (mut text, mut buf) = (Vec::new(), [0u8; 4096]);
        loop {
            let n = file.read(&mut buf)?;
            if n == 0 {
                break;
            }
            text.extend_from_slice(&buf[..n]);
            if text.len() > MAX_IGNORE_FILE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a list of patterns"));
            }
        }
        // A line that is not UTF-8 is a bad line.
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    };
    read().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SimDisk;

    const APART: Duration = Duration::from_millis(100);

    /// A folder with this ignore file, and its rules.
    fn rules(text: &[u8]) -> (SimDisk, FolderRules) {
        let disk = SimDisk::new();
        disk.user_write(IGNORE_FILE, text.to_vec()).unwrap();
        let rules = FolderRules::open(&disk, &["*.listed".to_owned()]).unwrap();
        (disk, rules)
    }

    fn check(rules: &mut FolderRules, disk: &SimDisk, at: Instant) -> RulesCheck {
        rules.check(disk, &["*.listed".to_owned()], at, APART).unwrap()
    }

    fn ignored(rules: &FolderRules, names: &[&str]) -> Vec<bool> {
        names.iter().map(|name| rules.shared.get().ignored(name, false)).collect()
    }

    #[test]
    fn bad_lines_do_not_affect_the_others() {
        let (disk, mut rules) = rules(b"*.key\na[b\n\xff*.pem\n*.pass\n");
        let names = ["a.key", "a.pass", "a.listed", "note.md"];
        assert_eq!(ignored(&rules, &names), [true, true, true, false]);
        let problem = rules.problem.clone().unwrap();
        assert!(problem.contains("line 2") && problem.contains("1 more"), "{problem}");
        disk.user_write(IGNORE_FILE, "*.key\n*.pem\n*.pass\n*.more\n").unwrap();
        assert_eq!((check(&mut rules, &disk, Instant::now()), rules.problem.as_deref()), (RulesCheck::Changed, None));
    }

    #[test]
    fn rules_stay_while_the_file_is_unreadable() {
        let (disk, mut rules) = rules(b"*.key\n");
        let now = Instant::now();
        disk.set_unreadable(IGNORE_FILE, true).unwrap();
        assert_eq!(check(&mut rules, &disk, now), RulesCheck::Changed, "there is something to report");
        assert!(rules.problem.is_some());
        assert_eq!(check(&mut rules, &disk, now), RulesCheck::Same);
        assert_eq!(ignored(&rules, &["a.key", "a.listed"]), [true, true]);
        disk.set_unreadable(IGNORE_FILE, false).unwrap();
        disk.user_write(IGNORE_FILE, vec![b'#'; MAX_IGNORE_FILE + 1]).unwrap();
        check(&mut rules, &disk, now);
        assert!(ignored(&rules, &["a.key"])[0] && rules.problem.as_ref().unwrap().contains("too long"));
        disk.user_write(IGNORE_FILE, "*.key\n*.pem\n").unwrap();
        assert_eq!((check(&mut rules, &disk, now), rules.problem.as_deref()), (RulesCheck::Changed, None));
        assert_eq!(ignored(&rules, &["a.key", "a.pem"]), [true, true]);
    }

    #[test]
    fn shorter_file_counts_after_two_checks() {
        for less in [None, Some(""), Some("*.k")] {
            let (disk, mut rules) = rules(b"*.key\n");
            let now = Instant::now();
            let change = |text: Option<&'static str>| match text {
                None => disk.user_remove(IGNORE_FILE).unwrap(),
                Some(text) => disk.user_write(IGNORE_FILE, text).unwrap(),
            };
            change(less);
            assert_eq!(check(&mut rules, &disk, now), RulesCheck::Doubtful(now + APART));
            assert!(ignored(&rules, &["a.key"])[0], "{less:?}");
            // The new version has arrived.
            change(Some("*.key\n"));
            assert_eq!(check(&mut rules, &disk, now + APART), RulesCheck::Same);
            // It is gone once more, for good. The time counts from here.
            change(less);
            let later = now + APART * 2;
            assert_eq!(check(&mut rules, &disk, later), RulesCheck::Doubtful(later + APART));
            assert_eq!(check(&mut rules, &disk, later + APART / 2), RulesCheck::Doubtful(later + APART));
            assert!(ignored(&rules, &["a.key"])[0], "{less:?}");
            assert_eq!(check(&mut rules, &disk, later + APART), RulesCheck::Changed);
            assert!(!ignored(&rules, &["a.key"])[0], "{less:?}");
            assert_eq!(check(&mut rules, &disk, later + APART), RulesCheck::Same);
            change(Some("*.key\n"));
            assert_eq!(check(&mut rules, &disk, later + APART), RulesCheck::Changed, "a longer file counts at once");
            assert!(ignored(&rules, &["a.key"])[0]);
        }
    }
}
