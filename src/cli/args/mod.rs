//! The command line: every command and flag, with its help.
//!
//! The doc comments here are the help texts. The files in `commands` do the work.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::config::parse_duration;

mod files;
mod keep;
mod keys;
mod merge;
mod proxy;
mod versions;

pub use clap::ColorChoice;
pub use files::{PutArgs, RmArgs};
pub use keep::KeepChoice;
pub(crate) use keep::KeepParser;
pub use keys::{KeyAction, KeyArgs, NewKeyArgs, StoreAction, StoreArgs, StoreDir, UserAction, UserArgs};
pub use merge::MergeArgs;
pub use proxy::{InitArgs, ListenAddress, NotListenable, ServeArgs, TlsArgs, UpArgs};
pub use versions::{DiffArgs, LogArgs, RestoreArgs, ShowArgs};

/// The output of `memsync` without a command.
pub(crate) const FIRST_STEPS: &str = "\
memsync keeps a folder of notes in sync through a Memory Proxy. Nothing you wrote is ever lost.

Start on this machine alone, without configuration:
    memsync up              syncs ~/Memory, and says how a second machine joins

Or use a proxy that runs already:
    memsync init --join -                           asks for the link that `memsync link` prints there
    memsync init --proxy URL --token-file FILE      without a link
    memsync run

Then:
    memsync status          is everything in sync?
    memsync doctor          is everything set up right?
    memsync help            every command
";

/// Keep a folder of notes in sync through a Memory Proxy; nothing you wrote is ever lost
#[derive(Debug, Parser)]
#[command(name = "memsync", version, max_term_width = 100, disable_help_subcommand = false)]
pub struct Args {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The command line. Its help leaves out the environment variables, which the docs list.
pub fn command() -> clap::Command {
    without_env(Args::command())
}

fn without_env(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.hide_env(true)).mut_subcommands(without_env)
}

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// The config file [default: see `memsync paths`]
    #[arg(long, global = true, value_name = "FILE", env = "MEMSYNC_CONFIG", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log less; twice for errors only
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
    /// The format of log lines
    #[arg(long, global = true, value_name = "FORMAT", env = "MEMSYNC_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// When to use colours; `auto` obeys NO_COLOR
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a proxy and sync a folder with it, without configuration
    Up(UpArgs),
    /// Write a config for a folder, after checking the proxy and the token
    Init(InitArgs),
    /// Print the link with which another machine joins the proxy of `memsync up`
    ///
    /// The link holds the token: anyone with the link can read and change every file.
    Link {
        /// The folder to join [default: the first one]
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
    /// Run the agent in the foreground: it syncs all configured folders
    Run,
    /// Run only a Memory Proxy, without an agent
    Serve(ServeArgs),
    /// Rebuild the index of a proxy on S3 from its files, and report the repairs
    ///
    /// Proxies may serve the bucket meanwhile.
    Reindex,
    /// Create, list and remove the users of this machine's proxy
    ///
    /// The proxy may run meanwhile. Each change takes effect within two seconds.
    User(UserArgs),
    /// Create, list, revoke and rotate the keys of this machine's proxy
    ///
    /// The proxy may run meanwhile. Each change takes effect within two seconds.
    Key(KeyArgs),
    /// Inspect, back up, check and copy the store of a proxy
    ///
    /// A proxy may serve the store during `stats`, `backup` and `verify`.
    Store {
        #[command(subcommand)]
        action: StoreAction,
    },
    /// Sync once and exit; uses the running agent if there is one
    Sync(SyncArgs),
    /// Show whether everything is in sync; with PATH, the state of one file and why
    Status(StatusArgs),
    /// Wait until everything is in sync
    Wait(WaitArgs),
    /// Stop syncing for a while; the agent keeps running
    Pause(PauseArgs),
    /// Sync again after `memsync pause`
    Resume,
    /// Approve or reject a change that memsync holds until you decide
    Approve(ApproveArgs),
    /// List the conflicts, or resolve one
    Conflicts {
        #[command(subcommand)]
        action: Option<ConflictsAction>,
    },
    /// Show what sync did on this machine: uploads, downloads, deletions and failures
    Log(LogArgs),
    /// List the earlier versions of a file, kept on this machine and on the proxy
    History {
        /// The file [default: all files, with the versions on this machine]
        #[arg(value_hint = ValueHint::AnyPath)]
        path: Option<PathBuf>,
    },
    /// Print an earlier version of a file
    Show(ShowArgs),
    /// Show the difference between two versions of a file
    ///
    /// Compares the newest earlier version with the file as it is now, unless you name others. Exits with 0 whether or not they
    /// differ; with --json, the field `same` tells.
    Diff(DiffArgs),
    /// Bring back an earlier version of a file
    Restore(RestoreArgs),
    /// Merge two versions of a file with their common base, by the rules for its kind
    ///
    /// Prints the merged text. Swapping LOCAL and REMOTE gives the same text. If the versions conflict, it prints only the
    /// reason, on stderr, and exits with 8. As a merge driver of git: `memsync merge %O %A %B --path %P --output %A`.
    Merge(MergeArgs),
    /// Write stdin to a file in a synced folder, whole or not at all, and print its MD5
    ///
    /// The text that it replaces goes to history. If a condition fails, it changes nothing, prints the present MD5 on
    /// stderr, and exits with 9.
    Put(PutArgs),
    /// Add stdin to the end of a file in a synced folder, on a new line, and print its MD5
    ///
    /// A missing file is created. Commands that append at the same time lose nothing.
    Append {
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        path: PathBuf,
    },
    /// Move a file in a synced folder to history; the other machines remove it too
    ///
    /// `memsync restore PATH` brings it back.
    Rm(RmArgs),
    /// Print a file in a synced folder as it is; with --json, its text and MD5
    Cat {
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        path: PathBuf,
    },
    /// Check config, permissions, watch limits, proxy, token, clock and state; say how to fix each problem
    Doctor,
    /// Show where config, state, logs, socket and history are
    Paths,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, clap::Args)]
