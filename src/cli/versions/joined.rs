//! [`EarlierVersion`]: a text that a file had, and the join of the versions kept here with those on the proxy. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;

use jiff::Timestamp;

use crate::digest::Md5;
use crate::local::history::HistoryVersion;
use crate::remote::RemoteVersion;

/// The proxy's current text, which the file here had before a change that is not synced yet.
pub(super) const LATEST: &str = "latest";
/// The proxy's current text, which has not come here yet.
pub(super) const NEWER: &str = "newer";
/// The text that the file has now.
pub(super) const CURRENT: &str = "current";

/// A text that a file had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EarlierVersion {
    pub(crate) path: String,
    pub(crate) md5: Md5,
    /// Bytes.
    pub(crate) size: u64,
    /// Why it is not in place: `replaced`, `removed`, `merged`, [`LATEST`] or [`NEWER`].
    pub(crate) kind: &'static str,
    /// When another text or a deletion took its place. `None`: it is the proxy's current text.
    pub(crate) until: Option<Timestamp>,
    /// When it was written, if the proxy knows.
    pub(crate) written: Option<Timestamp>,
    /// The device that wrote it, if the proxy knows.
    pub(crate) device: Option<String>,
    /// Its number among the versions of the path that are kept here. The newest is 1.
    pub(crate) n: Option<usize>,
    /// A file with this content, relative to the folder.
    pub(crate) file: Option<String>,
    /// Its number on the proxy.
    pub(crate) on_proxy: Option<u64>,
}

impl EarlierVersion {
    /// The digits that name it.
    pub(crate) fn id(&self) -> String {
        self.md5.short()
    }

    /// The time to show: when it was replaced, or else when it was written.
    pub(crate) fn at(&self) -> Timestamp {
        self.until.or(self.written).unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn is_newer(&self) -> bool {
        self.kind == NEWER
    }

    /// The version in the history here with the number `n`.
    pub(super) fn kept(version: HistoryVersion, md5: Md5, n: usize) -> Self {
        Self {
            path: version.path,
            md5,
            size: version.size,
            kind: version.kind.name(),
            until: Some(version.at),
            written: None,
            device: None,
            n: Some(n),
            file: Some(version.file),
            on_proxy: None,
        }
    }

    /// The file that is at `path` now.
    pub(super) fn current(path: &str, md5: Md5, size: u64) -> Self {
        Self {
            path: path.to_owned(),
            md5,
            size,
            kind: CURRENT,
            until: None,
            written: None,
            device: None,
            n: None,
            file: Some(path.to_owned()),
            on_proxy: None,
        }
    }
}

/// The contents of a path that decide on the proxy's current text.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PresentContent {
    /// The file here.
    pub(super) here: Option<Md5>,
    /// The content on which both sides last agreed.
    pub(super) agreed: Option<Md5>,
}

/// The earlier texts among the proxy's versions of `path`, which are sorted newest first.
pub(super) fn earlier_on_proxy(path: &str, versions: &[RemoteVersion], present: PresentContent) -> Vec<EarlierVersion> {
    let mut found = Vec::new();
    for (at, version) in versions.iter().enumerate().filter(|(_, version)| !version.is_deleted) {
        let next = at.checked_sub(1).map(|next| &versions[next]);
        let kind = match next {
            Some(next) if next.is_deleted => "removed",
            Some(_) => "replaced",
            None if present.here == Some(version.md5) => continue,
            None if present.here.is_some() && present.here == present.agreed => NEWER,
            None => LATEST,
        };
        found.push(EarlierVersion {
            path: path.to_owned(),
            md5: version.md5,
            size: version.size,
            kind,
            until: next.map(|next| next.at),
            written: Some(version.at),
            device: version.device.clone(),
            n: None,
            file: None,
            on_proxy: Some(version.version),
        });
    }
    found
}

