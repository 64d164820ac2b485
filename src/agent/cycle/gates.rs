//! [`Gates`]: the plans that wait for a person, and the approvals.

use std::collections::BTreeSet;

use crate::path::RelPath;
use crate::sync::safety::{DeletionFacts, Halt, HeldDeletions, hold_mass_delete};
use crate::sync::{Action, Plan, PlanStep};

/// The plans that wait for a person, and the approvals.
#[derive(Debug, Default)]
pub(in crate::agent) struct Gates {
    /// Deletions that a person has let through.
    pub approved: BTreeSet<RelPath>,
    /// Plans whose deletions are held.
    pub held: Vec<HeldDeletions>,
    /// The store was reset. Nothing is planned with it.
    pub reset: Option<Halt>,
}

impl Gates {
    /// Takes implausibly many deletions out of the plan. True if some of them wait for uploads of this plan first.
    pub(super) fn hold_deletions(&mut self, plan: &mut Plan, facts: &DeletionFacts) -> bool {
        let held = hold_mass_delete(plan, facts, &self.approved, &self.held);
        let (waiting, held): (Vec<HeldDeletions>, Vec<HeldDeletions>) = held.into_iter().partition(|held| held.unread);
        self.held = held;
        // An approval lives as long as the deletions of its plan are still to be made.
        let is_open = |step: &&PlanStep| step.action.deletes().is_some() || matches!(step.action, Action::Skip(_));
        let open: BTreeSet<&RelPath> = plan.steps.iter().filter(is_open).map(|step| &step.path).collect();
        self.approved.retain(|path| open.contains(path));
        !waiting.is_empty()
    }

    /// The number of deletions that are held.
    pub(crate) fn held_steps(&self) -> usize {
        self.held.iter().map(|held| held.steps.len()).sum()
    }

    /// The halts that wait for a person.
    pub(crate) fn halts(&self) -> Vec<Halt> {
        self.reset.iter().cloned().chain(self.held.iter().map(HeldDeletions::halt)).collect()
    }

    /// Takes the held plan `id` out, to be approved or rejected.
    pub(crate) fn take_held(&mut self, id: &str) -> Option<HeldDeletions> {
        let at = self.held.iter().position(|held| held.id == id)?;
        Some(self.held.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::Md5;

    fn plan(names: impl Iterator<Item = usize>) -> Plan {
        let base = Md5::of(b"1");
        let step = |n| PlanStep {
            path: RelPath::parse(&format!("n{n:02}")).unwrap(),
            row: 9,
            action: Action::DeleteRemote { base },
        };
        Plan { steps: names.map(step).collect() }
    }

    fn facts() -> DeletionFacts {
        DeletionFacts { tracked: 12, staying: BTreeMap::new(), max_delete: 0.5 }
    }

    #[test]
    fn mass_deletion_is_held_until_it_is_approved() {
        let mut gates = Gates::default();
        let mut held = plan(0..12);
        assert!(!gates.hold_deletions(&mut held, &facts()));
        assert_eq!((held.steps.len(), gates.held_steps(), gates.halts().len()), (0, 12, 1));
        let approved = gates.take_held(&gates.held[0].id.clone()).unwrap();
        gates.approved.extend(approved.steps.into_iter().map(|step| step.path));
        let mut let_through = plan(0..12);
        gates.hold_deletions(&mut let_through, &facts());
        assert_eq!((let_through.steps.len(), gates.held_steps()), (12, 0));
        gates.hold_deletions(&mut plan(0..0), &facts());
        assert!(gates.approved.is_empty(), "the approval ends with its plan");
    }
}
