//! The names of conflict copies. Where a copy is put is not decided here.

use crate::digest::Md5;

/// `stem.conflict-<device>-<first 8 of md5>.ext`; from the second on with a number. The copy of a copy is named
/// after the original, so that names never nest.
pub fn conflict_name(name: &str, device: &str, content: Md5, n: u32) -> String {
    let (stem, ext) = split_conflict(name).unwrap_or_else(|| split_ext(name));
    let number = if n > 1 { format!("-{n}") } else { String::new() };
    let tail = format!(".conflict-{device}-{}{number}{ext}", content.short());
    let mut keep = crate::path::MAX_SEGMENT.saturating_sub(tail.len()).min(stem.len());
    while !stem.is_char_boundary(keep) {
        keep -= 1;
    }
    format!("{}{tail}", &stem[..keep])
}

/// Whether a name is that of a conflict copy.
pub fn is_conflict_name(name: &str) -> bool {
    split_conflict(name).is_some()
}

/// What follows a dot further from the end, in bytes, is no extension but part of the name.
const LONGEST_EXT: usize = 32;

/// The stem and extension of a name; the extension has its dot.
pub fn split_ext(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= LONGEST_EXT => name.split_at(at),
        _ => (name, ""),
    }
}

/// The stem and extension of the original, if `name` is that of a conflict copy.
fn split_conflict(name: &str) -> Option<(&str, &str)> {
    parse_copy_name(name).map(|copy| (copy.stem, copy.ext))
}

/// The parts of a conflict copy's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyName<'a> {
    /// Of the original's name; cut where the whole did not fit.
    stem: &'a str,
    /// The device that made the copy.
    pub device: &'a str,
    /// Of the original's name, with its dot.
    ext: &'a str,
    may_be_cut: bool,
}

impl CopyName<'_> {
    /// The original's name, unless it was cut.
    pub fn original(&self) -> String {
        format!("{}{}", self.stem, self.ext)
    }

    /// Whether a file of this name may be the original.
    pub fn may_be_of(&self, original: &str) -> bool {
        let (stem, ext) = split_ext(original);
        ext == self.ext && (stem == self.stem || (self.may_be_cut && stem.starts_with(self.stem)))
    }
}

/// A character of UTF-8 has at most so many bytes: where the next one did not fit, the name is that much shorter.
const LONGEST_CHAR: usize = 4;

/// The parts of `name`, if it is that of a conflict copy.
pub fn parse_copy_name(name: &str) -> Option<CopyName<'_>> {
    let (stem, rest) = name.rsplit_once(".conflict-")?;
    let (mark, ext) = split_ext(rest);
    let (mut device, mut hex) = mark.rsplit_once('-')?;
    if hex.len() < 8 && hex.bytes().all(|b| b.is_ascii_digit()) {
        (device, hex) = device.rsplit_once('-')?;
    }
    let is_md5 = hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let may_be_cut = name.len() + LONGEST_CHAR > crate::path::MAX_SEGMENT;
    is_md5.then_some(CopyName { stem, device, ext, may_be_cut })
}
