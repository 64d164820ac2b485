//! [`ShadowTexts`]: the texts on which both sides last agreed, for a merge with a proxy that keeps no earlier versions.
//!
//! Each text is a file `<MD5>` in a folder beside the container, compressed. A missing text only prevents a merge, so the
//! files are not made durable: a text counts only if it has its MD5.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile, FileKind, read_file_up_to};
use crate::protocol::encoding::{Coding, Decoder, Encoder, MAX_WINDOW};

/// Longer texts are not kept, bytes.
pub const MAX_SHADOW_TEXT: usize = 256 * 1024;
/// The bytes of all files of one folder.
const MAX_TOTAL: u64 = 256 * 1024 * 1024;
/// The longest file, bytes. A text that cannot be compressed becomes a little longer.
const MAX_FILE: usize = MAX_SHADOW_TEXT + 4096;
/// State files are private to their owner.
const MODE: u32 = 0o600;
/// Suffix of a file that is being written.
const UNFINISHED: &str = ".tmp";

/// Reads the kept texts. Cheap to clone.
pub struct ShadowReader<D: Disk> {
    disk: Arc<D>,
    dir: Arc<str>,
}

impl<D: Disk> Clone for ShadowReader<D> {
    fn clone(&self) -> Self {
        Self { disk: self.disk.clone(), dir: self.dir.clone() }
    }
}

impl<D: Disk> ShadowReader<D> {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    /// The text with this digest. `None`: it is not kept, or damaged.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, md5: Md5) -> io::Result<Option<Vec<u8>>> {
        let packed = match self.disk.open(&self.path(&md5.to_string())) {
            Ok(mut file) => read_file_up_to(&mut file, MAX_FILE)?,
            Err(e) if is_absent(&e) => None,
            Err(e) => return Err(e),
        };
        Ok(packed.and_then(unpack).filter(|text| Md5::of(text) == md5))
    }

    /// The kept files, with their ages and sizes.
    fn list(&self) -> io::Result<Vec<ShadowFile>> {
        let names = match self.disk.list(&self.dir) {
            Ok(names) => names,
            Err(e) if is_absent(&e) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let file = |(name, meta): (std::ffi::OsString, crate::disk::FileMeta)| {
            (meta.kind == FileKind::File).then(|| {
                Some(ShadowFile { mtime_ns: meta.mtime_ns, name: name.into_string().ok()?, size: meta.size })
            })?
        };
        Ok(names.into_iter().filter_map(file).collect())
    }
}

/// A kept file. Ordered by age, the oldest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ShadowFile {
    mtime_ns: i64,
    name: String,
    /// Bytes.
    size: u64,
}

/// Keeps texts within a limit on their size.
pub struct ShadowTexts<D: Disk> {
    pub reader: ShadowReader<D>,
    /// The bytes of all files, once they are counted.
    used: Option<u64>,
    max_total: u64,
}

impl<D: Disk> ShadowTexts<D> {
    /// The texts of the container `name` in the directory of `disk`.
    pub(super) fn beside(disk: Arc<D>, name: &str) -> Self {
        let reader = ShadowReader { disk, dir: format!("{name}.texts").into() };
        Self { reader, used: None, max_total: MAX_TOTAL }
    }

