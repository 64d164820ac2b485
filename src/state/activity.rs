//! [`ActivityJournal`]: a record of each step that sync took in a folder, kept over restarts. Each line is one JSON document.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::disk::whole::{append_lines, create_private_dir};

/// Days with entries that are kept. The count does not depend on the clock.
const MAX_DAYS: usize = 30;
/// Bytes of all files. The oldest ones are removed.
const MAX_TOTAL: u64 = 64 * 1024 * 1024;
/// Bytes of one file. A day with more entries has several files.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// A step that sync finished, or that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityEntry {
    pub at: Timestamp,
    pub path: String,
    /// `upload`, `download`, `delete`, `trash`, `merged` or `conflict`.
    pub action: String,
    /// `done`, or why it failed.
    pub outcome: String,
    /// The machine that wrote the new content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// The journal of one folder. Its files are named `<day>-<number>.jsonl`, so their order is that of their names.
#[derive(Debug, Clone)]
pub struct ActivityJournal {
    dir: PathBuf,
}

/// How far a reader of a journal has come.
#[derive(Debug, Clone, Default)]
pub struct JournalPosition {
    file: String,
    /// Bytes of the file that were read.
    offset: u64,
}

impl ActivityJournal {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds entries. They are not made durable: a power cut may take the last ones.
    ///
    /// # Errors
    /// The journal cannot be written. Some entries may be in it.
    pub fn append(&self, entries: &[ActivityEntry]) -> io::Result<()> {
        let Some(first) = entries.first() else { return Ok(()) };
        create_private_dir(&self.dir)?;
        let path = self.file_for(first.at)?;
        let mut text = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut text, entry)?;
            text.push(b'\n');
        }
        append_lines(&path, &text)
    }

    /// The entries behind `position`, the oldest first. The position moves on behind them.
    ///
    /// # Errors
    /// The journal cannot be read. A missing journal is empty.
    pub fn read(&self, position: &mut JournalPosition) -> io::Result<Vec<ActivityEntry>> {
        let mut entries = Vec::new();
        let begin = position.clone();
        for (name, _) in self.files()?.into_iter().filter(|(name, _)| *name >= begin.file) {
            let offset = if name == begin.file { begin.offset } else { 0 };
            let mut file = match File::open(self.dir.join(&name)) {
                // It was removed a moment ago, because it is old.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            file.seek(SeekFrom::Start(offset))?;
            *position = JournalPosition { file: name, offset: offset + read_lines(file, &mut entries)? };
        }
        Ok(entries)
    }

    /// The file for entries of this time. Begins a new one for a new day, and removes the files that are too many then.
    /// If the clock was set back, the newest file goes on.
    fn file_for(&self, at: Timestamp) -> io::Result<PathBuf> {
        let files = self.files()?;
        let today = at.strftime("%Y-%m-%d").to_string();
        let newest = files.last().map(|(name, size)| (name.as_str(), *size));
        let name = match newest {
            Some((name, size)) if day_of(name) >= today.as_str() && size < MAX_FILE => name.to_owned(),
            Some((name, _)) if day_of(name) >= today.as_str() => {
                self.prune(&files)?;
                file_name(day_of(name), number_of(name) + 1)
            }
            _ => {
                self.prune(&files)?;
                file_name(&today, 0)
            }
        };
        Ok(self.dir.join(name))
    }

    /// Removes the oldest files, so that there is room for one more.
    fn prune(&self, files: &[(String, u64)]) -> io::Result<()> {
        let mut days: Vec<&str> = files.iter().map(|(name, _)| day_of(name)).collect();
        days.dedup();
        let first_day = days.len().checked_sub(MAX_DAYS - 1).and_then(|first| days.get(first)).copied().unwrap_or("");
        let mut total: u64 = files.iter().map(|(_, size)| size).sum();
        for (name, size) in files {
            if day_of(name) >= first_day && total + MAX_FILE <= MAX_TOTAL {
                return Ok(());
            }
            match fs::remove_file(self.dir.join(name)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
            total -= size;
        }
        Ok(())
    }

    /// The files with their sizes in bytes, the oldest first.
    fn files(&self) -> io::Result<Vec<(String, u64)>> {
        let listed = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut files = Vec::new();
        for entry in listed {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && is_file_name(&name)
            {
                match entry.metadata() {
                    // It was removed a moment ago, because it is old.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    meta => files.push((name, meta?.len())),
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

const SUFFIX: &str = ".jsonl";

fn file_name(day: &str, number: u32) -> String {
    format!("{day}-{number:04}{SUFFIX}")
}

fn is_file_name(name: &str) -> bool {
    let stem = name.strip_suffix(SUFFIX).unwrap_or_default();
    stem.len() == "2026-01-01-0000".len() && stem.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

fn day_of(name: &str) -> &str {
    name.get(.."2026-01-01".len()).unwrap_or(name)
}

fn number_of(name: &str) -> u32 {
    let number = name.strip_suffix(SUFFIX).and_then(|stem| stem.rsplit_once('-'));
    number.and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

/// Reads the whole lines of a file. Returns their length in bytes. A line that a crash cut short is no entry.
fn read_lines(file: File, entries: &mut Vec<ActivityEntry>) -> io::Result<u64> {
    let (mut lines, mut line, mut length) = (BufReader::new(file), Vec::new(), 0);
    while lines.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        length += line.len() as u64;
        entries.extend(serde_json::from_slice::<ActivityEntry>(&line));
        line.clear();
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    fn entry(at: &str, path: &str) -> ActivityEntry {
        let (action, outcome) = ("upload".to_owned(), "done".to_owned());
        ActivityEntry { at: at.parse().unwrap(), path: path.to_owned(), action, outcome, device: None }
    }

    fn journal() -> (tempfile::TempDir, ActivityJournal) {
        let dir = tempfile::tempdir().unwrap();
        let journal = ActivityJournal::new(dir.path().join("activity"));
        (dir, journal)
    }

    fn paths(journal: &ActivityJournal, position: &mut JournalPosition) -> Vec<String> {
        journal.read(position).unwrap().into_iter().map(|entry| entry.path).collect()
    }

    #[test]
    fn reader_goes_on_where_it_stopped() {
        let (_dir, journal) = journal();
        let mut position = JournalPosition::default();
        assert!(paths(&journal, &mut position).is_empty(), "a missing journal is empty");
        journal.append(&[entry("2026-11-20T10:00:00Z", "a"), entry("2026-11-20T10:00:01Z", "b")]).unwrap();
        assert_eq!(paths(&journal, &mut position), ["a", "b"]);
        journal.append(&[entry("2026-11-20T11:00:00Z", "c")]).unwrap();
        journal.append(&[entry("2026-11-21T11:00:00Z", "d")]).unwrap();
        assert_eq!(paths(&journal, &mut position), ["c", "d"]);
        assert!(paths(&journal, &mut position).is_empty());
        // The clock was set back.
        journal.append(&[entry("2026-11-01T00:00:00Z", "e")]).unwrap();
        assert_eq!(paths(&journal, &mut position), ["e"]);
    }

    #[test]
    fn line_that_was_cut_short_spoils_no_other() {
        let (_dir, journal) = journal();
        journal.append(&[entry("2026-11-20T10:00:00Z", "a")]).unwrap();
        let file = journal.dir().join("2026-11-20-0000.jsonl");
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"at\":\"2026-").unwrap();
        let mut position = JournalPosition::default();
        assert_eq!(paths(&journal, &mut position), ["a"]);
        journal.append(&[entry("2026-11-20T10:00:02Z", "b")]).unwrap();
        assert_eq!(paths(&journal, &mut position), ["b"]);
    }

    #[test]
    fn oldest_files_make_room_for_new_ones() {
        let (_dir, journal) = journal();
        let first: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for day in 0..40 {
            let at = first + jiff::SignedDuration::from_hours(24 * day);
            journal.append(&[entry(&at.to_string(), &day.to_string())]).unwrap();
        }
        let kept = paths(&journal, &mut JournalPosition::default());
        assert_eq!(kept, (10..40).map(|day| day.to_string()).collect::<Vec<_>>(), "30 days");
        // Sparse files, each of them full.
        for (name, _) in journal.files().unwrap() {
            File::options().write(true).open(journal.dir().join(name)).unwrap().set_len(MAX_FILE).unwrap();
        }
        journal.append(&[entry("2026-12-31T00:00:00Z", "x")]).unwrap();
        let total: u64 = journal.files().unwrap().iter().map(|(_, size)| size).sum();
        assert!(total <= MAX_TOTAL, "{total}");
    }

    #[test]
    fn full_file_is_followed_by_another_one_of_the_day() {
        let (_dir, journal) = journal();
        journal.append(&[entry("2026-11-20T10:00:00Z", "a")]).unwrap();
        let file = journal.dir().join("2026-11-20-0000.jsonl");
        OpenOptions::new().append(true).open(&file).unwrap().set_len(MAX_FILE).unwrap();
        journal.append(&[entry("2026-11-20T10:00:01Z", "b")]).unwrap();
        assert!(journal.dir().join("2026-11-20-0001.jsonl").exists());
        assert_eq!(paths(&journal, &mut JournalPosition::default()), ["a", "b"]);
    }
}
