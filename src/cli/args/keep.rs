//! `--keep` of `conflicts resolve`.

use std::ffi::OsStr;

use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ValueEnum};
use serde::Serialize;

/// The text that the file of a conflict gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepChoice {
    /// The file keeps its text; the copy goes to history
    File,
    /// The copy's text takes the file's place; the file's text goes to history
    Copy,
    /// Both stay; the copy becomes an ordinary file
    Both,
}

/// Parses a [`KeepChoice`]. Explains why `local` and `remote`, which other tools use, are refused.
#[derive(Debug, Clone)]
pub(crate) struct KeepParser;

impl TypedValueParser for KeepParser {
    type Value = KeepChoice;

    fn parse_ref(&self, cmd: &clap::Command, arg: Option<&Arg>, value: &OsStr) -> Result<KeepChoice, clap::Error> {
        if value == "local" || value == "remote" {
            let why = "--keep local and --keep remote are refused, because they mean the opposite on the other machine; \
                       use `file` (the file keeps its text), `copy` (the copy's text takes its place) or `both`\n";
            return Err(clap::Error::raw(ErrorKind::InvalidValue, why).with_cmd(cmd));
        }
        EnumValueParser::<KeepChoice>::new().parse_ref(cmd, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(KeepChoice::value_variants().iter().filter_map(ValueEnum::to_possible_value)))
    }
}
