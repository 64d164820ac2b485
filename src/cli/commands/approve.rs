//! `memsync approve`: approves or rejects a held plan.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use crate::agent::control::{ControlRequest, ControlResponse};
use crate::agent::halt_status;
use crate::agent::root::find_root_halt;
use crate::agent::standalone::approve_root;
use crate::agent::status::HaltStatus;
use crate::cli::agent_client;
use crate::cli::app::App;
use crate::cli::args::ApproveArgs;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::machine::agent_setup;
use crate::cli::process::output;
use crate::cli::process::runtime::client_runtime;
use crate::cli::view::format;

/// Paths shown of a held plan.
const MAX_SHOWN: usize = 10;

#[derive(Serialize)]
struct HeldPlan {
    folder: PathBuf,
    #[serde(flatten)]
    halt: HaltStatus,
}

/// The document of `approve` and `approve --reject`.
#[derive(Serialize)]
struct PlanDecision {
    id: String,
    kind: String,
    approved: bool,
}

pub(super) fn run(app: &App, args: &ApproveArgs) -> anyhow::Result<Exit> {
    let (plans, has_agent) = held_plans(app)?;
    if args.list {
        app.answer_list("held", &plans, write_held_plans)?;
        return Ok(if plans.is_empty() { Exit::Done } else { Exit::Halted });
    }
    let plan = match choose(&plans, args.id.as_deref()) {
        Ok(Some(plan)) => plan,
        Ok(None) => return app.answer_list("held", &plans, write_held_plans),
        Err(failure) => {
            output::note_with(|out| write_held_plans(out, &plans));
            return Err(failure.into());
        }
    };
    if let Some(why) = why_not_rejected(&plan.halt.kind).filter(|_| args.reject) {
        return Err(CommandFailure::usage(why).into());
    }
    let id = plan.halt.id.clone().unwrap_or_default();
    let next = if has_agent { decide_by_agent(app, &id, args.reject)? } else { approve_alone(app, plan, &id)? };
    let decision = PlanDecision { id, kind: plan.halt.kind.clone(), approved: !args.reject };
    app.answer(&decision, |out, decision| write_decision(out, decision, next))
}

/// The held plans, and true if an agent runs. Without an agent, only plans about a folder itself are known.
fn held_plans(app: &App) -> anyhow::Result<(Vec<HeldPlan>, bool)> {
    let (plans, has_agent) =
        match client_runtime()?.block_on(agent_client::ask_if_running(app, &ControlRequest::Held))? {
            Some(ControlResponse::Held { plans }) => (plans, true),
            Some(_) => return Err(agent_client::unexpected_answer()),
            None => (root_halts(app)?, false),
        };
    if plans.is_empty() && !has_agent {
        return Err(agent_client::no_agent(app));
    }
    Ok((plans.into_iter().map(|(folder, halt)| HeldPlan { folder, halt }).collect(), has_agent))
}

/// The folders that are held because the root is missing or changed. These halts show without an agent.
fn root_halts(app: &App) -> anyhow::Result<Vec<(PathBuf, HaltStatus)>> {
    let mut halts = Vec::new();
    for setup in agent_setup::folders_without_secrets(app, app.config()?) {
        let halt = find_root_halt(&setup).with_context(|| setup.root.display().to_string())?;
        halts.extend(halt.map(|halt| (setup.root, halt_status(&halt, &[]))));
    }
    Ok(halts)
}

/// Gives the end of the answer, for people.
fn decide_by_agent(app: &App, id: &str, reject: bool) -> anyhow::Result<&'static str> {
    let request = ControlRequest::Approve { id: id.to_owned(), reject };
    match client_runtime()?.block_on(agent_client::ask(app, &request))? {
        ControlResponse::Noted => Ok(" The agent carries it out as soon as its running work has ended."),
        _ => Ok(""),
    }
}

/// Gives the end of the answer, for people.
fn approve_alone(app: &App, plan: &HeldPlan, id: &str) -> anyhow::Result<&'static str> {
    let setups = agent_setup::folders(app, app.config()?)?;
    for setup in setups.iter().filter(|setup| setup.root == plan.folder) {
        if approve_root(setup, id).with_context(|| setup.root.display().to_string())? {
            return Ok(" `memsync run` or `memsync sync` continues.");
        }
    }
    Err(CommandFailure::usage(format!("no plan {id} is held any more; see `memsync status`")).into())
}

fn why_not_rejected(kind: &str) -> Option<&'static str> {
    match kind {
        "server_reset" => Some(
            "there is nothing to reject: either the proxy gets its data back, or `memsync approve` offers it the files \
             here",
        ),
        "root_missing" | "root_changed" => Some(
            "there is nothing to reject: either you bring the folder back, or `memsync approve` takes the one that is \
             there now",
        ),
        _ => None,
    }
}

/// The plan named `id`, or the only one. `None` if nothing is held.
fn choose<'a>(plans: &'a [HeldPlan], id: Option<&str>) -> Result<Option<&'a HeldPlan>, CommandFailure> {
    let with_id: Vec<&HeldPlan> = plans.iter().filter(|p| p.halt.id.is_some()).collect();
    if let Some(id) = id {
        let named = with_id.into_iter().find(|p| p.halt.id.as_deref() == Some(id));
        return named.map(Some).ok_or_else(|| CommandFailure::usage(format!("no plan {id} is held")));
    }
    match (with_id.as_slice(), plans.first()) {
        ([], None) => Ok(None),
        ([], Some(plan)) => {
            let why = format!("this cannot be approved: {}", format::printable(&plan.halt.reason));
            Err(CommandFailure::new(Exit::Halted, why))
        }
        ([plan], _) => Ok(Some(plan)),
        (several, _) => {
            Err(CommandFailure::usage(format!("{} plans are held; name one: memsync approve ID", several.len())))
        }
    }
}

fn write_held_plans(out: &mut dyn Write, plans: &[HeldPlan]) -> io::Result<()> {
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

fn write_decision(out: &mut dyn Write, decision: &PlanDecision, next: &str) -> io::Result<()> {
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
    use super::*;
    use crate::cli::view::samples::halt;

    fn held_plan(kind: &str, id: Option<&str>) -> HeldPlan {
        HeldPlan { folder: "/m".into(), halt: halt(kind, id) }
    }

    #[test]
    fn choose_needs_an_id_among_several_plans() {
        let chosen =
            |plans: &[HeldPlan], id| choose(plans, id).map(|p| p.and_then(|p| p.halt.id.clone())).map_err(|f| f.exit);
        assert_eq!(chosen(&[], None), Ok(None));
        let one = [held_plan("root_missing", None), held_plan("mass_delete", Some("a"))];
        assert_eq!(chosen(&one, None), Ok(Some("a".to_owned())));
        assert_eq!(chosen(&one[..1], None), Err(Exit::Halted));
        let two = [held_plan("mass_delete", Some("a")), held_plan("server_reset", Some("b"))];
        assert_eq!(chosen(&two, None), Err(Exit::Usage));
        assert_eq!(chosen(&two, Some("b")), Ok(Some("b".to_owned())));
        assert_eq!(chosen(&two, Some("c")), Err(Exit::Usage));
    }

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
