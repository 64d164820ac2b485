//! [`VersionTarget`]: `PATH`, `PATH@ID` or `PATH@N` on the command line.

use std::path::Path;

use crate::cli::app::App;
use crate::cli::folder::{FolderPath, find_path, has_versions};
use crate::disk::Disk;

/// Most digits of `N`. More digits are an ID.
const MAX_NUMBER_DIGITS: usize = 3;
/// Most digits of an ID.
const MAX_ID_DIGITS: usize = 32;

/// The name of one version of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VersionName {
    /// The newest earlier text.
    Newest,
    /// The N-th newest version that is kept on this machine.
    Kept(usize),
    /// The first digits of the MD5.
    Id(String),
}

/// A path, and one of its versions.
pub(crate) struct VersionTarget {
    pub(crate) place: FolderPath,
    pub(crate) name: VersionName,
}

/// Splits `PATH@ID` or `PATH@N`. A file whose own name ends like that wins over the version.
pub(crate) fn parse_target(app: &App, text: &str) -> anyhow::Result<VersionTarget> {
    let is_there = |place: &FolderPath| {
        place.open.folder.disk().stat(&place.at).is_ok() || has_versions(&place.open.folder, &place.at)
    };
    let named = text.rsplit_once('@').and_then(|(path, name)| Some((path, parse_name(name)?)));
    if let Some((path, name)) = named {
        let literal = find_path(app, Path::new(text), has_versions);
        if !literal.is_ok_and(|place| is_there(&place)) {
            return Ok(VersionTarget { place: find_path(app, Path::new(path), has_versions)?, name });
        }
    }
    Ok(VersionTarget { place: find_path(app, Path::new(text), has_versions)?, name: VersionName::Newest })
}

/// The name of a version without its `@`: one to three digits are a number, more are an ID.
pub(crate) fn parse_name(text: &str) -> Option<VersionName> {
    if text.is_empty() || text.len() > MAX_ID_DIGITS {
        return None;
    }
    if text.len() <= MAX_NUMBER_DIGITS {
        let n = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        return n.filter(|n| *n > 0).map(VersionName::Kept);
    }
    let is_hex = text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| VersionName::Id(text.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_numbers_count_and_longer_digits_are_an_id() {
        for (text, name) in [
            ("1", Some(VersionName::Kept(1))),
            ("999", Some(VersionName::Kept(999))),
            ("0", None),
            ("+1", None),
            ("abc", None),
            ("1000", Some(VersionName::Id("1000".to_owned()))),
            ("5D41402A", Some(VersionName::Id("5d41402a".to_owned()))),
            ("5d41402g", None),
            ("", None),
        ] {
            assert_eq!(parse_name(text), name, "{text}");
        }
        assert_eq!(parse_name(&"a".repeat(33)), None);
    }
}
