//! `memsync approve`: lets a held plan through, or refuses it.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use super::app::App;
use super::exit::{Exit, Failure};
use super::{output, setup, show, talk};
use crate::agent::control::{ControlRequest, ControlResponse};
use crate::agent::halt_status;
use crate::agent::root::find_root_halt;
use crate::agent::standalone::approve_root;
use crate::agent::status::HaltStatus;

/// Paths shown of a plan.
const SHOWN: usize = 10;

#[derive(Serialize)]
struct Listing {
    held: Vec<Plan>,
}

#[derive(Serialize)]
struct Plan {
    folder: PathBuf,
    #[serde(flatten)]
    halt: HaltStatus,
}

#[derive(Serialize)]
struct Decided {
    id: String,
    kind: String,
    approved: bool,
}

/// # Errors
/// Where no such plan is held, or several are and none was named; without an agent, where no folder is held by itself.
pub fn run(app: &App, id: Option<String>, reject: bool, list: bool) -> anyhow::Result<Exit> {
    let runtime = talk::runtime()?;
    let (plans, has_agent) = match runtime.block_on(talk::ask_any(app, &ControlRequest::Held))? {
        Some(ControlResponse::Held { plans }) => (plans, true),
        Some(_) => return Err(talk::unexpected()),
        None => (root_halts(app)?, false),
    };
    if plans.is_empty() && !has_agent {
        return Err(talk::no_agent(app));
    }
    let plans: Vec<Plan> = plans.into_iter().map(|(folder, halt)| Plan { folder, halt }).collect();
    if list {
        let exit = if plans.is_empty() { Exit::Done } else { Exit::Halted };
        app.answer(&Listing { held: plans }, |out, l| people(out, &l.held))?;
        return Ok(exit);
    }
    let plan = match choose(&plans, id.as_deref()) {
        Ok(Some(plan)) => plan,
        Ok(None) => {
            app.answer(&Listing { held: Vec::new() }, |out, l| people(out, &l.held))?;
            return Ok(Exit::Done);
        }
        Err(failure) => {
            output::notes(|out| people(out, &plans));
            return Err(failure.into());
        }
    };
    let id = plan.halt.id.clone().unwrap_or_default();
    if let Some(why) = no_rejection(&plan.halt.kind).filter(|_| reject) {
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let when = match has_agent {
        true => match runtime.block_on(talk::ask(app, &ControlRequest::Approve { id: id.clone(), reject }))? {
            ControlResponse::Noted => " The agent carries it out as soon as its running work has ended.",
            _ => "",
        },
        false => {
            approve_alone(app, plan, &id)?;
            " `memsync run` or `memsync sync` goes on."
        }
    };
    let decided = Decided { id, kind: plan.halt.kind.clone(), approved: !reject };
    app.answer(&decided, |out, d| writeln!(out, "{}{when}", effect(&d.kind, d.approved)))?;
    Ok(Exit::Done)
}

/// The folders that are held by themselves, as far as that shows without an agent.
fn root_halts(app: &App) -> anyhow::Result<Vec<(PathBuf, HaltStatus)>> {
    let mut halts = Vec::new();
    for setup in setup::folders_at_rest(app, app.config()?) {
        let halt = find_root_halt(&setup).with_context(|| setup.root.display().to_string())?;
        halts.extend(halt.map(|halt| (setup.root, halt_status(&halt, &[]))));
    }
    Ok(halts)
}

/// Approves without an agent.
fn approve_alone(app: &App, plan: &Plan, id: &str) -> anyhow::Result<()> {
    let setups = setup::folders(app, app.config()?, &setup::device_id(app)?)?;
    for setup in setups.iter().filter(|setup| setup.root == plan.folder) {
        if approve_root(setup, id).with_context(|| setup.root.display().to_string())? {
            return Ok(());
        }
    }
    Err(Failure::new(Exit::Usage, format!("no plan {id} is held any more; see `memsync status`")).into())
}

/// Why a halt of this kind cannot be rejected.
fn no_rejection(kind: &str) -> Option<&'static str> {
    match kind {
        "server_reset" => Some(
            "there is nothing to reject: either the proxy gets its data back, or `memsync approve` offers it what is here",
        ),
        "root_missing" | "root_changed" => Some(
            "there is nothing to reject: either you bring the folder back, or `memsync approve` takes the one that is \
             there now",
        ),
        _ => None,
    }
}

