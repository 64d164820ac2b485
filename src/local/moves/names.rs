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

fn split_ext(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= LONGEST_EXT => name.split_at(at),
        _ => (name, ""),
    }
}

/// The stem and extension of the original, if `name` is that of a conflict copy.
fn split_conflict(name: &str) -> Option<(&str, &str)> {
    let (stem, rest) = name.rsplit_once(".conflict-")?;
    let (mark, ext) = split_ext(rest);
    let mut parts = mark.rsplit('-');
    let mut hex = parts.next()?;
    if hex.len() < 8 && hex.bytes().all(|b| b.is_ascii_digit()) {
        hex = parts.next()?;
    }
    let is_md5 = hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (is_md5 && parts.next().is_some()).then_some((stem, ext))
}
