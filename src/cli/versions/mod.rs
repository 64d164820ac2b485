//! Earlier texts of files, from the history of this machine and from the versions that the proxy keeps.
//!
//! A version is named by its content: `note.md@5d41402a` has the first digits of the MD5. So the name is the same on every
//! machine, and it stays when versions come and go.

mod at_time;
mod client;
mod folder_versions;
mod joined;
mod moment;
mod path_versions;
mod target;

pub(crate) use client::ProxyPart;
pub(crate) use folder_versions::{FolderVersions, devices_of};
pub(crate) use joined::{EarlierVersion, join_equal};
pub(crate) use moment::parse_moment;
pub(crate) use path_versions::{PathVersions, kept_versions};
pub(crate) use target::{VersionName, VersionTarget, parse_name, parse_target};
