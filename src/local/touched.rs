//! [`TouchedPaths`]: the paths that may have changed since the last call.

use std::collections::BTreeSet;

use crate::path::RelPath;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TouchedPaths {
    Everywhere,
    Paths(BTreeSet<RelPath>),
}

impl Default for TouchedPaths {
    fn default() -> Self {
        Self::Paths(BTreeSet::new())
    }
}

impl TouchedPaths {
    pub fn add(&mut self, path: &RelPath) {
        if let Self::Paths(paths) = self {
            paths.insert(path.clone());
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Paths(paths) if paths.is_empty())
    }

    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Paths(mine), Self::Paths(others)) => mine.extend(others),
            (_, Self::Everywhere) => *self = Self::Everywhere,
            (Self::Everywhere, Self::Paths(_)) => {}
        }
    }
}
