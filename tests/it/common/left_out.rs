//! Tests that some machines cannot run.

/// Reports why a test is skipped. It fails under `.ci/run`, which skips no test.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "`.ci/run` sets the variable")]
pub(crate) fn left_out(why: &str) {
    let all = std::env::var_os("MEMSYNC_TEST_ALL").is_some_and(|all| !all.is_empty());
    assert!(!all, "MEMSYNC_TEST_ALL is set, and this one cannot run: {why}");
    println!("left out: {why}");
}
