//! [`FolderRules`]: the ignore rules of an open folder, and what is believed of its [`IGNORE_FILE`].
//!
//! A rule keeps secrets here, so that it is not given up lightly: of a file with a bad line the other lines hold, while
//! the file cannot be read the rules stay as they are, and a file that is gone or has shrunk is looked at twice, since
//! editors and programs that bring a new version take the old one away first.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::disk::{Disk, DiskFile};
use crate::local::ignore::{IGNORE_FILE, IgnoreRules, PatternError};

/// Longest [`IGNORE_FILE`] that is read, bytes.
const MAX_IGNORE_FILE: usize = 1024 * 1024;

/// The rules as the engine asks them and the watcher shares them.
pub struct SharedRules(RwLock<Arc<IgnoreRules>>);

impl SharedRules {
    pub fn get(&self) -> Arc<IgnoreRules> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, rules: IgnoreRules) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }
}

/// The text of the file where there is one, or why it cannot be read.
type Text = Result<Option<String>, String>;

/// What a look at the file came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// All is as it was.
    Same,
    /// The rules, or what is wrong with them, are others than before.
    Changed,
    /// The file says less than before: look again then.
    Doubtful(Instant),
}

/// The rules of a folder, and the file that they were made of.
pub struct FolderRules {
    pub shared: Arc<SharedRules>,
    /// What is wrong with the file, and what that means.
    pub problem: Option<String>,
    /// What the last look found.
    text: Text,
    /// Bytes of the file that the rules were made of.
    size: usize,
    /// What a look found that is not believed yet, and since when.
    doubted: Option<(Text, Instant)>,
}

impl FolderRules {
    /// What is wrong with the ignore file, by its path.
    pub fn problems(&self) -> BTreeMap<String, String> {
        self.problem.iter().map(|why| (IGNORE_FILE.to_owned(), why.clone())).collect()
    }

    /// The rules as they are now. `list`: the patterns of the configuration.
    ///
    /// # Errors
    /// When a pattern of the configuration does not hold.
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

    /// Looks at the file again. A file that says less than before must do so in two looks this far apart.
    ///
    /// # Errors
    /// As [`FolderRules::open`]; then the rules stay as they are.
    pub fn look<D: Disk>(
        &mut self,
        root: &D,
        list: &[String],
        now: Instant,
        apart: Duration,
    ) -> Result<Look, PatternError> {
        self.take_in(read(root), list, now, apart)
    }

    fn take_in(&mut self, text: Text, list: &[String], now: Instant, apart: Duration) -> Result<Look, PatternError> {
        let doubted = self.doubted.take();
        if text == self.text {
            return Ok(Look::Same);
        }
        match &text {
            Err(why) => {
                self.problem = Some(format!("{why}; until it can be read, the patterns that it had stay in force"));
            }
            Ok(said) => {
                let size = said.as_ref().map_or(0, String::len);
                let first = doubted.filter(|(before, _)| *before == text).map_or(now, |(_, first)| first);
                if size < self.size && now < first + apart {
                    self.doubted = Some((text, first));
                    return Ok(Look::Doubtful(first + apart));
                }
                let (rules, problem) = make(list, said.as_deref())?;
                self.shared.set(rules);
                self.problem = problem;
                self.size = size;
            }
        }
        self.text = text;
        Ok(Look::Changed)
    }
}

/// The rules of the configuration's list and of the file, and what is wrong with the latter.
fn make(list: &[String], text: Option<&str>) -> Result<(IgnoreRules, Option<String>), PatternError> {
    let (rules, bad) = IgnoreRules::from_good_lines(list, text)?;
    let problem = bad.first().map(|first| {
        let more =
            if bad.len() > 1 { format!(" ({} more of its lines are as bad)", bad.len() - 1) } else { String::new() };
        format!("{first}{more}; until it is mended, the line does not count")
    });
    Ok((rules, problem))
}