/// Sorts versions newest first, and joins those of a path that have the same content. A joined version has the time and the
/// reason of the newest, and all that is known from the others.
pub(crate) fn join_equal(mut versions: Vec<EarlierVersion>) -> Vec<EarlierVersion> {
    versions.sort_by_key(|version| Reverse(version.until.unwrap_or(Timestamp::MAX)));
    let mut places: HashMap<(String, Md5), usize> = HashMap::new();
    let mut joined: Vec<EarlierVersion> = Vec::new();
    for version in versions {
        match places.get(&(version.path.clone(), version.md5)) {
            Some(at) => add_facts(&mut joined[*at], version),
            None => {
                places.insert((version.path.clone(), version.md5), joined.len());
                joined.push(version);
            }
        }
    }
    joined
}

fn add_facts(newest: &mut EarlierVersion, older: EarlierVersion) {
    if newest.on_proxy.is_none() {
        (newest.on_proxy, newest.written, newest.device) = (older.on_proxy, older.written, older.device);
    }
    if newest.n.is_none() {
        (newest.n, newest.file) = (older.n, older.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::history::VersionKind;

    fn minute(n: i64) -> Timestamp {
        Timestamp::from_second(n * 60).unwrap()
    }

    fn on_proxy(version: u64, text: &str) -> RemoteVersion {
        let at = minute(version.try_into().unwrap());
        let (md5, size) = (Md5::of(text.as_bytes()), text.len() as u64);
        RemoteVersion { version, md5, size, is_deleted: false, at, device: Some("phone".to_owned()) }
    }

    fn kept(at: i64, text: &str, n: usize) -> EarlierVersion {
        let version = HistoryVersion {
            path: "a.md".to_owned(),
            at: minute(at),
            kind: VersionKind::Replaced,
            size: text.len() as u64,
            file: format!(".memsync/history/{n}"),
        };
        EarlierVersion::kept(version, Md5::of(text.as_bytes()), n)
    }

    fn md5(text: &str) -> Option<Md5> {
        Some(Md5::of(text.as_bytes()))
    }

    #[test]
    fn version_on_the_proxy_ends_where_the_next_begins() {
        let mut versions = vec![on_proxy(9, "c"), on_proxy(5, "b"), on_proxy(2, "a")];
        let here = PresentContent { here: md5("c"), agreed: md5("c") };
        let found = earlier_on_proxy("a.md", &versions, here);
        let facts: Vec<_> = found.iter().map(|v| (v.on_proxy, v.until, v.kind)).collect();
        assert_eq!(facts, [(Some(5), Some(minute(9)), "replaced"), (Some(2), Some(minute(5)), "replaced")]);
        versions[0].is_deleted = true;
        let found = earlier_on_proxy("a.md", &versions, PresentContent::default());
        assert_eq!((found.len(), found[0].kind), (2, "removed"));
    }

    #[test]
    fn current_text_of_the_proxy_is_earlier_after_a_change_here() {
        let kind_with = |here, agreed| {
            let found = earlier_on_proxy("a.md", &[on_proxy(1, "x")], PresentContent { here, agreed });
            found.first().map(|v| v.kind)
        };
        assert_eq!(kind_with(md5("x"), md5("x")), None, "it is in place");
        assert_eq!(kind_with(md5("edited"), md5("x")), Some(LATEST));
        assert_eq!(kind_with(None, md5("x")), Some(LATEST), "deleted here");
        assert_eq!(kind_with(md5("old"), md5("old")), Some(NEWER), "written elsewhere, not synced yet");
    }

    #[test]
    fn equal_contents_are_joined_to_one_version() {
        let present = PresentContent { here: md5("c"), agreed: None };
        let proxy = earlier_on_proxy("a.md", &[on_proxy(9, "c"), on_proxy(5, "b"), on_proxy(2, "a")], present);
        let versions: Vec<_> = proxy.into_iter().chain([kept(6, "a", 1), kept(3, "z", 2)]).collect();
        let joined = join_equal(versions);
        let ids: Vec<_> = joined.iter().map(|v| (v.md5, v.n, v.on_proxy)).collect();
        let of = |text: &str| Md5::of(text.as_bytes());
        assert_eq!(ids, [(of("b"), None, Some(5)), (of("a"), Some(1), Some(2)), (of("z"), Some(2), None)]);
        assert_eq!((joined[1].until, joined[1].written), (Some(minute(6)), Some(minute(2))));
        assert_eq!(joined[1].device.as_deref(), Some("phone"));
    }
}
