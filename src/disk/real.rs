//! [`RealDisk`]: the operating system's filesystem.

/// A folder opened once; every operation starts from its handle.
pub struct RealDisk;
