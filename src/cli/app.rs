//! [`App`]: what every command starts from. The one place that reads the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use directories::{BaseDirs, ProjectDirs};
use serde::Serialize;

use super::args::{Color, Global};
use super::exit::{Exit, Failure};
use super::output;
use crate::config::{Config, ConfigError, Surroundings};
use crate::dirs::Dirs;
use crate::failpoint;

/// The flags, the places and the config of this start.
pub struct App {
    pub global: Global,
    pub dirs: Dirs,
    pub around: Surroundings,
    config: Result<Config, Arc<ConfigError>>,
}

impl App {
    /// Reads the environment and the config; a config that is not right is told by the command that needs it.
    ///
    /// # Errors
    /// Where no home folder is known and `MEMSYNC_HOME` is not set.
    pub fn start(global: Global) -> anyhow::Result<Self> {
        match global.color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        }
        .write_global();
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        let env = readable(std::env::vars_os())?;
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
        let tmp = std::env::temp_dir();
        if let Some(point) = env.get("MEMSYNC_KILL_AT") {
            failpoint::arm(point);
        }
        if let Some(stops) = env.get("MEMSYNC_STOP_AT") {
            failpoint::arm_stops(stops);
        }
        let mut dirs = match env.get("MEMSYNC_HOME").filter(|v| !v.is_empty()) {
            Some(home) => Dirs::below(&std::path::absolute(home)?, &tmp),
            None => {
                let project = ProjectDirs::from("", "", "memsync").ok_or_else(|| {
                    Failure::new(Exit::Usage, "no home folder is known; set HOME, or MEMSYNC_HOME=DIR for everything")
                })?;
                Dirs::standard(&project, &tmp)
            }
        };
        if let Some(path) = &global.config {
            dirs.config_file = std::path::absolute(path).with_context(|| format!("--config {}", path.display()))?;
        }
        let around = Surroundings {
            env,
            home: BaseDirs::new().map(|b| b.home_dir().to_owned()),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            private: vec![dirs.state.clone(), dirs.logs.clone(), dirs.proxy.clone()],
        };
        Ok(Self::new(global, dirs, around))
    }

    /// As [`App::start`], with everything passed in.
    pub fn new(global: Global, dirs: Dirs, around: Surroundings) -> Self {
        let config = Config::load(&dirs.config_file, &around).map_err(Arc::new);
        Self { global, dirs, around, config }
    }

    /// The config.
    ///
    /// # Errors
    /// What is wrong with it, with the place.
    pub fn config(&self) -> Result<&Config, Arc<ConfigError>> {
        self.config.as_ref().map_err(Arc::clone)
    }

    /// Writes the answer of a command to stdout: one JSON document with `--json`, else the text that `people` writes.
    ///
    /// # Errors
    /// As writing does. A reader that has gone is no error, so the command keeps its exit code.
    pub fn answer<T: Serialize>(
        &self,
        answer: &T,
        people: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        output::print(|out| {
            if self.global.json {
                serde_json::to_writer_pretty(&mut *out, answer)?;
                writeln!(out)
            } else {
                people(out, answer)
            }
        })?;
        Ok(())
    }

    /// The default folder, `~/Memory`.
    ///
    /// # Errors
    /// Where no home folder is known.
    pub fn default_folder(&self) -> anyhow::Result<PathBuf> {
        let home = self.around.home.as_ref();
        Ok(home.ok_or_else(|| Failure::new(Exit::Usage, "no home folder is known; name the folder"))?.join("Memory"))
    }
}

/// The variables that are UTF-8. Others are none of ours, unless their name says so.
fn readable(vars: impl Iterator<Item = (OsString, OsString)>) -> Result<BTreeMap<String, String>, Failure> {
    let mut env = BTreeMap::new();
    for (name, value) in vars {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => drop(env.insert(name, value)),
            (Ok(name), Err(_)) if name.starts_with("MEMSYNC_") => {
                return Err(Failure::new(Exit::Usage, format!("environment variable {name}: its value is not UTF-8")));
            }
            _ => {}
        }
    }
    Ok(env)
}
