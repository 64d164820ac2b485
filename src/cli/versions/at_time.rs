//! Chooses the text that a file had at a moment. Pure.

use jiff::Timestamp;

use super::joined::EarlierVersion;
use crate::digest::Md5;

/// The file as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PresentText {
    pub(super) md5: Md5,
    /// When it was written, if known.
    pub(super) written: Option<Timestamp>,
}

/// The text of a file at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextAtTime<'a> {
    /// The text that it has now.
    Present,
    Earlier(&'a EarlierVersion),
    /// No text is known. Perhaps there was no file.
    Unknown,
}

/// The text at `moment`: the one that was replaced first after it, unless it is known to be written later.
pub(super) fn text_at(versions: &[EarlierVersion], present: Option<PresentText>, moment: Timestamp) -> TextAtTime<'_> {
    let present_written = present.and_then(|text| text.written);
    let was_there = |version: &&EarlierVersion, until: Timestamp| {
        !version.is_newer() && until > moment && written(versions, version, until).is_none_or(|at| at <= moment)
    };
    let until = |version: &EarlierVersion| version.until.or(present_written).unwrap_or(Timestamp::MAX);
    let earlier = versions.iter().filter(|version| was_there(version, until(version))).min_by_key(|v| until(v));
    match (earlier, present) {
        (Some(version), Some(text)) if version.md5 == text.md5 => TextAtTime::Present,
        (Some(version), _) => TextAtTime::Earlier(version),
        (None, Some(text)) if text.written.is_none_or(|at| at <= moment) => TextAtTime::Present,
        (None, _) => TextAtTime::Unknown,
    }
}

/// When a text that ended at `until` was written. The proxy knows it for a version that is kept here, too.
fn written(versions: &[EarlierVersion], version: &EarlierVersion, until: Timestamp) -> Option<Timestamp> {
    let equal = versions.iter().filter(|other| other.md5 == version.md5);
    version.written.or_else(|| equal.filter_map(|other| other.written).filter(|at| *at <= until).max())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(n: i64) -> Timestamp {
        Timestamp::from_second(n * 60).unwrap()
    }

    fn version(text: &str, written: Option<i64>, until: Option<i64>) -> EarlierVersion {
        let mut version = EarlierVersion::current("a.md", Md5::of(text.as_bytes()), 1);
        version.kind = "replaced";
        (version.written, version.until) = (written.map(minute), until.map(minute));
        version
    }

    /// The text at each minute, `=` for the present text and `-` for an unknown one.
    fn texts(versions: &[EarlierVersion], present: Option<PresentText>, minutes: &[i64]) -> String {
        let letters = ["a", "b", "c"];
        let letter = |n: &i64| match text_at(versions, present, minute(*n)) {
            TextAtTime::Present => "=",
            TextAtTime::Unknown => "-",
            TextAtTime::Earlier(v) => letters.iter().find(|text| Md5::of(text.as_bytes()) == v.md5).unwrap(),
        };
        minutes.iter().map(letter).collect()
    }

    fn present(text: &str, written: Option<i64>) -> Option<PresentText> {
        Some(PresentText { md5: Md5::of(text.as_bytes()), written: written.map(minute) })
    }

    #[test]
    fn text_follows_the_versions_of_the_proxy() {
        let versions = [version("b", Some(4), Some(8)), version("a", Some(2), Some(4))];
        assert_eq!(texts(&versions, present("c", Some(8)), &[1, 2, 3, 4, 7, 8, 9]), "-aabb==");
        assert_eq!(texts(&versions, None, &[1, 3, 7, 9]), "-ab-", "deleted at 8");
        // The first text is back.
        let back = [version("b", Some(4), Some(8)), version("a", Some(2), Some(4))];
        assert_eq!(texts(&back, present("a", Some(8)), &[1, 3, 5, 9]), "-=b=");
    }

    #[test]
    fn text_kept_here_counts_until_it_was_replaced() {
        let versions = [version("b", None, Some(8)), version("a", None, Some(4))];
        assert_eq!(texts(&versions, present("c", None), &[1, 4, 7, 8]), "abb=");
        let known = [version("b", None, Some(8)), version("b", Some(5), Some(7))];
        assert_eq!(texts(&known, present("c", None), &[1, 6]), "=b", "the proxy knows when it was written");
    }

    #[test]
    fn unsynced_change_ends_the_latest_text_of_the_proxy() {
        let latest = [version("b", Some(4), None)];
        assert_eq!(texts(&latest, present("c", Some(8)), &[3, 5, 9]), "-b=");
        assert_eq!(texts(&latest, None, &[3, 5]), "-b");
    }
}
