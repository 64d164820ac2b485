//! `memsync completions SHELL`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::args::Args;
use crate::cli::exit::Exit;
use crate::cli::process::output;

pub(super) fn run(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "memsync", &mut script);
    output::print(|out| out.write_all(&script))?;
    Ok(Exit::Done)
}
