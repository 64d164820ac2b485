//! The seed of a random test.

/// `MEMSYNC_TEST_SEED`, or a random seed. It is printed, so that a failed test can be repeated.
#[expect(clippy::disallowed_methods, reason = "repeats a seed")]
pub fn seed() -> u64 {
    let seed = std::env::var("MEMSYNC_TEST_SEED").ok().map_or_else(|| fastrand::u64(..), |s| s.parse().unwrap());
    println!("run again with MEMSYNC_TEST_SEED={seed}");
    seed
}