pub struct SyncArgs {
    /// The folder to sync [default: all configured folders]
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// Show the changes that a sync would make, without making them
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// A file or folder [default: everything]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// Keep running, and show each change
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// Give up after this time, such as 30s [default: never]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    /// The same as --for
    #[arg(value_name = "TIME", value_parser = parse_duration)]
    pub time: Option<Duration>,
    /// End the pause after this time, such as 1h [default: at `memsync resume`]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, conflicts_with = "time")]
    pub duration: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub struct ApproveArgs {
    /// The change to decide on, as --list shows it [default: the only one that is held]
    pub id: Option<String>,
    /// Reject it: files that were to be deleted come back
    #[arg(long)]
    pub reject: bool,
    /// List the changes that are held
    #[arg(long, conflicts_with_all = ["id", "reject"])]
    pub list: bool,
}

#[derive(Debug, Subcommand)]
pub enum ConflictsAction {
    /// Resolve the conflict of one file
    Resolve {
        /// The file, or its conflict copy
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        /// The text that the file gets
        #[arg(long, value_name = "TEXT", value_parser = KeepParser, required_unless_present = "edit")]
        keep: Option<KeepChoice>,
        /// Open both texts in $VISUAL or $EDITOR, with the differences between markers; the file gets the result
        #[arg(long, conflicts_with = "keep")]
        edit: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::proxy::TLS_HEADING;
    use super::*;

    #[test]
    fn declaration_is_valid() {
        command().debug_assert();
    }

    /// Every command, the outermost first.
    fn all_commands() -> Vec<clap::Command> {
        let mut commands = vec![command()];
        let mut at = 0;
        while at < commands.len() {
            commands.extend(commands[at].get_subcommands().cloned().collect::<Vec<_>>());
            at += 1;
        }
        commands
    }

    #[test]
    fn every_command_and_argument_has_a_description() {
        for command in all_commands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn help_hides_environment_variables() {
        for mut command in all_commands() {
            let help = command.render_long_help().to_string();
            assert!(!help.contains("[env:"), "{help}");
        }
    }

    #[test]
    fn help_puts_each_flag_below_its_own_heading() {
        for command in all_commands() {
            for arg in command.get_arguments().filter(|a| a.get_help_heading() == Some(TLS_HEADING)) {
                let id = arg.get_id().as_str();
                assert!(id.contains("tls"), "{} --{id} is no flag of encryption", command.get_name());
            }
        }
    }

    #[test]
    fn help_repeats_no_sentence() {
        for command in all_commands() {
            let about = command.get_subcommands().filter_map(clap::Command::get_about);
            let help = command.get_arguments().filter_map(clap::Arg::get_help);
            let text: Vec<String> = about.chain(help).map(ToString::to_string).collect();
            let mut parts: Vec<&str> = text.iter().flat_map(|t| t.split([';', '.', '[']).map(str::trim)).collect();
            parts.retain(|part| part.split(' ').count() > 2);
            parts.sort_unstable();
            let again = parts.windows(2).find(|pair| pair[0] == pair[1]);
            assert_eq!(again, None, "{}", command.get_name());
        }
    }

    #[test]
    fn token_is_no_argument() {
        let args: Vec<_> = command()
            .get_subcommands()
            .flat_map(|c| c.get_arguments().map(|a| a.get_id().to_string()).collect::<Vec<_>>())
            .collect();
        assert!(args.contains(&"token_file".to_owned()) && !args.contains(&"token".to_owned()));
    }

    #[test]
    fn durations_need_a_unit() {
        let parse = |words: &[&str]| Args::try_parse_from([&["memsync", "pause"], words].concat());
        for words in [&["--for", "1h"][..], &["1h"]] {
            let Some(Command::Pause(pause)) = parse(words).unwrap().command else { panic!("{words:?}") };
            assert_eq!(pause.duration.or(pause.time), Some(Duration::from_secs(3600)), "{words:?}");
        }
        assert!(parse(&["--for", "5"]).unwrap_err().to_string().contains("no unit"));
        assert!(parse(&["5"]).unwrap_err().to_string().contains("no unit"));
        assert!(parse(&["1h", "--for", "2h"]).is_err());
    }
}
