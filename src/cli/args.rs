//! What may be typed: every command and flag, with its help. Declares only; the commands' files do the work.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::config::{parse_duration, parse_size};
use crate::protocol::Pin;
use crate::proxy::keys::UserPattern;

mod keep;
mod listen;
mod tls;

pub use keep::{Keep, KeepParser};
pub use listen::Listen;
use tls::ENCRYPTION;
pub use tls::Tls;

pub mod keys;

/// Shown by `memsync` alone: what a newcomer types first.
pub const FIRST_STEPS: &str = "\
memsync keeps a folder of notes in sync through a Memory Proxy, and loses nothing you wrote.

Start here, on this machine alone (nothing to configure):
    memsync up              syncs ~/Memory, and tells how a second machine joins

With a proxy that runs already, on another machine or here:
    memsync init --join -                           asks for the link of `memsync link`
    memsync init --proxy URL --token-file FILE      without a link
    memsync run

Then:
    memsync status          is everything in sync?
    memsync doctor          is everything set up right?
    memsync help            every command
";

/// Keeps a folder of notes in sync through a Memory Proxy, and loses nothing you wrote
#[derive(Debug, Parser)]
#[command(name = "memsync", version, max_term_width = 100, disable_help_subcommand = false)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The command line. Its help leaves out the environment variables, which the README lists.
pub fn command() -> clap::Command {
    without_env(Args::command())
}

fn without_env(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.hide_env(true)).mut_subcommands(without_env)
}

