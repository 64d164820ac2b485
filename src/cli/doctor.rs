//! `memsync doctor`: looks at everything that can be wrong before a sync, and says how to mend each.
//!
//! It changes nothing. Each check is a function from what it looks at to a verdict.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{Access, access, statvfs};
use serde::Serialize;

use super::app::App;
use super::exit::Exit;
use super::locate::real;
use super::probe::{Answer, ProxyProbe, Target};
use super::{own_proxy, setup, show, status, talk};
use crate::agent::root::find_root_halt;
use crate::agent::status::{FolderStatus, HaltStatus, Status, SyncState};
use crate::agent::{FolderSetup, halt_status};
use crate::config::{Config, ConfigError, Folder};
use crate::disk::real::RealDisk;
use crate::path::PRIVATE_DIR;
use crate::remote::RemoteError;
use crate::state::{self, OpenOutcome, StateView};

/// A clock further off than this is worth a word, in seconds. Nothing is decided by it.
const SKEW: i64 = 300;
/// Less room than this is a failure, bytes.
const NO_ROOM: u64 = 16 << 20;
/// Less room than this is a warning, bytes.
const LITTLE_ROOM: u64 = 512 << 20;
#[cfg(target_os = "linux")]
const MAX_WATCHES: &str = "/proc/sys/fs/inotify/max_user_watches";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
    #[serde(skip)]
    exit: Exit,
}

impl Check {
    fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, what: what.into(), fix: None, exit: Exit::Done }
    }

    fn warn(name: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, what: what.into(), fix: Some(fix.into()), exit: Exit::Done }
    }

    fn fail(name: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, what: what.into(), fix: Some(fix.into()), exit: Exit::Error }
    }

    fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

/// # Errors
/// As writing does; what is wrong is in the answer, and the highest exit code that applies is returned.
pub fn run(app: &App, probe: &dyn ProxyProbe) -> anyhow::Result<Exit> {
    let mut checks = Vec::new();
    match app.config() {
        Err(error) => checks.push(bad_config(&error)),
        Ok(config) => {
            checks.push(Check::ok("config", app.dirs.config_file.display().to_string()));
            checks.extend(config.warnings.iter().map(|w| Check::warn("config", w, "correct or unset it")));
            checks.extend(proxy(config, &app.around.env, probe, Timestamp::now()));
            let (check, status) = agent(app, config)?;
            checks.push(check);
            let setups = setup::folders_at_rest(app, config);
            for (f, setup) in config.folders.iter().zip(&setups) {
                let known = status.as_ref().and_then(|status| known_folder(status, setup, &setups));
                // An error of this look is what the two checks are about.
                let own_look = || Some(halt_status(&find_root_halt(setup).ok()??, &[]));
                let halt = known.and_then(|known| known.halt.clone()).or_else(own_look);
                checks.push(halt.map_or_else(|| folder(f), |halt| held(&halt)));
                checks.push(container(&setup.state_dir.join(&setup.container), known.map(|known| known.files)));
            }
            checks.push(watches(&config.folders));
            checks.push(room(config.folders.iter().map(|f| &f.path).chain([&app.dirs.state])));
        }
    }
    app.answer(&checks, people)?;
    Ok(checks.iter().map(|c| c.exit).max().unwrap_or(Exit::Done))
}

fn people(out: &mut dyn Write, checks: &Vec<Check>) -> io::Result<()> {
    use anstyle::{AnsiColor, Style};
    for check in checks {
        let (word, color) = match check.verdict {
            Verdict::Ok => ("ok  ", AnsiColor::Green),
            Verdict::Warn => ("warn", AnsiColor::Yellow),
            Verdict::Fail => ("FAIL", AnsiColor::Red),
        };
        let style: Style = color.on_default();
        writeln!(out, "{style}{word}{style:#} {:<10} {}", check.name, check.what)?;
        if let Some(fix) = &check.fix {
            writeln!(out, "                → {fix}")?;
        }
    }
    Ok(())
}

