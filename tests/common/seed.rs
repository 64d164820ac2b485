//! The seed of a random test.

/// `MEMSYNC_TEST_SEED`, else a new one. It is printed, so that a test that failed can be run again.
#[expect(clippy::disallowed_methods, reason = "the way to run a seed again")]
pub fn seed() -> u64 {
    let seed = std::env::var("MEMSYNC_TEST_SEED").ok().map_or_else(|| fastrand::u64(..), |s| s.parse().unwrap());
    println!("run again with MEMSYNC_TEST_SEED={seed}");
    seed
}
