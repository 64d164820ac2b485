//! Commands that need no agent and no proxy, with the real binary; `init` and `doctor` with a fake proxy.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use assert_cmd::cargo::CommandCargoExt;
use memsync::cli::app::App;
use memsync::cli::args::{ColorChoice, GlobalArgs, InitArgs, LogFormat};
use memsync::cli::commands::{doctor, init};
use memsync::cli::exit::Exit;
use memsync::cli::probe::{ProbeAnswer, ProxyProbe};
use memsync::config::{Config, MachineContext};
use memsync::dirs::Dirs;
use memsync::remote::RemoteError;
use memsync::remote::http::HttpOptions;
use secrecy::ExposeSecret;

/// The binary with an empty environment and a home directory.
fn memsync(home: &Path) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::cargo_bin("memsync").unwrap();
    command.env_clear().env("MEMSYNC_HOME", home).env("HOME", home);
    command
}

#[test]
fn memsync_alone_shows_first_steps() {
    let home = tempfile::tempdir().unwrap();
    let out = memsync(home.path()).assert().code(0).get_output().clone();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("memsync up") && text.contains("memsync init") && text.lines().count() < 20, "{text}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing is made by asking");
}

#[test]
fn paths_are_below_memsync_home() {
    let home = tempfile::tempdir().unwrap();
    let out = memsync(home.path()).args(["paths", "--json"]).assert().code(0).get_output().clone();
    let paths: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for (key, name) in [
        ("config", "config.toml"),
        ("state", "state"),
        ("proxy", "proxy"),
        ("logs", "logs"),
        ("socket", "memsync.sock"),
    ] {
        assert_eq!(paths[key], home.path().join(name).to_str().unwrap(), "{key}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn paths_follow_xdg_without_memsync_home() {
    let home = tempfile::tempdir().unwrap();
    let run = |set: &[(&str, &str)]| {
        let mut command = memsync(home.path());
        command.env_remove("MEMSYNC_HOME").envs(set.iter().copied());
        let out = command.args(["--json", "paths"]).assert().code(0).get_output().clone();
        let paths: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        ["config", "state", "logs", "socket"].map(|key| paths[key].as_str().unwrap().to_owned())
    };
    assert_eq!(
        run(&[("XDG_CONFIG_HOME", "/c"), ("XDG_STATE_HOME", "/s"), ("XDG_RUNTIME_DIR", "/r")]),
        ["/c/memsync/config.toml", "/s/memsync", "/s/memsync/logs", "/r/memsync.sock"]
    );
    let at = |rest: &str| format!("{}/{rest}", home.path().display());
    assert_eq!(
        run(&[]),
        [
            ".config/memsync/config.toml",
            ".local/state/memsync",
            ".local/state/memsync/logs",
            ".local/state/memsync/memsync.sock"
        ]
        .map(at)
    );
}

#[test]
fn usage_errors_exit_with_2() {
    let home = tempfile::tempdir().unwrap();
    memsync(home.path()).arg("nonsense").assert().code(2);
    memsync(home.path()).args(["pause", "--for", "5"]).assert().code(2);
    let not_utf8: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(b"/h\xff".to_vec());
    memsync(home.path()).env("OTHER", &not_utf8).arg("paths").assert().code(0);
    memsync(home.path()).env("MEMSYNC_HOME", &not_utf8).arg("paths").assert().code(2);
    memsync(home.path()).env("MEMSYNC_LOG", "a=b=c").arg("paths").assert().code(2);
}

#[test]
fn stray_variable_warns_on_stderr() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config.toml"), "proxy.url = \"https://x\"\n[[folder]]\npath = \"/m\"").unwrap();
    let out = memsync(home.path())
        .env("MEMSYNC_SYNC_INTERVALL", "1s")
        .args(["paths", "--json"])
        .assert()
        .code(0)
        .get_output()
        .clone();
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(told.contains("MEMSYNC_SYNC_INTERVALL") && told.contains("MEMSYNC_SYNC_INTERVAL`"), "{told}");
    serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap();
}

