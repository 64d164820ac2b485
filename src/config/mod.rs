//! The configuration: `config.toml` and the environment, parsed into plain values.
//!
//! Unknown keys, bad values and unknown units are errors with the file, the line and the nearest valid key. A config that
//! cannot be read never means defaults. The environment, the home directory and the host name are passed in
//! ([`MachineContext`]); nothing here reads them.

mod draft;
mod error;
mod files;
mod load;
mod model;
mod token;
mod value;

pub use crate::agent::{ConflictPolicy, FolderConfig, HistoryConfig, StateConfig, SyncConfig};
pub use crate::disk::whole::{create_private, create_private_dir};
pub use crate::state::StateFormat;
pub use draft::ConfigDraft;
pub(crate) use draft::added_folder;
pub(crate) use error::shell_word;
pub use error::{ConfigError, SettingOrigin, TokenSource};
pub(crate) use files::{make_certificate, read_ca_file, read_small_file, resolve_links};
pub use load::env_name;
pub use model::{Config, KEYS, MachineContext, ProxyConfig};
pub use token::parse_token;
pub(crate) use token::{read_token_file, token_from_env};
pub use value::{parse_duration, parse_size, sanitise_device};
