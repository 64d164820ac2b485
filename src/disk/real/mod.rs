//! [`RealDisk`]: the operating system's filesystem below one open folder.
//!
//! Every operation starts from the handle of the root. So a root that is renamed or replaced while memsync runs is never
//! confused with the new folder at its path ([`RealDisk::root_identity`] tells them apart). No component may be a symlink
//! or a mount point. `openat2` ensures that on Linux. Other systems, and Linux without `openat2`, open one component after
//! the other.

mod convert;
mod file;
mod ops;
#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod os;
mod resolve;
mod root;

pub use file::RealFile;
pub use root::{FileId, RealDisk, RootIdentity};

#[cfg(test)]
mod tests;