/// Flags that every command takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The config file, instead of the usual one (see `memsync paths`)
    #[arg(long, global = true, value_name = "FILE", env = "MEMSYNC_CONFIG", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log less; twice for errors alone
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
    /// How log lines look
    #[arg(long, global = true, value_name = "FORMAT", env = "MEMSYNC_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Colours in the output (NO_COLOR is obeyed)
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine, without configuration: a proxy and an agent for DIR
    Up {
        /// The folder to sync; created where it is missing [default: ~/Memory]
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Where the proxy listens, such as 0.0.0.0:8484 to let other machines join; a PORT alone is on 127.0.0.1
        /// [default: as before, at first 127.0.0.1:8484]
        #[arg(long, value_name = "[ADDR:]PORT")]
        listen: Option<Listen>,
        #[command(flatten)]
        tls: Tls,
        /// Speak plain http again, where an earlier start was told to speak TLS
        #[arg(long, conflicts_with_all = ["tls_cert", "tls_key", "tls_self_signed"], help_heading = ENCRYPTION)]
        no_tls: bool,
    },
    /// Write a config for DIR, after checking the proxy and the token
    Init(Init),
    /// Print the link with which another machine joins the proxy of `memsync up`
    ///
    /// It holds the token: anyone with the link can read and change every file.
    Link {
        /// The folder to join [default: the first one]
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
    /// Run the agent in the foreground, for all configured folders
    Run,
    /// Run a Memory Proxy alone
    Serve {
        /// Where to listen, such as 0.0.0.0:8484 for other machines; a PORT alone is on 127.0.0.1. `$PORT` stands for
        /// the environment variable
        #[arg(long, value_name = "[ADDR:]PORT", env = "MEMSYNC_LISTEN", default_value = "127.0.0.1:8484")]
        listen: Listen,
        /// Where the files are kept [default: see `memsync paths`]; instead of it S3_BUCKET, AWS_ACCESS_KEY_ID and
        /// AWS_SECRET_ACCESS_KEY in the environment name a bucket on S3
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
        /// A file with a token that opens everything, besides the keys of `memsync key` [default: MEMSYNC_TOKEN,
        /// MEMSYNC_TOKEN_FILE, the systemd credential `token`]
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        token_file: Option<PathBuf>,
        /// Longest file taken
        #[arg(
            long,
            value_name = "SIZE",
            env = "MEMSYNC_MAX_BODY_SIZE",
            default_value = "64MiB",
            value_parser = parse_size
        )]
        max_body_size: u64,
        #[command(flatten)]
        tls: Tls,
        /// Answer /metrics here, in plain http and without a token, instead of beside the rest for whoever has a token
        #[arg(long, value_name = "[ADDR:]PORT", env = "MEMSYNC_METRICS_LISTEN")]
        metrics_listen: Option<Listen>,
        /// Requests a second that one key may make [default: any number]
        #[arg(long, value_name = "N", env = "MEMSYNC_RATE")]
        rate: Option<NonZeroU32>,
        /// Namespaces that a user whom HEARE_AUTH_URL verifies may open, `{user_id}` in them is the user's id: such as
        /// `users/{user_id}/*` [default: all]
        #[arg(long, value_name = "PATTERN", env = "MEMSYNC_VERIFIED_NAMESPACES", value_delimiter = ',')]
        verified_namespaces: Vec<UserPattern>,
        /// How much the namespaces of one such user may hold together
        #[arg(
            long,
            value_name = "SIZE",
            env = "MEMSYNC_VERIFIED_QUOTA",
            value_parser = parse_size,
            requires = "verified_namespaces"
        )]
        verified_quota: Option<u64>,
    },
    /// Rebuild the index of a proxy on S3 from its files, and report what was mended
    ///
    /// Proxies may go on serving meanwhile.
    Reindex,
    /// Make, list and remove the users of this machine's proxy
    ///
    /// The proxy may go on serving, and takes up each change at once.
    User {
        #[command(flatten)]
        store: keys::StoreFlag,
        #[command(subcommand)]
        action: keys::UserAction,
    },
    /// Make, list, revoke and rotate the keys to this machine's proxy
    ///
    /// The proxy may go on serving, and takes up each change at once.
    Key {
        #[command(flatten)]
        store: keys::StoreFlag,
        #[command(subcommand)]
        action: keys::KeyAction,
    },
    /// Inspect, back up, check and copy the store of a proxy
    ///
    /// `stats`, `backup` and `verify` may run while a proxy serves the store.
    Store {
        #[command(subcommand)]
        action: StoreAction,
    },
    /// Sync once, now, and exit; through the running agent if there is one
    Sync {
        /// Only this folder
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// Print what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show whether everything is in sync; with PATH, the state of one file and why
    Status {
        /// A file or folder [default: everything]
        #[arg(value_hint = ValueHint::AnyPath)]
        path: Option<PathBuf>,
        /// Go on showing it, as it changes
        #[arg(long)]
        watch: bool,
    },
    /// Return when everything is in sync
    Wait {
        /// Give up after this time, such as 30s [default: never]
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// Stop syncing for a while; the agent keeps running
    Pause {
        /// Go on by itself after this time, such as 1h [default: until `memsync resume`]
        #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
        duration: Option<Duration>,
    },
    /// Go on syncing
    Resume,
    /// Let through what is held for you to decide, or refuse a plan
    Approve {
        /// Which plan [default: the one that is held]
        id: Option<String>,
        /// Refuse it: files that were to be deleted come back
        #[arg(long)]
        reject: bool,
        /// Show the plans that are held
        #[arg(long, conflicts_with_all = ["id", "reject"])]
        list: bool,
    },
    /// List the conflicts, or resolve one
    Conflicts {
        #[command(subcommand)]
        action: Option<ConflictsAction>,
    },
    /// List the earlier versions kept here
    History {
        /// Of this file [default: of all]
        #[arg(value_hint = ValueHint::AnyPath)]
        path: Option<PathBuf>,
    },
    /// Bring back an earlier version
    Restore {
        /// The file, with @N for the N-th version of `memsync history` (1 is the newest)
        #[arg(value_name = "PATH[@N]", required_unless_present = "deleted")]
        path: Option<String>,
        /// List what sync removed
        #[arg(long, conflicts_with = "path")]
        deleted: bool,
    },
    /// Check config, permissions, watcher limits, proxy, token, clock and state; say how to mend each
    Doctor,
    /// Show where config, state, logs, socket and history are
    Paths,
    /// Print a completion script for a shell
    Completions {
        /// The shell to print it for
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConflictsAction {
    /// Settle the conflict of one file
    Resolve {
        /// The file, or its conflict copy
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        /// Which text the file has in the end
        #[arg(long, value_name = "TEXT", value_parser = KeepParser)]
        keep: Keep,
    },
}

#[derive(Debug, Subcommand)]
pub enum StoreAction {
    /// Show what the store holds
    Stats {
        /// The store [default: see `memsync paths`]
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
    },
    /// Copy the store, as it is at one moment, to a new directory
    Backup {
        /// The directory to make
        #[arg(value_hint = ValueHint::DirPath)]
        to: PathBuf,
        /// The store [default: see `memsync paths`]
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
    },
    /// Put a backup where a store is to be, and nothing is yet
    Restore {
        /// The directory that `memsync store backup` made
        #[arg(value_hint = ValueHint::DirPath)]
        from: PathBuf,
        /// The store [default: see `memsync paths`]
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
    },
    /// Read every content and compare it with its MD5
    Verify {
        /// The store [default: see `memsync paths`]
        #[arg(long, value_name = "DIR", env = "MEMSYNC_STORE", value_hint = ValueHint::DirPath)]
        store: Option<PathBuf>,
    },
    /// Copy everything from one store to another, or go on with a copy that broke off
    ///
    /// No proxy may serve either of them.
    Copy {
        /// The store to read: a directory, or `s3:` for the bucket that the environment names
        #[arg(value_hint = ValueHint::DirPath)]
        from: PathBuf,
        /// The store to fill: a directory, or `s3:`
        #[arg(value_hint = ValueHint::DirPath)]
        to: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("origin").required(true).args(["proxy", "join"])))]
pub struct Init {
    /// The folder to sync; created where it is missing [default: ~/Memory]
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// The proxy's address
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub proxy: Option<String>,
    /// A file with the token, readable by you alone [default: the token is read from standard input]
    #[arg(long, value_name = "FILE", conflicts_with = "join", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// The namespace on the proxy [default: none]
    #[arg(long, value_name = "NS")]
    pub namespace: Option<String>,
    /// The link of another machine (`memsync link` prints it there). `-` asks for it, so that its token is in no
    /// process list
    #[arg(long, value_name = "LINK|-")]
    pub join: Option<String>,
    /// A certificate authority of your own that vouches for the proxy, PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ca_file: Option<PathBuf>,
    /// The one certificate that the proxy may show, as `memsync serve --tls-self-signed` tells it; a join link has it
    #[arg(long, value_name = "sha256:HEX")]
    pub pin: Option<Pin>,
    /// Let plain http leave this machine: the token travels in the clear
    #[arg(long)]
    pub allow_http: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound() {
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
    fn help_names_no_environment_variable_as_such() {
        for mut command in all_commands() {
            let help = command.render_long_help().to_string();
            assert!(!help.contains("[env:"), "{help}");
        }
    }

    #[test]
    fn help_puts_each_flag_below_its_own_heading() {
        for command in all_commands() {
            for arg in command.get_arguments().filter(|a| a.get_help_heading() == Some(ENCRYPTION)) {
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
    fn the_token_is_no_argument() {
        let args: Vec<_> = command()
            .get_subcommands()
            .flat_map(|c| c.get_arguments().map(|a| a.get_id().to_string()).collect::<Vec<_>>())
            .collect();
        assert!(args.contains(&"token_file".to_owned()) && !args.contains(&"token".to_owned()));
    }

    #[test]
    fn durations_have_units_here_too() {
        let parse = |time| Args::try_parse_from(["memsync", "pause", "--for", time]);
        assert!(
            matches!(parse("1h").unwrap().command, Some(Command::Pause { duration: Some(d) }) if d.as_secs() == 3600)
        );
        assert!(parse("5").unwrap_err().to_string().contains("no unit"));
    }
}
