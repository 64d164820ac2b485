//! Parses the command line, runs the command and returns its exit code.

use std::process::ExitCode;

use clap::FromArgMatches;
use memsync::cli::args::{self, Args};

fn main() -> ExitCode {
    memsync::cli::configure_allocator();
    let args = Args::from_arg_matches(&args::command().get_matches()).unwrap_or_else(|e| e.exit());
    memsync::cli::run(args).into()
}
