//! How answers look to people and programs: text for a terminal, and the documents of `--json`.

pub(crate) mod conflicts;
pub(crate) mod error;
pub(crate) mod file_status;
pub(crate) mod format;
pub(crate) mod join;
pub(crate) mod plans;
pub(crate) mod problems;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod status;
pub(crate) mod table;
pub(crate) mod verdict;
pub(crate) mod versions;
