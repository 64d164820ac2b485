//! The lines of a merge by key. Some of them are no line of any version.

/// A line of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MergedLine<'t> {
    /// A line of one of the three texts.
    Kept(&'t str),
    /// A later stamp, which replaces the stamps of both sides.
    Stamp(&'t str),
    /// A list in one line that has the elements of both sides.
    List(String),
}

impl MergedLine<'_> {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Kept(line) | Self::Stamp(line) => line,
            Self::List(line) => line,
        }
    }
}