#[test]
fn completions_print_a_script_for_each_shell() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let out = memsync(home.path()).args(["completions", shell]).assert().code(0).get_output().clone();
        assert!(String::from_utf8(out.stdout).unwrap().contains("conflicts"), "{shell}");
    }
}

/// The exit code of a command whose stdout is closed, and with `all` its stderr too.
fn code_without_a_reader(home: &Path, args: &[&str], all: bool) -> Option<i32> {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::cargo_bin("memsync").unwrap();
    command.env_clear().env("MEMSYNC_HOME", home).args(args).stdin(Stdio::null());
    command.stderr(if all { Stdio::from(writer.try_clone().unwrap()) } else { Stdio::null() });
    command.stdout(writer).status().unwrap().code()
}

#[test]
fn exit_code_stays_when_the_reader_is_gone() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("notes")).unwrap();
    for name in ["plan.md", "plan.conflict-phone-0123abcd.md"] {
        std::fs::write(home.path().join("notes").join(name), name).unwrap();
    }
    let config = format!(
        "[proxy]\nurl = \"http://127.0.0.1:1\"\n[[folder]]\npath = {:?}\n",
        home.path().join("notes").to_str().unwrap()
    );
    std::fs::write(home.path().join("config.toml"), config).unwrap();
    let mut codes = BTreeSet::new();
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["status", "plan.md"],
        &["doctor"],
        &["conflicts"],
        &["history"],
        &["history", "/"],
        &["paths"],
        &["pause"],
        &["completions", "bash"],
        &["nonsense"],
        &["--help"],
        &[],
    ] {
        let whole = memsync(home.path()).args(args).output().unwrap().status.code();
        codes.insert(whole);
        for all in [false, true] {
            let ended = code_without_a_reader(home.path(), args, all);
            assert_eq!(ended, whole, "{args:?}, stderr closed: {all}");
        }
    }
    assert!([0, 2, 3, 8].iter().all(|code| codes.contains(&Some(*code))), "{codes:?}");
    assert_eq!(code_without_a_reader(home.path(), &["status", "--watch"], false), Some(3));
}

/// Accepts one token and records the URLs that it was asked for.
struct Proxy {
    token: &'static str,
    asked: RefCell<Vec<String>>,
}

impl Proxy {
    fn that_takes(token: &'static str) -> Self {
        Self { token, asked: RefCell::default() }
    }
}

