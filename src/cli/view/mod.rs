//! How statuses, differences, sizes, times and names look to people.

pub(crate) mod diff;
pub(crate) mod format;
pub(crate) mod markers;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod status;
pub(crate) mod verdict;
