//! Plans: those that are held for a decision, and the steps of a dry run.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::format;
use crate::agent::control::PlannedStep;
use crate::agent::status::HaltStatus;

/// Paths shown of a held plan.
const MAX_SHOWN: usize = 10;

/// The document of `approve --list`.
#[derive(Serialize)]
pub(crate) struct HeldPlans<'a> {
    pub(crate) held: &'a [HeldPlan],
}

#[derive(Serialize)]
pub(crate) struct HeldPlan {
    pub(crate) folder: PathBuf,
    #[serde(flatten)]
    pub(crate) halt: HaltStatus,
}

/// The document of `approve` and `approve --reject`.
#[derive(Serialize)]
pub(crate) struct PlanDecision {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) approved: bool,
}

/// The document of `sync --dry-run`.
#[derive(Serialize)]
pub(crate) struct DryRunSteps {
    pub(crate) steps: Vec<PlannedStep>,
}

pub(crate) fn write_steps(out: &mut dyn Write, steps: &[PlannedStep]) -> io::Result<()> {
    if steps.is_empty() {
        return writeln!(out, "Nothing to do.");
    }
    for step in steps {
        writeln!(out, "{:<14} {}", step.action, format::path(&step.folder.join(&step.path)))?;
    }
    Ok(())
}

pub(crate) fn write_held_plans(out: &mut dyn Write, plans: &[HeldPlan]) -> io::Result<()> {
    if plans.is_empty() {
        return writeln!(out, "Nothing is held.");
    }
    for HeldPlan { folder, halt } in plans {
        let id = halt.id.as_deref().unwrap_or("(cannot be approved)");
        writeln!(out, "{}  {}", format::painted(format::BOLD, id), format::path(folder))?;
        writeln!(out, "  {}", format::printable(&halt.reason))?;
        for path in halt.sample.iter().take(MAX_SHOWN) {
            writeln!(out, "    {}", format::printable(path))?;
        }
        if let more @ 1.. = halt.paths.saturating_sub(MAX_SHOWN) {
            writeln!(out, "    and {more} more")?;
        }
        if halt.id.is_some() {
            writeln!(out, "  approve: {}", effect_of_approval(&halt.kind))?;
        }
        if halt.kind == "mass_delete" {
            writeln!(out, "  --reject: {EFFECT_OF_REJECTION}")?;
        }
    }
    Ok(())
}

pub(crate) fn write_decision(out: &mut dyn Write, decision: &PlanDecision, next: &str) -> io::Result<()> {
    match decision.approved {
        true => writeln!(out, "Approved. {}{next}", effect_of_approval(&decision.kind)),
        false => writeln!(out, "Rejected. {EFFECT_OF_REJECTION}{next}"),
    }
}

const EFFECT_OF_REJECTION: &str = "Nothing is deleted; the files come back.";

fn effect_of_approval(kind: &str) -> &'static str {
    match kind {
        "server_reset" => {
            "The files here are offered to the proxy again; where it has other content, both are kept. Nothing is deleted."
        }
        "root_missing" | "root_changed" => {
            "This is your folder from now on. It starts with the files of both sides; where they differ, both are kept. \
             Nothing is deleted."
        }
        _ => "The deletions are made now; files deleted here stay in `memsync history`.",
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::held_plan;
    use super::*;

    #[test]
    fn held_plans_explain_each_decision() {
        let mut out = Vec::new();
        let plans = [held_plan("mass_delete", Some("a")), held_plan("server_reset", Some("b"))];
        write_held_plans(&mut out, &plans).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("--reject: Nothing is deleted") && text.contains("offered to the proxy again"), "{text}");
        assert_eq!(text.matches("--reject").count(), 1, "{text}");
        assert!(text.contains("    and 15 more\n"), "{text}");
    }
}
