//! [`DoctorCheck`]: one finding of `memsync doctor`.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::cli::exit::Exit;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CheckVerdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
pub(super) struct DoctorCheck {
    pub(super) name: &'static str,
    pub(super) verdict: CheckVerdict,
    /// The finding.
    pub(super) what: String,
    /// How to fix it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
    #[serde(skip)]
    pub(super) exit: Exit,
}

impl DoctorCheck {
    pub(super) fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, verdict: CheckVerdict::Ok, what: what.into(), fix: None, exit: Exit::Done }
    }

    pub(super) fn warn(name: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: CheckVerdict::Warn, what: what.into(), fix: Some(fix.into()), exit: Exit::Done }
    }

    pub(super) fn fail(name: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::fail_with_error(name, what) }
    }

    /// A failure whose text says how to fix it.
    pub(super) fn fail_with_error(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, verdict: CheckVerdict::Fail, what: what.into(), fix: None, exit: Exit::Error }
    }

    pub(super) fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

pub(super) fn write_checks(out: &mut dyn Write, checks: &[DoctorCheck]) -> io::Result<()> {
    for check in checks {
        let (word, color) = match check.verdict {
            CheckVerdict::Ok => ("ok  ", AnsiColor::Green),
            CheckVerdict::Warn => ("warn", AnsiColor::Yellow),
            CheckVerdict::Fail => ("FAIL", AnsiColor::Red),
        };
        let style: Style = color.on_default();
        writeln!(out, "{style}{word}{style:#} {:<10} {}", check.name, check.what)?;
        if let Some(fix) = &check.fix {
            writeln!(out, "                → {fix}")?;
        }
    }
    Ok(())
}