impl ProxyProbe for Proxy {
    fn ask(&self, proxy: &HttpOptions) -> Result<ProbeAnswer, RemoteError> {
        self.asked.borrow_mut().push(proxy.origin.clone());
        if proxy.token.expose_secret() == self.token {
            Ok(ProbeAnswer { capabilities: vec!["events".to_owned()], ..ProbeAnswer::default() })
        } else {
            Err(RemoteError::Auth { url: proxy.origin.clone(), status: 401 })
        }
    }
}

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn app(&self) -> App {
        let dirs = Dirs::below(&self.at("home"), Path::new("/tmp"));
        let machine =
            MachineContext { host: "desk".to_owned(), home: Some(self.at("user")), ..MachineContext::default() };
        let (log_format, color) = (LogFormat::Text, ColorChoice::Never);
        App::new(GlobalArgs { config: None, json: false, verbose: 0, quiet: 0, log_format, color }, dirs, machine)
    }

    fn token_file(&self, text: &str, mode: u32) -> PathBuf {
        let path = self.at("token");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }

    fn init(&self, change: impl FnOnce(&mut InitArgs)) -> InitArgs {
        let mut init = InitArgs {
            dir: Some(self.at("notes")),
            proxy: None,
            token_file: None,
            namespace: None,
            join: None,
            allow_http: false,
            ca_file: None,
            pin: None,
        };
        change(&mut init);
        init
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_writes_a_config_that_doctor_accepts() {
    let m = Machine::new();
    let token_file = m.token_file("good\n", 0o600);
    let proxy = Proxy::that_takes("good");
    let args = m.init(|i| (i.proxy, i.token_file) = (Some("https://p.example/".to_owned()), Some(token_file.clone())));
    assert_eq!(init::run(&m.app(), &args, &proxy).unwrap(), Exit::Done);
    assert_eq!(*proxy.asked.borrow(), ["https://p.example"]);

    let app = m.app();
    let config: &Config = &app.config().unwrap().clone();
    assert_eq!((config.proxy.url.as_str(), config.device.as_str()), ("https://p.example", "desk"));
    assert_eq!(config.proxy.token_file, Some(token_file));
    assert_eq!(config.folders[0].path, m.at("notes"));
    assert_eq!((mode(&m.at("home/config.toml")), mode(&m.at("home")), mode(&m.at("notes"))), (0o600, 0o700, 0o700));
    assert_eq!(doctor::run(&app, &proxy).unwrap(), Exit::Done);
    assert_eq!(doctor::run(&app, &Proxy::that_takes("another")).unwrap(), Exit::Refused);
    assert_eq!(doctor::run(&Machine::new().app(), &proxy).unwrap(), Exit::NotConfigured);
}

#[test]
fn init_joins_with_a_link() {
    let m = Machine::new();
    let args = m.init(|i| i.join = Some("memsync+https://p.example:8484?namespace=team#good".to_owned()));
    init::run(&m.app(), &args, &Proxy::that_takes("good")).unwrap();
    let app = m.app();
    let config = app.config().unwrap();
    assert_eq!((config.proxy.url.as_str(), config.folders[0].namespace.as_str()), ("https://p.example:8484", "team"));
    assert_eq!(config.token(&Default::default()).unwrap().0.expose_secret(), "good");
    assert_eq!(mode(&m.at("home/token")), 0o600);
}

#[test]
fn init_overwrites_nothing() {
    let m = Machine::new();
    let link = |i: &mut InitArgs| i.join = Some("memsync+https://p.example#good".to_owned());
    let proxy = Proxy::that_takes("good");
    std::fs::create_dir(m.at("home")).unwrap();
    for name in ["home/config.toml", "home/token"] {
        std::fs::write(m.at(name), "mine").unwrap();
        let error = init::run(&m.app(), &m.init(link), &proxy).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Usage, "{error}");
        assert_eq!(std::fs::read_to_string(m.at(name)).unwrap(), "mine");
        std::fs::remove_file(m.at(name)).unwrap();
    }
    assert!(proxy.asked.borrow().is_empty(), "the proxy is not bothered");
}

#[test]
fn init_writes_nothing_after_a_refusal() {
    let m = Machine::new();
    let proxy = Proxy::that_takes("good");
    let exposed = m.token_file("good", 0o644);
    let url = || Some("https://p.example".to_owned());
    for (args, exit) in [
        (m.init(|i| i.join = Some("memsync+https://p.example#bad".to_owned())), Exit::Refused),
        (m.init(|i| i.join = Some("https://p.example#good".to_owned())), Exit::Usage),
        (m.init(|i| i.join = Some("memsync+http://p.example#good".to_owned())), Exit::Usage),
        (m.init(|i| (i.proxy, i.token_file) = (url(), Some(exposed.clone()))), Exit::Usage),
        (
            m.init(|i| (i.dir, i.join) = (Some("/".into()), Some("memsync+https://p.example#good".to_owned()))),
            Exit::Usage,
        ),
    ] {
        let error = init::run(&m.app(), &args, &proxy).unwrap_err();
        assert_eq!(Exit::of(&error), exit, "{error:#}");
        assert!(!m.at("home").exists() && !m.at("notes").exists(), "{error:#}");
    }
}