fn read<D: Disk>(root: &D) -> Text {
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

    /// A folder whose file says this, and its rules.
    fn rules(text: &[u8]) -> (SimDisk, FolderRules) {
        let disk = SimDisk::new();
        disk.user_write(IGNORE_FILE, text.to_vec()).unwrap();
        let rules = FolderRules::open(&disk, &["*.listed".to_owned()]).unwrap();
        (disk, rules)
    }

    fn look(rules: &mut FolderRules, disk: &SimDisk, at: Instant) -> Look {
        rules.look(disk, &["*.listed".to_owned()], at, APART).unwrap()
    }

    fn ignored(rules: &FolderRules, names: &[&str]) -> Vec<bool> {
        names.iter().map(|name| rules.shared.get().ignored(name, false)).collect()
    }

    #[test]
    fn of_a_file_with_bad_lines_the_others_hold() {
        let (disk, mut rules) = rules(b"*.key\na[b\n\xff*.pem\n*.pass\n");
        let names = ["a.key", "a.pass", "a.listed", "note.md"];
        assert_eq!(ignored(&rules, &names), [true, true, true, false]);
        let problem = rules.problem.clone().unwrap();
        assert!(problem.contains("line 2") && problem.contains("1 more"), "{problem}");
        disk.user_write(IGNORE_FILE, "*.key\n*.pem\n*.pass\n*.more\n").unwrap();
        assert_eq!((look(&mut rules, &disk, Instant::now()), rules.problem.as_deref()), (Look::Changed, None));
    }

    #[test]
    fn while_the_file_cannot_be_read_the_rules_stay() {
        let (disk, mut rules) = rules(b"*.key\n");
        let now = Instant::now();
        disk.set_unreadable(IGNORE_FILE, true).unwrap();
        assert_eq!(look(&mut rules, &disk, now), Look::Changed, "there is something to report");
        assert!(rules.problem.is_some());
        assert_eq!(look(&mut rules, &disk, now), Look::Same);
        assert_eq!(ignored(&rules, &["a.key", "a.listed"]), [true, true]);
        disk.set_unreadable(IGNORE_FILE, false).unwrap();
        disk.user_write(IGNORE_FILE, vec![b'#'; MAX_IGNORE_FILE + 1]).unwrap();
        look(&mut rules, &disk, now);
        assert!(ignored(&rules, &["a.key"])[0] && rules.problem.as_ref().unwrap().contains("too long"));
        disk.user_write(IGNORE_FILE, "*.key\n*.pem\n").unwrap();
        assert_eq!((look(&mut rules, &disk, now), rules.problem.as_deref()), (Look::Changed, None));
        assert_eq!(ignored(&rules, &["a.key", "a.pem"]), [true, true]);
    }

    #[test]
    fn a_file_that_says_less_is_believed_when_two_looks_agree() {
        for less in [None, Some(""), Some("*.k")] {
            let (disk, mut rules) = rules(b"*.key\n");
            let now = Instant::now();
            let change = |text: Option<&'static str>| match text {
                None => disk.user_remove(IGNORE_FILE).unwrap(),
                Some(text) => disk.user_write(IGNORE_FILE, text).unwrap(),
            };
            change(less);
            assert_eq!(look(&mut rules, &disk, now), Look::Doubtful(now + APART));
            assert!(ignored(&rules, &["a.key"])[0], "{less:?}");
            // The new version is there.
            change(Some("*.key\n"));
            assert_eq!(look(&mut rules, &disk, now + APART), Look::Same);
            // It is gone once more, for good: the first look of these counts.
            change(less);
            let later = now + APART * 2;
            assert_eq!(look(&mut rules, &disk, later), Look::Doubtful(later + APART));
            assert_eq!(look(&mut rules, &disk, later + APART / 2), Look::Doubtful(later + APART));
            assert!(ignored(&rules, &["a.key"])[0], "{less:?}");
            assert_eq!(look(&mut rules, &disk, later + APART), Look::Changed);
            assert!(!ignored(&rules, &["a.key"])[0], "{less:?}");
            assert_eq!(look(&mut rules, &disk, later + APART), Look::Same);
            change(Some("*.key\n"));
            assert_eq!(look(&mut rules, &disk, later + APART), Look::Changed, "more is believed at once");
            assert!(ignored(&rules, &["a.key"])[0]);
        }
    }
}
