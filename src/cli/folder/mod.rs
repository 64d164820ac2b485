//! The folders of this machine as commands see them: paths in them, changes to them, conflict copies.

pub(crate) mod change;
pub(crate) mod conflict_copies;
pub(crate) mod lookup;