fn bad_config(error: &ConfigError) -> Check {
    let fail = Check::fail("config", error.to_string(), "correct it; config.example.toml shows every key");
    match error {
        // The error itself says what to do.
        ConfigError::NotFound { .. } => Check { fix: None, ..fail }.exit(Exit::NotConfigured),
        _ => fail.exit(Exit::Usage),
    }
}

/// The token, then the proxy, which is asked only with a token.
fn proxy(config: &Config, env: &BTreeMap<String, String>, probe: &dyn ProxyProbe, now: Timestamp) -> Vec<Check> {
    // These errors say themselves what to do.
    let bad =
        |name, error: ConfigError| Check { fix: None, ..Check::fail(name, error.to_string(), "").exit(Exit::Usage) };
    let (token, from) = match config.token(env) {
        Ok(found) => found,
        Err(error) => return vec![bad("token", error)],
    };
    let ca_pem = match config.ca_pem() {
        Ok(ca_pem) => ca_pem,
        Err(error) => return vec![bad("proxy", error)],
    };
    let answer = probe.ask(&Target {
        url: config.proxy.url.clone(),
        // The first folder's stands for all: it is the address and the token that are tried.
        namespace: config.folders.first().map(|f| f.namespace.clone()).unwrap_or_default(),
        token,
        ca_pem,
        pin: config.proxy.pin,
        allow_http: config.proxy.allow_http,
        timeout: config.proxy.timeout,
    });
    let mut checks = vec![Check::ok("token", format!("from {from}")), reached(&config.proxy.url, &answer)];
    if let Ok(answer) = answer {
        let fix = "tell whoever runs the proxy";
        checks.extend(answer.warnings.into_iter().map(|warning| Check::warn("proxy", warning, fix)));
        checks.extend(answer.events.map(push));
        checks.extend(answer.time.map(|time| clock(now, time)));
    }
    checks
}

fn reached(url: &str, answer: &Result<Answer, RemoteError>) -> Check {
    match answer {
        Ok(answer) if answer.capabilities.is_empty() => {
            Check::ok("proxy", format!("{url} takes the token; it offers the plain protocol"))
        }
        Ok(answer) => {
            Check::ok("proxy", format!("{url} takes the token; it offers {}", answer.capabilities.join(", ")))
        }
        Err(error @ RemoteError::Auth { .. }) => {
            Check::fail("proxy", error.to_string(), "ask the proxy's owner for a token that is valid")
                .exit(Exit::Refused)
        }
        // It says what to do.
        Err(error @ RemoteError::NotAProxy { .. }) => {
            Check { fix: None, ..Check::fail("proxy", error.to_string(), "") }
        }
        Err(error @ RemoteError::Protocol { .. }) => {
            Check::fail("proxy", error.to_string(), "check proxy.url: something else answers there")
        }
        Err(error) => Check::fail("proxy", error.to_string(), "check proxy.url, the network and that the proxy runs")
            .exit(Exit::Temporary),
    }
}

/// Tells if the proxy's events come through.
fn push(events: Result<(), String>) -> Check {
    match events {
        Ok(()) => Check::ok("push", "the proxy tells of changes at once"),
        Err(why) => {
            let what = format!("the proxy offers events, and none comes through, so changes are found late: {why}");
            let fix = "let /events through whatever stands in front of the proxy (nginx: `proxy_buffering off`)";
            Check::warn("push", what, fix)
        }
    }
}

fn clock(now: Timestamp, theirs: Timestamp) -> Check {
    let off = now.as_second() - theirs.as_second();
    match off.abs() {
        ..=SKEW => Check::ok("clock", "agrees with the proxy's"),
        seconds => {
            let way = if off > 0 { "ahead of" } else { "behind" };
            let what = format!("{seconds} s {way} the proxy's; no change is decided by it, but times shown are wrong");
            Check::warn("clock", what, "turn on time synchronisation (NTP) on both machines")
        }
    }
}

