//! [`App`]: flags, directories and config of a command. Only this file reads the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use directories::{BaseDirs, ProjectDirs};
use serde::Serialize;

use super::args::{ColorChoice, GlobalArgs};
use super::exit::{CommandFailure, Exit};
use super::process::output;
use crate::config::{Config, ConfigError, MachineContext};
use crate::dirs::Dirs;
use crate::failpoint;

/// The flags, directories and config of one start of memsync.
pub struct App {
    pub(crate) global: GlobalArgs,
    pub(crate) dirs: Dirs,
    pub(crate) machine: MachineContext,
    config: Result<Config, Arc<ConfigError>>,
}

impl App {
    /// Reads the environment and the config. A wrong config is an error only for commands that need it.
    pub(crate) fn start(global: GlobalArgs) -> anyhow::Result<Self> {
        match global.color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        }
        .write_global();
        #[expect(clippy::disallowed_methods, reason = "the only place that reads the environment")]
        let env = utf8_variables(std::env::vars_os())?;
        #[expect(clippy::disallowed_methods, reason = "the only place that reads the environment")]
        let tmp = std::env::temp_dir();
        if let Some(point) = env.get("MEMSYNC_KILL_AT") {
            failpoint::arm(point);
        }
        if let Some(stops) = env.get("MEMSYNC_STOP_AT") {
            failpoint::arm_stops(stops);
        }
        let mut dirs = find_dirs(&env, &tmp)?;
        if let Some(path) = &global.config {
            dirs.config_file = std::path::absolute(path).with_context(|| format!("--config {}", path.display()))?;
        }
        let machine = MachineContext {
            env,
            home: BaseDirs::new().map(|b| b.home_dir().to_owned()),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            private: vec![dirs.state.clone(), dirs.logs.clone(), dirs.proxy.clone()],
        };
        Ok(Self::new(global, dirs, machine))
    }

    /// As [`App::start`], without reading the environment.
    pub fn new(global: GlobalArgs, dirs: Dirs, machine: MachineContext) -> Self {
        let config = Config::load(&dirs.config_file, &machine).map_err(Arc::new);
        Self { global, dirs, machine, config }
    }

    /// The config, or its first fault.
    pub fn config(&self) -> Result<&Config, Arc<ConfigError>> {
        self.config.as_ref().map_err(Arc::clone)
    }

    /// Writes the answer of a command to stdout: one JSON document with `--json`, else the text that `write_text` writes.
    /// Gives the exit code of a command that is done.
    pub(crate) fn answer<T: Serialize>(
        &self,
        answer: &T,
        write_text: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
    ) -> anyhow::Result<Exit> {
        output::print(|out| {
            if self.global.json {
                serde_json::to_writer_pretty(&mut *out, answer)?;
                writeln!(out)
            } else {
                write_text(out, answer)
            }
        })?;
        Ok(Exit::Done)
    }

    /// As [`App::answer`], for a list. The document is an object with the list as its field `name`.
    pub(crate) fn answer_list<T: Serialize>(
        &self,
        name: &str,
        list: &[T],
        write_text: impl FnOnce(&mut dyn Write, &[T]) -> io::Result<()>,
    ) -> anyhow::Result<Exit> {
        self.answer(&BTreeMap::from([(name, list)]), |out, _| write_text(out, list))
    }

    /// `~/Memory`.
    pub(crate) fn default_folder(&self) -> anyhow::Result<PathBuf> {
        let home = self.machine.home.as_ref();
        Ok(home.ok_or_else(|| CommandFailure::usage("no home folder is known; name the folder"))?.join("Memory"))
    }
}

/// Everything below `MEMSYNC_HOME` if it is set, else the usual directories of the system.
fn find_dirs(env: &BTreeMap<String, String>, tmp: &Path) -> anyhow::Result<Dirs> {
    if let Some(home) = env.get("MEMSYNC_HOME").filter(|v| !v.is_empty()) {
        return Ok(Dirs::below(&std::path::absolute(home)?, tmp));
    }
    let project = ProjectDirs::from("", "", "memsync").ok_or_else(|| {
        CommandFailure::usage("no home folder is known; set HOME, or MEMSYNC_HOME=DIR for everything")
    })?;
    Ok(Dirs::standard(&project, tmp))
}

/// The variables that are UTF-8. Another value is an error only in a variable of memsync.
fn utf8_variables(
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, CommandFailure> {
    let mut env = BTreeMap::new();
    for (name, value) in vars {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => drop(env.insert(name, value)),
            (Ok(name), Err(_)) if name.starts_with("MEMSYNC_") => {
                return Err(CommandFailure::usage(format!("environment variable {name}: its value is not UTF-8")));
            }
            _ => {}
        }
    }
    Ok(env)
}