    /// Keeps a text. If all texts together become too large, those that are not in `needed()` go first, then the oldest.
    ///
    /// # Errors
    /// The disk cannot be written.
    pub fn keep(&mut self, text: &[u8], needed: impl FnOnce() -> BTreeSet<Md5>) -> io::Result<()> {
        let name = Md5::of(text).to_string();
        let (disk, path) = (self.reader.disk.clone(), self.reader.path(&name));
        if text.len() > MAX_SHADOW_TEXT || disk.stat(&path).is_ok() {
            return Ok(());
        }
        let packed = pack(text)?;
        let unfinished = format!("{path}{UNFINISHED}");
        match disk.mkdir(&self.reader.dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        match disk.unlink(&unfinished) {
            Err(e) if !is_absent(&e) => return Err(e),
            _ => {}
        }
        let mut file = disk.create(&unfinished)?;
        file.set_mode(MODE)?;
        file.write_all(&packed)?;
        disk.rename(&unfinished, &path)?;
        let used = match self.used {
            Some(used) => used + packed.len() as u64,
            None => self.reader.list()?.iter().map(|file| file.size).sum(),
        };
        self.used = Some(used);
        if used > self.max_total { self.make_room(&needed()) } else { Ok(()) }
    }

    /// Removes texts until a tenth of the limit is free.
    fn make_room(&mut self, needed: &BTreeSet<Md5>) -> io::Result<()> {
        let mut files = self.reader.list()?;
        let mut used: u64 = files.iter().map(|file| file.size).sum();
        let is_needed = |file: &ShadowFile| file.name.parse().is_ok_and(|md5| needed.contains(&md5));
        files.sort_by_cached_key(|file| (is_needed(file), file.mtime_ns));
        for file in files {
            if used <= self.max_total / 10 * 9 {
                break;
            }
            match self.reader.disk.unlink(&self.reader.path(&file.name)) {
                Err(e) if !is_absent(&e) => return Err(e),
                _ => used = used.saturating_sub(file.size),
            }
        }
        self.used = Some(used);
        Ok(())
    }
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn pack(text: &[u8]) -> io::Result<Bytes> {
    let packed = Encoder::new(Coding::Zstd, Some(text.len() as u64)).and_then(|mut encoder| encoder.finish(text));
    packed.map_err(io::Error::other)
}

/// The plain text. `None`: the file is damaged.
fn unpack(packed: Vec<u8>) -> Option<Vec<u8>> {
    let (mut decoder, mut packed) = (Decoder::new(Coding::Zstd, MAX_WINDOW).ok()?, Bytes::from(packed));
    let mut text = Vec::new();
    while let Some(piece) = decoder.decode(&mut packed).ok()? {
        text.extend_from_slice(&piece);
        if text.len() > MAX_SHADOW_TEXT {
            return None;
        }
    }
    decoder.finish().ok().map(|()| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SimDisk;

    fn texts() -> (SimDisk, ShadowTexts<SimDisk>) {
        let disk = SimDisk::new();
        (disk.clone(), ShadowTexts::beside(Arc::new(disk), "folder.json"))
    }

    fn keep(texts: &mut ShadowTexts<SimDisk>, text: &[u8], needed: &[&[u8]]) {
        texts.keep(text, || needed.iter().map(|text| Md5::of(text)).collect()).unwrap();
    }

    #[test]
    fn text_is_read_back_by_its_digest() {
        let (disk, mut texts) = texts();
        for text in [&b""[..], b"a note\n", &vec![b'a'; MAX_SHADOW_TEXT]] {
            keep(&mut texts, text, &[]);
            assert!(texts.reader.read(Md5::of(text)).unwrap().unwrap() == text);
        }
        assert_eq!(texts.reader.read(Md5::of(b"another")).unwrap(), None);
        let name = format!("folder.json.texts/{}", Md5::of(b"a note\n"));
        assert_eq!(disk.user_stat(&name).unwrap().mode & 0o777, 0o600);
        assert_eq!(disk.user_tree("").len(), 3, "no unfinished file is left");
    }

    #[test]
    fn large_text_is_not_kept() {
        let (disk, mut texts) = texts();
        keep(&mut texts, &vec![b'a'; MAX_SHADOW_TEXT + 1], &[]);
        assert!(disk.user_tree("").is_empty());
    }

    #[test]
    fn damaged_text_is_no_text() {
        let (disk, mut texts) = texts();
        keep(&mut texts, b"a note", &[]);
        keep(&mut texts, b"another", &[]);
        let name = |text: &[u8]| format!("folder.json.texts/{}", Md5::of(text));
        let whole = disk.user_read(&name(b"a note")).unwrap();
        for damaged in
            [Vec::new(), whole[..whole.len() - 1].to_vec(), disk.user_read(&name(b"another")).unwrap().to_vec()]
        {
            disk.user_write(&name(b"a note"), damaged).unwrap();
            assert_eq!(texts.reader.read(Md5::of(b"a note")).unwrap(), None);
        }
    }

    #[test]
    fn unneeded_and_old_texts_are_removed_first() {
        let (disk, mut texts) = texts();
        let text = |n: u8| [b"text of number ", &[b'0' + n][..]].concat();
        let size = pack(&text(0)).unwrap().len() as u64;
        texts.max_total = 5 * size;
        for n in 0..5 {
            disk.set_time(i64::from(n) * 1_000_000_000);
            keep(&mut texts, &text(n), &[]);
        }
        disk.set_time(9_000_000_000);
        // A new process counts the files again.
        texts.used = None;
        keep(&mut texts, &text(5), &[&text(0), &text(2), &text(3), &text(4), &text(5)]);
        let is_kept: Vec<bool> = (0..6).map(|n| texts.reader.read(Md5::of(&text(n))).unwrap().is_some()).collect();
        assert_eq!(is_kept, [false, false, true, true, true, true], "1 is not needed, and 0 is the oldest");
    }
}
