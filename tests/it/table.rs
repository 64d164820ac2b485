//! The decision table, row by row. Every combination of base, local, index and truth runs through the real engine. Each
//! runs again with a kill, a power cut, or a lost request or reply at every possible place.

mod case;
mod setting;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use case::{C, Case, Here, Proxy, There, cases};
use fastrand::Rng;
use memsync::testing::{LostPart, StepFate, TombstoneKind};
use setting::{Setting, cycle};

/// Runs `check` on every case, on all cores. A failure names the row and the case.
fn each(cases: &[Case], check: impl Fn(&Case) + Sync) {
    let next = AtomicUsize::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            s.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = std::panic::AssertUnwindSafe(|| check(case));
                    if let Err(panic) = std::panic::catch_unwind(run) {
                        let why = panic.downcast_ref::<String>().cloned();
                        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                        failed.lock().unwrap().push(format!(
                            "row {}: {case:?}: {}",
                            case.row(),
                            why.unwrap_or_default()
                        ));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {} cases:\n{}",
        failed.len(),
        cases.len(),
        failed[..failed.len().min(12)].join("\n")
    );
}

#[test]
fn every_combination_comes_to_the_end_its_row_promises() {
    let cases = cases();
    let rows: BTreeSet<u8> = cases.iter().map(Case::row).collect();
    assert_eq!(rows, (1..=22).collect(), "every row is hit");
    each(&cases, |case| {
        let mut setting = Setting::new(case);
        let mut engine = setting.engine();
        cycle(&mut engine).unwrap();
        let ends = case.ends(case.index);
        if case.row() == 20 {
            let truth = if let There::Live(c) = case.truth { Some(c.bytes()) } else { None };
            assert_eq!(setting.there(), truth, "nothing is decided for what is unknown");
        } else if case.truthful() {
            assert_eq!(setting.here(), setting.there(), "one cycle does, where the index is right");
            assert!(ends.iter().any(|end| end.map(C::bytes) == setting.here()), "{:?}, not {ends:?}", setting.here());
        }
        let ends = if case.row() == 20 { case.ends(case.truth) } else { ends };
        setting.ends_well(engine, case, &ends);
    });
}

/// The combinations in which a crash can matter. Wrong indexes are included for this proxy's kind of tombstone only.
fn eventful() -> Vec<Case> {
    let readable = |c: &Case| !matches!(c.local, Here::Unreadable(_)) && !matches!(c.row(), 1 | 3 | 12 | 22);
    let liars = [Proxy::Plain(TombstoneKind::Absent, true), Proxy::Versions(66)];
    let kind = |c: &Case| c.truthful() || liars.contains(&c.proxy);
    cases().into_iter().filter(|c| readable(c) && kind(c)).collect()
}

/// The right end states if the first cycle did any part of its work.
fn ends_after_trouble(case: &Case) -> BTreeSet<Option<C>> {
    let mut ends = case.ends(case.index);
    ends.extend(case.ends(case.truth));
    ends
}

#[test]
fn a_crash_before_any_write_is_a_row() {
    each(&eventful(), |case| {
        for power in [false, true] {
            for number in 0.. {
                let mut setting = Setting::new(case);
                let mut engine = setting.engine();
                let count = Arc::new(AtomicUsize::new(0));
                for disk in [&setting.disk, &setting.state] {
                    let count = count.clone();
                    disk.set_hook(Some(Box::new(move |op| {
                        let here = op.kind.writes() && count.fetch_add(1, Ordering::Relaxed) == number;
                        if here { StepFate::Kill } else { StepFate::Go }
                    })));
                }
                let _ = cycle(&mut engine);
                // Both disks belong to the process that died.
                engine.folder().disk().kill();
                drop(engine);
                setting.disk.set_hook(None);
                setting.state.set_hook(None);
                if power {
                    let mut rng = Rng::with_seed(number as u64);
                    setting.disk.power_cut(&mut rng);
                    setting.state.power_cut(&mut rng);
                }
                let engine = setting.engine();
                setting.ends_well(engine, case, &ends_after_trouble(case));
                if count.load(Ordering::Relaxed) <= number {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_lost_request_or_reply_is_a_row() {
    each(&eventful(), |case| {
        for what in [LostPart::Request, LostPart::Reply] {
            for skip in 0.. {
                let mut setting = Setting::new(case);
                let mut engine = setting.engine();
                setting.server.lose(skip, what);
                let lost = cycle(&mut engine).is_err();
                if setting.server.is_losing() {
                    assert!(!lost);
                    break;
                }
                setting.ends_well(engine, case, &ends_after_trouble(case));
            }
        }
    });
}
