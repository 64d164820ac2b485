//! `memsync paths`: shows where memsync keeps its files.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::app::App;
use crate::cli::exit::Exit;
use crate::cli::machine::state_files;
use crate::path::PRIVATE_DIR;

#[derive(Serialize)]
struct PathsAnswer {
    config: PathBuf,
    state: PathBuf,
    proxy: PathBuf,
    logs: PathBuf,
    /// `None` if the usual path is too long and no agent has chosen another yet.
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

pub(super) fn run(app: &App) -> anyhow::Result<Exit> {
    let folders = app.config().map(|c| c.folders.as_slice()).unwrap_or_default();
    let paths = PathsAnswer {
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
    app.answer(&paths, write_paths)
}

fn write_paths(out: &mut dyn Write, paths: &PathsAnswer) -> io::Result<()> {
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
