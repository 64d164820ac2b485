//! The names of conflict copies: `<stem>.conflict-<device>-<8 hex digits of the MD5>[-<number>]<ext>`.

use crate::digest::Md5;
use crate::path::MAX_SEGMENT;

/// The extension of a name is at most this long, in bytes with its dot.
const MAX_EXT_BYTES: usize = 32;

/// The longest character in UTF-8. A stem that was cut to fit is at most this much shorter than the limit.
const MAX_CHAR_BYTES: usize = 4;

/// The name of the `n`th copy of the file `name` with this content. A copy of a copy is named after the original, so that
/// names never nest.
pub(crate) fn conflict_name(name: &str, device: &str, content: Md5, n: u32) -> String {
    let (stem, ext) = parse_copy_name(name).map_or_else(|| split_ext(name), |copy| (copy.stem, copy.ext));
    let number = if n > 1 { format!("-{n}") } else { String::new() };
    let tail = format!(".conflict-{device}-{}{number}{ext}", content.short());
    let mut end = MAX_SEGMENT.saturating_sub(tail.len()).min(stem.len());
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &stem[..end])
}

/// True if `name` is the name of a conflict copy.
pub(crate) fn is_conflict_name(name: &str) -> bool {
    parse_copy_name(name).is_some()
}

/// Splits a name into its stem and its extension with the dot. A long extension counts as part of the stem.
pub(crate) fn split_ext(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= MAX_EXT_BYTES => name.split_at(at),
        _ => (name, ""),
    }
}

/// The parts of a conflict copy's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyName<'a> {
    /// The stem of the original's name, possibly cut.
    stem: &'a str,
    /// The device that made the copy.
    pub device: &'a str,
    /// The extension of the original's name, with its dot.
    ext: &'a str,
    may_be_cut: bool,
}

impl CopyName<'_> {
    /// The name of the original, unless it was cut.
    pub fn original(&self) -> String {
        format!("{}{}", self.stem, self.ext)
    }

    /// True if a file with this name may be the original.
    pub(crate) fn may_be_of(&self, original: &str) -> bool {
        let (stem, ext) = split_ext(original);
        ext == self.ext && (stem == self.stem || (self.may_be_cut && stem.starts_with(self.stem)))
    }
}

/// The parts of `name`, if it is the name of a conflict copy.
pub(crate) fn parse_copy_name(name: &str) -> Option<CopyName<'_>> {
    let (stem, rest) = name.rsplit_once(".conflict-")?;
    let (mark, ext) = split_ext(rest);
    let (mut device, mut hex) = mark.rsplit_once('-')?;
    if hex.len() < 8 && hex.bytes().all(|b| b.is_ascii_digit()) {
        (device, hex) = device.rsplit_once('-')?;
    }
    let is_md5 = hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let may_be_cut = name.len() + MAX_CHAR_BYTES > MAX_SEGMENT;
    is_md5.then_some(CopyName { stem, device, ext, may_be_cut })
}