/// The plan that is meant; `None`: nothing is held at all.
fn choose<'a>(plans: &'a [Plan], id: Option<&str>) -> Result<Option<&'a Plan>, Failure> {
    let with_id: Vec<&Plan> = plans.iter().filter(|p| p.halt.id.is_some()).collect();
    if let Some(id) = id {
        let named = with_id.into_iter().find(|p| p.halt.id.as_deref() == Some(id));
        return named.map(Some).ok_or_else(|| Failure::new(Exit::Usage, format!("no plan {id} is held")));
    }
    match (with_id.as_slice(), plans.first()) {
        ([], None) => Ok(None),
        ([], Some(plan)) => {
            Err(Failure::new(Exit::Halted, format!("this cannot be approved: {}", show::name(&plan.halt.reason))))
        }
        ([plan], _) => Ok(Some(plan)),
        (several, _) => {
            Err(Failure::new(Exit::Usage, format!("{} plans are held; name one: memsync approve ID", several.len())))
        }
    }
}

fn effect(kind: &str, approved: bool) -> &'static str {
    match (kind, approved) {
        ("server_reset", _) => {
            "Approved. The files here are offered to the proxy again; where it has other content, both are kept. \
             Nothing is deleted."
        }
        ("root_missing" | "root_changed", _) => {
            "Approved. This is your folder from now on. It starts with the files of both sides; where they differ, both \
             are kept. Nothing is deleted."
        }
        (_, true) => "Approved. The deletions are made now; what goes here stays in `memsync history`.",
        (_, false) => "Rejected. Nothing is deleted; the files come back.",
    }
}

fn people(out: &mut dyn Write, plans: &[Plan]) -> io::Result<()> {
    if plans.is_empty() {
        return writeln!(out, "Nothing is held.");
    }
    for Plan { folder, halt } in plans {
        let id = halt.id.as_deref().unwrap_or("(cannot be approved)");
        writeln!(out, "{}  {}", show::painted(show::BOLD, id), show::name(&folder.display().to_string()))?;
        writeln!(out, "  {}", show::name(&halt.reason))?;
        for path in halt.sample.iter().take(SHOWN) {
            writeln!(out, "    {}", show::name(path))?;
        }
        if let more @ 1.. = halt.paths.saturating_sub(SHOWN) {
            writeln!(out, "    and {more} more")?;
        }
        if halt.id.is_some() {
            writeln!(out, "  approve: {}", effect(&halt.kind, true).trim_start_matches("Approved. "))?;
        }
        if halt.kind == "mass_delete" {
            writeln!(out, "  --reject: {}", effect(&halt.kind, false).trim_start_matches("Rejected. "))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: &str, id: Option<&str>) -> Plan {
        let halt = HaltStatus {
            kind: kind.to_owned(),
            id: id.map(str::to_owned),
            reason: "why".to_owned(),
            sample: vec!["a.md".to_owned()],
            paths: 25,
            deleted_here: false,
        };
        Plan { folder: "/m".into(), halt }
    }

    #[test]
    fn the_one_plan_needs_no_name_and_several_do() {
        let chosen =
            |plans: &[Plan], id| choose(plans, id).map(|p| p.and_then(|p| p.halt.id.clone())).map_err(|f| f.exit);
        assert_eq!(chosen(&[], None), Ok(None));
        let one = [plan("root_missing", None), plan("mass_delete", Some("a"))];
        assert_eq!(chosen(&one, None), Ok(Some("a".to_owned())));
        assert_eq!(chosen(&one[..1], None), Err(Exit::Halted));
        let two = [plan("mass_delete", Some("a")), plan("server_reset", Some("b"))];
        assert_eq!(chosen(&two, None), Err(Exit::Usage));
        assert_eq!(chosen(&two, Some("b")), Ok(Some("b".to_owned())));
        assert_eq!(chosen(&two, Some("c")), Err(Exit::Usage));
    }

    #[test]
    fn a_list_says_what_each_answer_does() {
        let mut out = Vec::new();
        people(&mut out, &[plan("mass_delete", Some("a")), plan("server_reset", Some("b"))]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("--reject: Nothing is deleted") && text.contains("offered to the proxy again"), "{text}");
        assert_eq!(text.matches("--reject").count(), 1, "{text}");
        assert!(text.contains("    and 15 more\n"), "{text}");
    }
}