/// The agent, and the status of all folders: as it answers, or as the last one left it.
fn agent(app: &App, config: &Config) -> anyhow::Result<(Check, Option<Status>)> {
    Ok(match talk::runtime()?.block_on(status::current(app)) {
        Ok(status) if status.agent.running => (running_agent(&status), Some(status)),
        Ok(status) => {
            let start = own_proxy::start_command(app, config);
            (Check::ok("agent", format!("none runs; `{start}` starts it")), Some(status))
        }
        // The error says what to do.
        Err(e) => (Check { fix: None, ..Check::fail("agent", format!("{e:#}"), "") }, None),
    })
}

/// The agent that answers. The proxy may refuse its token and take the one that this command reads.
fn running_agent(status: &Status) -> Check {
    if let Some(folder) = status.folders.iter().find(|f| f.state == SyncState::AuthRequired) {
        let what = format!("{}: {}", folder.path, folder.reason.as_deref().unwrap_or("the proxy refused the token"));
        let fix = "it reads a corrected token file by itself; if its token comes from its environment, start it again";
        return Check::fail("agent", what, fix).exit(Exit::Refused);
    }
    let process = status.agent.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    Check::ok("agent", format!("it runs and answers{process}"))
}

/// The folder as the agent knows it. Behind a link that was pointed elsewhere it has another path there.
fn known_folder<'a>(status: &'a Status, setup: &FolderSetup, all: &[FolderSetup]) -> Option<&'a FolderStatus> {
    let is_at = |f: &FolderStatus, setup: &FolderSetup| Path::new(&f.path) == setup.root;
    let here = status.folders.iter().find(|f| is_at(f, setup));
    here.or_else(|| status.folders.iter().find(|f| !all.iter().any(|setup| is_at(f, setup))))
}

/// A folder that waits for a person.
fn held(halt: &HaltStatus) -> Check {
    let fix = halt.id.as_ref().map(|id| format!("memsync approve {id}"));
    Check { fix, ..Check::fail("folder", &halt.reason, "") }.exit(Exit::Halted)
}

fn folder(folder: &Folder) -> Check {
    let path = &folder.path;
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Check::fail("folder", format!("{shown} is missing"), "bring it back (mount its disk?), or make it")
        }
        Err(e) => Check::fail("folder", format!("{shown}: {e}"), "give memsync's user the right to read it"),
        Ok(m) if !m.is_dir() => {
            Check::fail("folder", format!("{shown} is no folder"), "set folder.path to the folder itself")
        }
        Ok(_) => {
            if let Err(e) = access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
                return Check::fail(
                    "folder",
                    format!("{shown}: {e}"),
                    format!("chmod u+rwx '{shown}', or change its owner"),
                );
            }
            match std::fs::read_to_string(path.join(PRIVATE_DIR).join("id")) {
                Ok(_) => Check::ok("folder", format!("{shown}")),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    Check::ok("folder", format!("{shown} (not synced yet: it gets its identity in the first sync)"))
                }
                Err(e) => Check::fail(
                    "folder",
                    format!("{shown}: its identity cannot be read: {e}"),
                    format!("give memsync's user the right to read {shown}/{PRIVATE_DIR}/id"),
                ),
            }
        }
    }
}

