//! Tests that not every machine can run.

/// Says why a test is left out; `.ci/run` leaves out none, and has it fail.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "how `.ci/run` asks for all")]
pub fn left_out(why: &str) {
    let all = std::env::var_os("MEMSYNC_TEST_ALL").is_some_and(|all| !all.is_empty());
    assert!(!all, "MEMSYNC_TEST_ALL is set, and this one cannot run: {why}");
    println!("left out: {why}");
}
