//! The merge of two versions of a note: cases from bug reports, properties of every merge, the comparison with git, and the
//! command.

mod cases;
mod command;
mod driver;
mod git;
mod json;
mod notes;
mod properties;
