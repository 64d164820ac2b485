//! [`ScanScope`]: the part of the folder that a scan looks at.

use std::collections::BTreeSet;

/// A scope of more paths than this becomes a full scan.
pub(crate) const MAX_SCOPE_PATHS: usize = 20_000;

/// The scope of a scan. Paths are relative to the root and `/`-separated, in the Unicode form that they have on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanScope {
    /// The whole folder. The scan then ignores the other two fields.
    pub full: bool,
    /// Single paths. If nothing exists at a path any more, the scan also drops everything below it.
    pub paths: BTreeSet<String>,
    /// Folders, each with everything below it.
    pub subtrees: BTreeSet<String>,
}

impl ScanScope {
    pub fn full() -> Self {
        Self { full: true, ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        !self.full && self.paths.is_empty() && self.subtrees.is_empty()
    }

    /// Adds the scope of another scan. It grows while the proxy is away, so too many paths become a full scan.
    pub fn merge(&mut self, other: Self) {
        self.full |= other.full;
        self.paths.extend(other.paths);
        self.subtrees.extend(other.subtrees);
        if self.full || self.paths.len() + self.subtrees.len() > MAX_SCOPE_PATHS {
            *self = Self::full();
        }
    }

    /// Drops duplicates: all paths of a full scan, and every path below a folder that is scanned.
    pub(crate) fn tidy(&mut self) {
        if self.full || self.subtrees.contains("") {
            *self = Self::full();
            return;
        }
        let all = self.subtrees.clone();
        let is_covered = |path: &str| path.match_indices('/').any(|(end, _)| all.contains(&path[..end]));
        self.subtrees.retain(|dir| !is_covered(dir));
        self.paths.retain(|path| !all.contains(path) && !is_covered(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_scope_becomes_full_above_the_limit() {
        let paths = |range: std::ops::Range<usize>| range.map(|n| n.to_string()).collect();
        let mut scope = ScanScope { paths: paths(0..MAX_SCOPE_PATHS), ..ScanScope::default() };
        scope.merge(ScanScope { paths: paths(0..7), ..ScanScope::default() });
        assert_eq!((scope.full, scope.paths.len()), (false, MAX_SCOPE_PATHS));
        scope.merge(ScanScope { subtrees: ["n".to_owned()].into(), ..ScanScope::default() });
        assert_eq!(scope, ScanScope::full());
    }
}
