//! `memsync completions SHELL`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Args;
use super::exit::Exit;
use super::output;

/// # Errors
/// As writing does.
pub fn run(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "memsync", &mut script);
    output::print(|out| out.write_all(&script))?;
    Ok(Exit::Done)
}
