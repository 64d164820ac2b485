//! `memsync paths`: where everything is.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::app::App;
use super::exit::Exit;
use super::state_files;
use crate::path::PRIVATE_DIR;

#[derive(Serialize)]
struct Paths {
    config: PathBuf,
    state: PathBuf,
    proxy: PathBuf,
    logs: PathBuf,
    /// `None` where the usual path is too long and no agent has chosen another yet.
    socket: Option<PathBuf>,
    folders: Vec<FolderPaths>,
}

#[derive(Serialize)]
struct FolderPaths {
    path: PathBuf,
    /// Identity, staging, history.
    private: PathBuf,
    container: PathBuf,
}

/// # Errors
/// As writing does.
pub fn run(app: &App) -> anyhow::Result<Exit> {
    let folders = app.config().map(|c| c.folders.as_slice()).unwrap_or_default();
    let paths = Paths {
        config: app.dirs.config_file.clone(),
        state: app.dirs.state.clone(),
        proxy: app.dirs.proxy.clone(),
        logs: app.dirs.logs.clone(),
        socket: app.dirs.socket().ok(),
        folders: folders
            .iter()
            .map(|f| FolderPaths {
                path: f.path.clone(),
                private: f.path.join(PRIVATE_DIR),
                container: state_files::find(app, &f.path).container,
            })
            .collect(),
    };
    app.answer(&paths, people)?;
    Ok(Exit::Done)
}

fn people(out: &mut dyn Write, paths: &Paths) -> io::Result<()> {
    writeln!(out, "config   {}", paths.config.display())?;
    writeln!(out, "state    {}", paths.state.display())?;
    writeln!(out, "proxy    {}", paths.proxy.display())?;
    writeln!(out, "logs     {}", paths.logs.display())?;
    match &paths.socket {
        Some(socket) => writeln!(out, "socket   {}", socket.display())?,
        None => writeln!(out, "socket   chosen when the agent starts")?,
    }
    for folder in &paths.folders {
        writeln!(out, "folder   {}", folder.path.display())?;
        writeln!(out, "  history, identity   {}", folder.private.display())?;
        writeln!(out, "  state container     {}", folder.container.display())?;
    }
    Ok(())
}