/// What an agent would find: read as it reads it, and left as it is.
/// `files`: as `memsync status` counts them.
fn container(path: &Path, files: Option<usize>) -> Check {
    let shown = path.display();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let found = match RealDisk::open(&real(path.parent().unwrap_or(path))) {
        Ok(disk) => state::peek(&Arc::new(disk), &name).map_err(|e| e.to_string()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    };
    let damaged = |left: &str| {
        let fix = "start the agent: it recovers what it can, keeps the damaged files and deletes nothing for it";
        Check::warn("state", format!("{shown} is damaged; {left}"), fix)
    };
    match found {
        Ok(None) if path.exists() => damaged("nothing of it can be read"),
        Ok(None) => Check::ok("state", format!("{shown} is not there yet")),
        Ok(Some(StateView { opened: OpenOutcome::Recovered { from_backup: true, .. }, .. })) => {
            damaged("its backup is good")
        }
        Ok(Some(StateView { opened: OpenOutcome::Recovered { .. }, .. })) => damaged("not all of it can be read"),
        Ok(Some(view)) => {
            let tracked = || view.entries.values().filter(|e| e.base.content().is_some()).count();
            let files = files.unwrap_or_else(tracked);
            Check::ok("state", format!("{shown} ({})", show::count(files, "file")))
        }
        Err(why) => Check::fail(
            "state",
            format!("{shown}: {why}"),
            format!("`memsync --version` must be the newest used here, and its user have the right to '{shown}'"),
        ),
    }
}

/// Whether the system lets one user watch as many folders as there are.
#[cfg(target_os = "linux")]
fn watches(folders: &[Folder]) -> Check {
    let limit = match std::fs::read_to_string(MAX_WATCHES).map(|text| text.trim().parse::<u64>()) {
        Ok(Ok(limit)) => limit,
        _ => return Check::warn("watcher", format!("{MAX_WATCHES} cannot be read"), "mount /proc"),
    };
    within(folders.iter().map(|f| directories(&f.path)).sum(), limit)
}

/// FSEvents watches a tree whole and has no such limit.
#[cfg(not(target_os = "linux"))]
fn watches(_folders: &[Folder]) -> Check {
    Check::ok("watcher", "no limit on this system")
}

#[cfg(target_os = "linux")]
fn within(directories: u64, limit: u64) -> Check {
    let what = format!("folders to watch: {directories}; allowed to all programs of this user together: {limit}");
    // Editors and desktops watch as well.
    if directories < limit / 2 {
        return Check::ok("watcher", what);
    }
    let more = (directories * 4).max(524_288);
    let fix = format!(
        "sudo sysctl fs.inotify.max_user_watches={more} (and in /etc/sysctl.d/ to keep it); until then memsync polls"
    );
    Check::warn("watcher", what, fix)
}

/// How many directories there are at and below `root`; those that cannot be listed count once.
#[cfg(target_os = "linux")]
fn directories(root: &Path) -> u64 {
    let mut open = vec![root.to_owned()];
    let mut count = 0;
    while let Some(dir) = open.pop() {
        count += 1;
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        open.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    count
}

/// The tightest of the filesystems that memsync writes to.
fn room<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Check {
    let free = |path: &PathBuf| {
        let there = path.ancestors().find(|p| p.exists())?;
        let fs = statvfs(there).ok()?;
        Some((fs.f_bavail.saturating_mul(fs.f_frsize), path.clone()))
    };
    match paths.filter_map(free).min() {
        None => Check::warn("disk", "the free space is not known", "df tells it"),
        Some((bytes, path)) => {
            let what = format!("{} MiB free at {}", bytes >> 20, path.display());
            match bytes {
                ..NO_ROOM => Check::fail("disk", what, "free some space: nothing can be written safely"),
                NO_ROOM..LITTLE_ROOM => {
                    Check::warn("disk", what, "free some space; history.max_size bounds what memsync keeps")
                }
                _ => Check::ok("disk", what),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Result<Answer, RemoteError>);
    impl ProxyProbe for Fixed {
        fn ask(&self, _target: &Target) -> Result<Answer, RemoteError> {
            self.0.clone()
        }
    }

    fn configured() -> Config {
        let mut config = Config::defaults("h");
        config.proxy.url = "https://p".to_owned();
        config.proxy.token = Some("t".to_owned().into());
        config
    }

    fn verdicts(checks: &[Check]) -> Vec<(&'static str, Verdict, Exit)> {
        checks.iter().map(|c| (c.name, c.verdict, c.exit)).collect()
    }

    #[test]
    fn the_proxy_as_it_may_be() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let ask = |answer| verdicts(&proxy(&configured(), &BTreeMap::new(), &Fixed(answer), now));
        let token = ("token", Verdict::Ok, Exit::Done);
        let well = Answer { capabilities: vec!["events".to_owned()], time: Some(now), ..Answer::default() };
        let ok = |name| (name, Verdict::Ok, Exit::Done);
        assert_eq!(ask(Ok(well)), [token, ok("proxy"), ok("clock")]);
        let late = Answer { time: Some(Timestamp::from_second(1_800_000_400).unwrap()), ..Answer::default() };
        assert_eq!(ask(Ok(late)), [token, ok("proxy"), ("clock", Verdict::Warn, Exit::Done)]);
        let full = Answer { warnings: vec!["the disk is nearly full".to_owned()], ..Answer::default() };
        assert_eq!(ask(Ok(full)), [token, ok("proxy"), ("proxy", Verdict::Warn, Exit::Done)]);
        let url = || "https://p".to_owned();
        assert_eq!(
            ask(Err(RemoteError::Auth { url: url(), status: 401 })),
            [token, ("proxy", Verdict::Fail, Exit::Refused)]
        );
        assert_eq!(
            ask(Err(RemoteError::Unreachable { url: url(), why: "refused".to_owned() })),
            [token, ("proxy", Verdict::Fail, Exit::Temporary)]
        );
    }

    #[test]
    fn without_a_token_the_proxy_is_not_asked() {
        struct Never;
        impl ProxyProbe for Never {
            fn ask(&self, _target: &Target) -> Result<Answer, RemoteError> {
                panic!("asked")
            }
        }
        let mut config = configured();
        config.proxy.token = None;
        let checks = proxy(&config, &BTreeMap::new(), &Never, Timestamp::UNIX_EPOCH);
        assert_eq!(verdicts(&checks), [("token", Verdict::Fail, Exit::Usage)]);
        config = configured();
        config.proxy.ca_file = Some("/nonexistent/ca.pem".into());
        let checks = proxy(&config, &BTreeMap::new(), &Never, Timestamp::UNIX_EPOCH);
        assert_eq!(verdicts(&checks), [("proxy", Verdict::Fail, Exit::Usage)]);
    }

    #[test]
    fn the_folder_as_it_may_be() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| folder(&Folder { path: tmp.path().join(name), ..Folder::default() });
        assert_eq!(at("missing").verdict, Verdict::Fail);
        std::fs::write(tmp.path().join("file"), "").unwrap();
        assert_eq!(at("file").verdict, Verdict::Fail);
        std::fs::create_dir_all(tmp.path().join("dir/.memsync")).unwrap();
        assert!(at("dir").what.contains("not synced yet"));
        std::fs::write(tmp.path().join("dir/.memsync/id"), "x").unwrap();
        assert_eq!((at("dir").verdict, at("dir").what.contains("yet")), (Verdict::Ok, false));
        std::os::unix::fs::symlink(tmp.path().join("dir"), tmp.path().join("link")).unwrap();
        assert_eq!(at("link").verdict, Verdict::Ok);
        std::os::unix::fs::symlink(tmp.path().join("nowhere"), tmp.path().join("dangling")).unwrap();
        assert_eq!(at("dangling").verdict, Verdict::Fail);
    }

    #[test]
    fn the_container_as_it_may_be() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("c.json");
        assert_eq!(container(&path, None).verdict, Verdict::Ok);
        assert_eq!(container(&tmp.path().join("none/c.json"), None).verdict, Verdict::Ok);
        for damage in ["", "nonsense"] {
            std::fs::write(&path, damage).unwrap();
            let check = container(&path, None);
            assert_eq!(check.verdict, Verdict::Warn, "{damage:?}: {}", check.what);
        }
        std::fs::write(&path, r#"{"version":99}"#).unwrap();
        let newer = container(&path, None);
        assert!(newer.verdict == Verdict::Fail && newer.what.contains("version 99"), "{}", newer.what);
        assert_eq!(container(tmp.path(), None).verdict, Verdict::Fail);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn watches_leave_room_for_other_programs() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("a/b/c")).unwrap();
        std::os::unix::fs::symlink(tmp.path(), tmp.path().join("a/loop")).unwrap();
        assert_eq!(directories(tmp.path()), 4);
        assert_eq!(within(10, 100).verdict, Verdict::Ok);
        let tight = within(90, 100);
        assert_eq!(tight.verdict, Verdict::Warn);
        assert!(tight.fix.unwrap().contains("max_user_watches=524288"));
    }
}
