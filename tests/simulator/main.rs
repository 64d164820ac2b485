//! The real cycle, folder and container code over a simulated disk, proxy, clock and random source.
//!
//! Every schedule comes from a seed, and is checked for invariant 1 (no loss) and invariant 2 (convergence).
//! Environment:
//!
//! - `MEMSYNC_SIM_SCHEDULES`: the number of schedules (default 20,000).
//! - `MEMSYNC_SIM_SEED`: the first seed. With `MEMSYNC_SIM_SCHEDULES=1` it repeats one schedule.
//! - `MEMSYNC_SIM_TRACE=1`: print each step.

#![expect(clippy::disallowed_methods, reason = "the environment says which schedules to run")]

mod schedule;
mod second;
mod settle;
mod users;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use schedule::{Bug, Offers, Setting, run};
use world::merges;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name} is to be a plain number, and is {text:?}: {e}")))
}

/// The features of a seed's proxy. Half of the proxies take batches, and half of each kind give deltas. A quarter is
/// foreign, and a quarter is slow.
fn offers(seed: u64) -> Offers {
    Offers {
        batch: seed.is_multiple_of(2),
        etag_delta: seed % 8 < 4,
        is_foreign: seed / 16 % 4 == 3,
        is_slow: seed / 64 % 4 == 3,
    }
}

/// Runs `count` schedules from `first` on all cores. Returns the first failure that `counts`, with its seed.
fn search(
    first: u64,
    count: u64,
    setting: impl Fn(u64) -> Setting + Sync,
    counts: impl Fn(&str) -> bool + Sync,
) -> Option<(u64, String)> {
    let next = AtomicU64::new(first);
    let failure = std::sync::Mutex::new(None::<(u64, String)>);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failure.lock().unwrap().is_some() {
                        return;
                    }
                    let setting = setting(seed);
                    let result =
                        std::panic::catch_unwind(|| run(seed, setting)).unwrap_or_else(|panic| Err(message(&*panic)));
                    if let Err(why) = result
                        && counts(&why)
                    {
                        let mut failure = failure.lock().unwrap();
                        if failure.as_ref().is_none_or(|(s, _)| seed < *s) {
                            *failure = Some((seed, why));
                        }
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap()
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("?"))
}

#[test]
fn nothing_is_lost_and_all_agree() {
    let first = number("MEMSYNC_SIM_SEED").unwrap_or(1);
    let count = number("MEMSYNC_SIM_SCHEDULES").unwrap_or(20_000);
    println!("{count} schedules from seed {first}");
    let setting = |seed| Setting { bug: None, planted: false, has_lines: false, offers: offers(seed) };
    if let Some((seed, why)) = search(first, count, setting, |_| true) {
        panic!(
            "seed {seed}: {why}\nrerun: MEMSYNC_SIM_SEED={seed} MEMSYNC_SIM_SCHEDULES=1 MEMSYNC_SIM_TRACE=1 \
             cargo test --test simulator nothing_is_lost -- --nocapture"
        );
    }
}

/// Files are lists of lines. Merges join them, and no line is lost.
#[test]
fn no_line_is_lost_when_files_are_merged() {
    let first = number("MEMSYNC_SIM_SEED").unwrap_or(1);
    let count = number("MEMSYNC_SIM_SCHEDULES").unwrap_or(4_000);
    println!("{count} schedules from seed {first}");
    let setting = |seed| Setting { bug: None, planted: false, has_lines: true, offers: offers(seed) };
    if let Some((seed, why)) = search(first, count, setting, |_| true) {
        panic!(
            "seed {seed}: {why}\nrerun: MEMSYNC_SIM_SEED={seed} MEMSYNC_SIM_SCHEDULES=1 MEMSYNC_SIM_TRACE=1 \
             cargo test --test simulator no_line_is_lost -- --nocapture"
        );
    }
    assert!(merges() > 0, "files were merged");
}

/// Seeds that once failed.
#[test]
fn regressions() {
    for seed in include_str!("seeds.txt").lines().filter_map(|l| l.split_whitespace().next()?.parse().ok()) {
        let plain = [(false, false), (true, false), (false, true), (true, true)].map(|(batch, etag_delta)| Offers {
            batch,
            etag_delta,
            is_foreign: false,
            is_slow: false,
        });
        for offers in plain.into_iter().chain([offers(seed)]) {
            if let Err(why) = run(seed, Setting { bug: None, planted: false, has_lines: false, offers }) {
                panic!("seed {seed}, {offers:?}: {why}");
            }
        }
    }
}

/// The bug breaks an invariant in a schedule that is clean without the bug. Other failures do not count, such as a
/// container that does not open: a user would not lose anything by them.
fn caught(bug: Bug) {
    caught_in_files(bug, false);
}

/// `has_lines`: in files that merges can join.
fn caught_in_files(bug: Bug, has_lines: bool) {
    let limit = 20_000;
    for batch in [false, true] {
        let setting = |seed, planted| Setting {
            bug: Some(bug),
            planted,
            has_lines,
            offers: Offers { batch, is_foreign: false, is_slow: false, ..offers(seed) },
        };
        match search(1, limit, |seed| setting(seed, true), |why| why.starts_with("invariant ")) {
            Some((seed, why)) => {
                println!("{bug:?}, batches: {batch}: caught at seed {seed}: {why}");
                if let Err(why) = run(seed, setting(seed, false)) {
                    panic!("{bug:?}, batches: {batch}: seed {seed} fails without it: {why}");
                }
            }
            None => panic!("{bug:?}, batches: {batch}: was not caught in {limit} schedules"),
        }
    }
}

#[test]
fn planted_bug_index_md5_on_upload() {
    caught(Bug::IndexMd5OnUpload);
}

/// The count of lines notices a lost edit.
#[test]
fn planted_bug_upload_without_merge() {
    caught_in_files(Bug::IndexMd5OnUpload, true);
}

#[test]
fn planted_bug_index_md5_on_delete() {
    caught(Bug::IndexMd5OnDelete);
}

#[test]
fn planted_bug_base_before_fsync() {
    caught(Bug::BaseBeforeFsync);
}

#[test]
fn planted_bug_unlink_without_verify() {
    caught(Bug::UnlinkWithoutVerify);
}

#[test]
fn planted_bug_plain_tombstone_trusted() {
    caught(Bug::PlainTombstoneTrusted);
}

#[test]
fn planted_bug_unreadable_is_deleted() {
    caught(Bug::UnreadableIsDeleted);
}

#[test]
fn planted_bug_detached_is_deleted() {
    caught(Bug::DetachedIsDeleted);
}

#[test]
fn planted_bug_index_version_on_upload() {
    caught(Bug::IndexVersionOnUpload);
}
