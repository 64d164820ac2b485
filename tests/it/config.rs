//! The config as users see it: accepted values, their meaning, and the errors.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memsync::config::{
    Config, ConfigDraft, ConfigError, ConflictPolicy, KEYS, MachineContext, StateFormat, create_private, env_name,
    parse_duration, parse_size, sanitise_device,
};
use memsync::merge::MergeDriver;
use memsync::path::RelPath;
use memsync::protocol::Pin;
use tracing::level_filters::LevelFilter;

mod token;

const MINIMAL: &str = "[proxy]\nurl = \"https://p.example\"\n[[folder]]\npath = \"/m\"\n";

struct Bench {
    dir: tempfile::TempDir,
    machine: MachineContext,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = MachineContext {
            env: BTreeMap::new(),
            home: Some(PathBuf::from("/home/ana")),
            host: "Ana's laptop.local".to_owned(),
            private: vec![PathBuf::from("/home/ana/.local/state/memsync")],
        };
        Self { dir, machine }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.machine.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn load(&self, text: &str) -> Result<Config, ConfigError> {
        std::fs::write(self.path(), text).unwrap();
        Config::load(&self.path(), &self.machine)
    }

    /// The error for `text`, without the directory of the file.
    fn refusal(&self, text: &str) -> String {
        let error = self.load(text).expect_err(text);
        error.to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    }
}

fn refusal(text: &str) -> String {
    Bench::new().refusal(text)
}

/// Everything but the folders, for comparison.
fn shown(config: &Config) -> String {
    let mut config = config.clone();
    config.folders.clear();
    format!("{config:?}")
}

#[test]
fn missing_key_has_its_default() {
    let config = Bench::new().load(MINIMAL).unwrap();
    let mut defaults = Config::defaults("Ana's laptop.local");
    defaults.proxy.url = "https://p.example".to_owned();
    assert_eq!(shown(&config), shown(&defaults));
    assert_eq!(config.device, "Ana-s-laptop");
    assert_eq!(config.folders[0].path, Path::new("/m"));
    assert_eq!(config.sync.interval, Duration::from_secs(30));
    assert_eq!(config.sync.max_file_size, 64 * 1024 * 1024);
    assert_eq!(config.history.keep, Duration::from_secs(30 * 24 * 3600));
}

#[test]
fn config_accepts_every_key() {
    let text = r#"
        device = "desk-1"
        log_level = "debug"
        log_file = true
        proxy.url = "http://10.0.0.1:8080/base/"
        proxy.token_file = "~/t"
        proxy.ca_file = "/ca.pem"
        proxy.allow_http = true
        proxy.timeout = "5s"
        [sync]
        interval = "1m"
        debounce = "0s"
        rescan = "1h"
        concurrency = 3
        max_file_size = 500
        max_delete = 1
        conflict = "copy"
        [history]
        keep = "7d"
        max_size = "500kB"
        [state]
        format = "msgpack"
        pretty = false
        [[folder]]
        path = "~/Memory/../Notes/"
        namespace = "team/notes"
        ignore = ["*.tmp", "cache/"]
        [[folder]]
        path = "/other"
    "#;
    let c = Bench::new().load(text).unwrap();
    assert_eq!((c.device.as_str(), c.log_level, c.log_file), ("desk-1", LevelFilter::DEBUG, true));
    assert_eq!((c.proxy.url.as_str(), c.proxy.allow_http), ("http://10.0.0.1:8080/base", true));
    assert_eq!(c.proxy.token_file.as_deref(), Some(Path::new("/home/ana/t")));
    assert_eq!(c.proxy.timeout, Duration::from_secs(5));
    assert_eq!(
        (c.sync.interval, c.sync.debounce, c.sync.rescan),
        (Duration::from_secs(60), Duration::ZERO, Duration::from_secs(3600))
    );
    assert_eq!(
        (c.sync.concurrency, c.sync.max_file_size, c.sync.max_delete, c.sync.conflict),
        (3, 500, 1.0, ConflictPolicy::Copy)
    );
    assert_eq!((c.history.keep, c.history.max_size), (Duration::from_secs(7 * 86_400), 500_000));
    assert_eq!((c.state.format, c.state.pretty), (StateFormat::MsgPack, false));
    assert_eq!(c.folders.len(), 2);
    assert_eq!(
        (c.folders[0].path.as_path(), c.folders[0].namespace.as_str()),
        (Path::new("/home/ana/Notes"), "team/notes")
    );
    assert_eq!(c.folders[0].ignore, ["*.tmp", "cache/"]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of faults")]
fn fault_is_shown_with_line_and_nearest_key() {
    for (text, want) in [
        ("[sync]\nintervall = \"30s\"", "config.toml:2: unknown key `sync.intervall`; did you mean `sync.interval`?"),
        ("interval = \"30s\"", "config.toml:1: unknown key `interval`; did you mean `sync.interval`?"),
        ("\n[prxy]\nurl = \"x\"", "config.toml:3: unknown key `prxy.url`; did you mean `proxy.url`?"),
        ("[zzz]\nqqqqqqqq = 1", "config.toml:2: unknown key `zzz.qqqqqqqq`"),
        (
            "[[folder]]\npath = \"/a\"\n[[folder]]\npth = \"/b\"",
            "config.toml:4: unknown key `folder.pth`; did you mean `folder.path`?",
        ),
        ("[folder]\npath = \"/a\"", "config.toml:1: folder: must be a list of tables: write [[folder]]"),
        ("proxy = \"https://x\"", "config.toml:1: proxy: must be a table: write [proxy]"),
        ("[sync]\ninterval = \"30\"", "config.toml:2: sync.interval: \"30\" has no unit; the units are ms, s, m, h, d"),
        ("[sync]\ninterval = 30", "config.toml:2: sync.interval: 30 has no unit; write \"30s\" for seconds"),
        ("[sync]\ninterval = \"0s\"", "config.toml:2: sync.interval: \"0s\" is too short; the minimum is 100ms"),
        (
            "[sync]\ninterval = \"-3s\"",
            "config.toml:2: sync.interval: \"-3s\" is not a duration: write a whole number and one of ms, s, m, h, d",
        ),
        (
            "[sync]\nmax_file_size = \"64Mib\"",
            "config.toml:2: sync.max_file_size: \"64Mib\" has an unknown unit \"Mib\"; did you mean \"64MiB\"?",
        ),
        ("[sync]\nmax_file_size = -1", "config.toml:2: sync.max_file_size: \"-1\" is not a size"),
        ("[sync]\nconcurrency = 0", "config.toml:2: sync.concurrency: 0 is not from 1 to 64"),
        (
            "[sync]\nconcurrency = \"8\"",
            "config.toml:2: sync.concurrency: must be a whole number from 1 to 64, not string",
        ),
        ("[sync]\nmax_delete = nan", "config.toml:2: sync.max_delete: NaN is not a share above 0 and up to 1"),
        ("[sync]\nconflict = \"cpy\"", "config.toml:2: sync.conflict: unknown value \"cpy\"; did you mean \"copy\"?"),
        (
            "log_level = \"loud\"",
            "config.toml:1: log_level: unknown value \"loud\"; it is one of off, error, warn, info, debug, trace",
        ),
        ("[state]\npretty = \"yes\"", "config.toml:2: state.pretty: must be true or false, not string"),
        (
            "[proxy]\nurl = \"memory.example\"",
            "config.toml:2: proxy.url: \"memory.example\" has no scheme; write https://memory.example,",
        ),
        ("[proxy]\nurl = \"ftp://x\"", "config.toml:2: proxy.url: \"ftp://x\" is not an http or https URL"),
        ("[proxy]\nurl = \"https://a:b@x\"", "config.toml:2: proxy.url: a URL may not contain a name or a password"),
        ("[proxy]\ntoken = 5", "config.toml:2: proxy.token: must be a string in quotes"),
        (
            "[[folder]]\npath = \"Memory\"",
            "config.toml:2: folder.path: \"Memory\" is not an absolute path; begin it with / or ~/",
        ),
        (
            "[[folder]]\nnamespace = \"sync/b\"",
            "config.toml:2: folder.namespace: \"sync/b\" is no namespace: it begins",
        ),
        ("[[folder]]\nnamespace = \"a/../b\"", "config.toml:2: folder.namespace: \"a/../b\" is no namespace"),
        ("[[folder]]\nignore = [\"a\", 1]", "config.toml:2: folder.ignore: must be a string in quotes, not integer"),
        ("[[folder]]\nignore = [\"a[b\"]", "config.toml:2: folder.ignore: the pattern \"a[b\" is not right"),
        ("[[folder]]\nignore = [\"[z-a]\"]", "config.toml:2: folder.ignore: the pattern \"[z-a]\" is not right"),
        (
            "device = \"my laptop\"",
            "config.toml:1: device: \"my laptop\" is not 1 to 32 of the letters A-Z a-z 0-9 -; write \"my-laptop\"",
        ),
        ("a = 1\n\n= 2", "config.toml:3: not TOML:"),
        ("[sync]\ndebounce = \"1s\"\ndebounce = \"2s\"", "config.toml:3: not TOML:"),
    ] {
        let got = refusal(text);
        assert!(got.starts_with(want), "{text}\n  got:  {got}\n  want: {want}");
    }
}

#[test]
fn merge_section_maps_patterns_to_kinds() {
    let driver =
        |config: &Config, path: &str| config.sync.merge.rules(&RelPath::parse(path).unwrap()).map(|rules| rules.driver);
    let section = "[merge]\n\"*.canvas\" = \"copy\"\n\"*.conf\" = \"toml\"\n\"shared.canvas\" = \"json\"\n";
    let config = Bench::new().load(&format!("{MINIMAL}{section}")).unwrap();
    assert_eq!(driver(&config, "n/a.canvas"), None);
    assert_eq!(driver(&config, "a.conf"), Some(MergeDriver::Toml));
    assert_eq!(driver(&config, "shared.canvas"), Some(MergeDriver::Json), "the last pattern decides");
    assert_eq!(driver(&config, "a.md"), Some(MergeDriver::Markdown));
    let bench = Bench::new().env("MEMSYNC_MERGE", "*.md = text\n\n/a=b.md = copy\n");
    let config = bench.load(&format!("{MINIMAL}{section}")).unwrap();
    assert_eq!(driver(&config, "a.md"), Some(MergeDriver::Text));
    assert_eq!(driver(&config, "a=b.md"), None);
    assert_eq!(driver(&config, "a.canvas"), Some(MergeDriver::Json), "the environment replaces the section");
    for (text, want) in [
        (
            "[merge]\n\"*.a\" = \"text\"\n\"*.b\" = \"jsn\"",
            "config.toml:3: merge.*.b: unknown value \"jsn\"; did you mean \"json\"?",
        ),
        ("[merge]\n\"a[b\" = \"text\"", "config.toml:2: merge.a[b: the pattern \"a[b\" is not right: "),
        ("[merge]\n\"!a\" = \"text\"", "config.toml:2: merge.!a: the pattern \"!a\" is not right: it names no file"),
        ("[merge]\nnote.md = \"text\"", "config.toml:2: merge.note: must be a string in quotes, not table"),
        ("[merge]\n\"a.md\" = true", "config.toml:2: merge.a.md: must be a string in quotes, not boolean"),
        ("merge = \"text\"", "config.toml:1: merge: must be a table: write [merge]"),
    ] {
        let got = refusal(text);
        assert!(got.starts_with(want), "{text}\n  got:  {got}\n  want: {want}");
    }
    let got = Bench::new().env("MEMSYNC_MERGE", "*.md").refusal(MINIMAL);
    assert_eq!(got, "environment variable MEMSYNC_MERGE: merge: \"*.md\" is not of the form PATTERN = KIND");
}

#[test]
fn first_fault_in_the_file_is_shown() {
    assert!(refusal("log_level = \"x\"\ndevice = \"a b\"").starts_with("config.toml:1: log_level"));
}

#[test]
fn config_needs_a_proxy_and_a_folder() {
    assert!(refusal("").contains("`proxy.url` is not set"));
    assert!(refusal("proxy.url = \"https://x\"").contains("`folder.path` is not set; add a [[folder]]"));
    assert!(refusal("proxy.url = \"https://x\"\n[[folder]]").contains("every [[folder]] needs a path"));
    let unnamed = "proxy.url = \"https://x\"\nproxy.token_file = \"/t\"\n[[folder]]";
    assert!(refusal(unnamed).contains("every [[folder]] needs a path"));
    let bench = Bench::new();
    let error = Config::load(&bench.path(), &bench.machine).unwrap_err();
    assert!(matches!(error, ConfigError::NotFound { .. }) && error.to_string().contains("memsync init"), "{error}");
}

#[test]
fn unreadable_config_is_not_a_missing_config() {
    let bench = Bench::new().env("MEMSYNC_PROXY_URL", "https://x").env("MEMSYNC_FOLDER_PATH", "/m");
    std::fs::create_dir(bench.path()).unwrap();
    assert!(matches!(Config::load(&bench.path(), &bench.machine), Err(ConfigError::Unreadable { .. })));
    std::fs::remove_dir(bench.path()).unwrap();
    std::fs::write(bench.path(), b"device = \"\xff\"").unwrap();
    assert!(matches!(Config::load(&bench.path(), &bench.machine), Err(ConfigError::Unreadable { .. })));
}

#[test]
fn plain_http_stays_on_this_machine() {
    let with = |url: &str| format!("proxy.url = \"{url}\"\n[[folder]]\npath = \"/m\"");
    for good in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost", "https://far.example"] {
        Bench::new().load(&with(good)).unwrap();
    }
    for bad in
        ["http://10.0.0.1", "http://localhost.example.org", "http://127.0.0.1.example.org", "http://[2001:db8::1]"]
    {
        assert!(refusal(&with(bad)).contains("plain http would show the token to the network"), "{bad}");
    }
}

#[test]
fn folders_sharing_a_namespace_are_refused_with_a_free_one() {
    let head = "proxy.url = \"https://x\"\n[[folder]]\npath = \"/a\"\n";
    let named = "[[folder]]\npath = \"/n/b\"\nnamespace = \"notes\"\n";
    for (first, path, more, line, free) in [
        (head.to_owned(), "/c/notes", "", 5, "notes"),
        (head.to_owned(), "/c/My Notes", "namespace = \"\"\n", 6, "My-Notes"),
        (format!("{head}{named}"), "/c/notes", "", 8, "notes-2"),
        (format!("{head}{named}"), "/c/other", "namespace = \"notes\"\n", 9, "other"),
        (head.to_owned(), "/c/blob", "", 5, "blob-2"),
        (head.to_owned(), "/c/ü", "", 5, "ü"),
    ] {
        let second = format!("[[folder]]\npath = \"{path}\"\n");
        let told = refusal(&format!("{first}{second}{more}"));
        assert!(told.starts_with(&format!("config.toml:{line}: folder.")) && told.contains(path), "{told}");
        // The advice, followed word for word.
        let (_, advised) = told.split_once("below its path: ").unwrap();
        assert_eq!(advised, format!("namespace = \"{free}\""));
        let config = Bench::new().load(&format!("{first}{second}{advised}\n")).unwrap();
        assert_eq!(config.folders.last().unwrap().namespace, free);
    }
}

#[test]
fn folders_do_not_overlap() {
    let two = |a: &str, b: &str, ns: &str| {
        format!(
            "proxy.url = \"https://x\"\n[[folder]]\npath = \"{a}\"\n[[folder]]\npath = \"{b}\"\nnamespace = \"{ns}\""
        )
    };
    assert!(refusal(&two("/a", "/a/", "n")).starts_with("config.toml:5: folder.path: /a is already configured"));
    assert!(refusal(&two("/a", "/a/b", "n")).contains("/a/b and /a are one inside the other"));
    assert!(refusal(&two("/a/b", "/a", "n")).contains("one inside the other"));
    Bench::new().load(&two("/a", "/ab", "n")).unwrap();

    // A symlink does not help.
    let bench = Bench::new();
    let (real, link) = (bench.dir.path().join("real"), bench.dir.path().join("link"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let got = bench.refusal(&two(real.to_str().unwrap(), link.join("sub").to_str().unwrap(), "n"));
    assert!(got.contains("one inside the other"), "{got}");
}

#[test]
fn folder_around_memsync_itself_is_refused() {
    let one = |path: &str| format!("proxy.url = \"https://x\"\n[[folder]]\npath = \"{path}\"");
    assert!(refusal(&one("~")).contains("memsync's own /home/ana/.local/state/memsync"));
    assert!(refusal(&one("~/.local/state/memsync/x")).contains("memsync's own"));
    let token = "proxy.token_file = \"/m/.token\"\nproxy.url = \"https://x\"\n[[folder]]\npath = \"/m\"";
    assert!(refusal(token).starts_with("config.toml:1: proxy.token_file: /m/.token is inside /m, which is synced"));
    let ca = "proxy.ca_file = \"/m/ca.pem\"\nproxy.url = \"https://x\"\n[[folder]]\npath = \"/m\"";
    assert!(refusal(ca).starts_with("config.toml:1: proxy.ca_file: /m/ca.pem is inside /m, which is synced"));
    assert!(refusal(&one("/")).contains("/ is the whole machine"));
    Bench::new().load(&one("~/Memory")).unwrap();
}

#[test]
fn config_with_a_token_is_refused_in_a_synced_folder() {
    let bench = Bench::new();
    bench.file("config.toml", "", 0o600);
    let folder = bench.dir.path().to_str().unwrap();
    let text = |token: &str| format!("{token}\nproxy.url = \"https://x\"\n[[folder]]\npath = \"{folder}\"");
    let got = bench.refusal(&text("proxy.token = \"secret\""));
    assert!(got.starts_with("config.toml:1: proxy.token: config.toml is inside "), "{got}");
    assert!(got.ends_with("which is synced; keep it elsewhere") && !got.contains("secret"), "{got}");
    // Without a token the config may be synced.
    bench.load(&text("")).unwrap();
    // A link to the folder does not help.
    let link = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(folder, link.path().join("link")).unwrap();
    let text = text("proxy.token = \"secret\"").replace(folder, link.path().join("link").to_str().unwrap());
    assert!(bench.refusal(&text).contains("which is synced"));
}

#[test]
fn token_of_the_environment_is_refused_in_a_synced_folder() {
    let bench = Bench::new();
    let file = bench.file("token", "secret\n", 0o600);
    let folder = bench.dir.path().to_str().unwrap().to_owned();
    let config = bench.load(&format!("proxy.url = \"https://x\"\n[[folder]]\npath = \"{folder}\"")).unwrap();
    for (name, value) in [("MEMSYNC_TOKEN_FILE", file.to_str().unwrap()), ("CREDENTIALS_DIRECTORY", &folder)] {
        let got = config.token(&[(name.to_owned(), value.to_owned())].into()).unwrap_err().to_string();
        assert!(got.contains("which is synced; keep it elsewhere") && !got.contains("secret"), "{name}: {got}");
    }
}

#[test]
fn environment_overrides_the_file() {
    let bench = Bench::new()
        .env("MEMSYNC_PROXY_URL", "https://other.example")
        .env("MEMSYNC_SYNC_INTERVAL", "5s")
        .env("MEMSYNC_SYNC_MAX_FILE_SIZE", "1000")
        .env("MEMSYNC_SYNC_CONCURRENCY", "2")
        .env("MEMSYNC_STATE_PRETTY", "false")
        .env("MEMSYNC_FOLDER_PATH", "~/Elsewhere")
        .env("MEMSYNC_FOLDER_NAMESPACE", "")
        .env("MEMSYNC_FOLDER_IGNORE", "*.a\n*.b");
    let c = bench.load(&format!("{MINIMAL}namespace = \"n\"\n[sync]\ninterval = \"9s\"")).unwrap();
    assert_eq!(c.proxy.url, "https://other.example");
    assert_eq!((c.sync.interval, c.sync.max_file_size, c.sync.concurrency), (Duration::from_secs(5), 1000, 2));
    assert!(!c.state.pretty);
    assert_eq!(c.folders[0].path, Path::new("/home/ana/Elsewhere"));
    assert_eq!(c.folders[0].namespace, "n", "an empty variable counts as none");
    assert_eq!(c.folders[0].ignore, ["*.a", "*.b"]);
    assert_eq!(c.warnings, [""; 0]);
}

#[test]
fn environment_is_enough_without_a_file() {
    let bench = Bench::new().env("MEMSYNC_PROXY_URL", "https://x").env("MEMSYNC_FOLDER_PATH", "/m");
    assert_eq!(Config::load(&bench.path(), &bench.machine).unwrap().folders[0].path, Path::new("/m"));
}

#[test]
fn fault_in_the_environment_names_the_variable() {
    let bench = Bench::new().env("MEMSYNC_SYNC_INTERVAL", "5 sec");
    assert_eq!(
        bench.refusal(MINIMAL),
        "environment variable MEMSYNC_SYNC_INTERVAL: sync.interval: \"5 sec\" has an unknown unit \"sec\"; the units are ms, s, m, h, d"
    );
    let bench = Bench::new().env("MEMSYNC_FOLDER_PATH", "/x");
    let two = format!("{MINIMAL}[[folder]]\npath = \"/n\"\nnamespace = \"n\"");
    assert!(bench.refusal(&two).contains("MEMSYNC_FOLDER_PATH: folder.path: the config has 2 folders"));
}

#[test]
fn unknown_variable_gets_a_warning() {
    let bench = Bench::new()
        .env("MEMSYNC_PROXY_ULR", "x")
        .env("MEMSYNC_HOME", "/h")
        .env("MEMSYNC_TOKEN", "t")
        .env("MEMSYNC_KILL_AT", "k")
        .env("OTHER", "x");
    let warnings = bench.load(MINIMAL).unwrap().warnings;
    assert_eq!(
        warnings,
        ["memsync does not know the environment variable MEMSYNC_PROXY_ULR; did you mean `MEMSYNC_PROXY_URL`?"]
    );
}

#[test]
fn durations_and_sizes_have_units() {
    for (text, ms) in [("200ms", 200), ("30s", 30_000), ("10 m", 600_000), ("1h", 3_600_000), ("30d", 2_592_000_000)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    for bad in ["", "s", "-1s", "1.5s", "1w", "99999999999999999999s", "18446744073709551615d", "36501d", "1s2"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
    for (text, bytes) in [
        ("0", 0),
        ("17", 17),
        ("5B", 5),
        ("500kB", 500_000),
        ("64MiB", 64 << 20),
        ("1GiB", 1 << 30),
        ("2 TB", 2_000_000_000_000),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for bad in ["", "MiB", "64 M", "1.5GiB", "-1", "99999999999TiB", "99999999999999999999", "1e3"] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
}

#[test]
fn host_names_become_device_names() {
    for (host, device) in [
        ("laptop", "laptop"),
        ("Bo's MacBook Pro.local", "Bo-s-MacBook-Pro"),
        ("", "device"),
        ("日本", "device"),
        ("--a--b--", "a-b"),
        (&"x".repeat(64), &"x".repeat(32)),
    ] {
        assert_eq!(sanitise_device(host), device);
    }
}

#[test]
fn example_config_shows_the_defaults() {
    let example = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml")).unwrap();
    // Key lines look like `# key = value`. Prose does not.
    let key_line = |line: &str| {
        let rest = line.strip_prefix("# ")?;
        let (key, _) = rest.split_once(" = ")?;
        key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then(|| (key.to_owned(), rest.to_owned()))
    };

    let (mut section, mut keys, mut text) = (String::new(), BTreeSet::new(), String::new());
    for line in example.lines() {
        if line.starts_with('[') {
            section = format!("{}.", line.trim_matches(['[', ']']));
        }
        match key_line(line) {
            Some((key, setting)) => {
                assert!(keys.insert(format!("{section}{key}")), "{key} twice");
                text.push_str(&setting);
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    assert_eq!(keys, KEYS.iter().map(|k| (*k).to_owned()).collect(), "every key is in the example");

    let bench = Bench::new();
    std::fs::write(bench.path(), "").unwrap();
    std::fs::set_permissions(bench.path(), PermissionsExt::from_mode(0o600)).unwrap();
    let mut config = bench.load(&text).unwrap();
    assert_eq!(
        config.folders,
        [memsync::config::FolderConfig { path: PathBuf::from("/home/ana/Memory"), ..Default::default() }]
    );
    // Keys without a default show a sample.
    assert_eq!(config.device, "laptop");
    assert_eq!(config.proxy.url, "https://memory.example.org");
    assert!(
        config.proxy.token_file.take().is_some()
            && config.proxy.token.take().is_some()
            && config.proxy.ca_file.take().is_some()
            && config.proxy.pin.take().is_some()
    );
    config.proxy.url.clear();
    assert_eq!(shown(&config), shown(&Config::defaults("laptop")));
}

#[test]
fn every_key_has_its_own_variable() {
    let names: BTreeSet<String> = KEYS.iter().map(|k| env_name(k)).collect();
    assert_eq!(names.len(), KEYS.len());
    assert!(names.contains("MEMSYNC_PROXY_TOKEN_FILE") && names.contains("MEMSYNC_SYNC_MAX_FILE_SIZE"));
}

#[test]
fn draft_reads_back_as_written() {
    let bench = Bench::new();
    let draft = ConfigDraft {
        device: "d".to_owned(),
        url: "http://10.0.0.1/x\"y".to_owned(),
        token_file: PathBuf::from("/t \"quoted\"\\"),
        allow_http: true,
        ca_file: Some("/etc/my ca.pem".into()),
        pin: None,
        path: PathBuf::from("/home/ana/Mémoire 'x'"),
        namespace: "n".to_owned(),
    };
    let config = bench.load(&draft.to_toml()).unwrap();
    assert_eq!(config.proxy.url, draft.url);
    assert_eq!(config.proxy.token_file, Some(draft.token_file));
    assert_eq!((config.proxy.ca_file, config.proxy.pin), (draft.ca_file, None));
    assert_eq!((config.folders[0].path.clone(), config.folders[0].namespace.as_str()), (draft.path, "n"));
}

#[test]
fn pin_needs_https_and_reads_back() {
    let bench = Bench::new();
    let pin = Pin::of(b"a certificate");
    let draft = ConfigDraft {
        device: "d".to_owned(),
        url: "https://10.0.0.1".to_owned(),
        token_file: PathBuf::from("/t"),
        allow_http: false,
        ca_file: None,
        pin: Some(pin),
        path: PathBuf::from("/home/ana/m"),
        namespace: String::new(),
    };
    assert_eq!(bench.load(&draft.to_toml()).unwrap().proxy.pin, Some(pin));
    let plain = ConfigDraft { url: "http://127.0.0.1".to_owned(), ..draft.clone() };
    let why = bench.load(&plain.to_toml()).unwrap_err().to_string();
    assert!(why.contains("config.toml:7: proxy.pin") && why.contains("https"), "{why}");
    let short = draft.to_toml().replace(&pin.to_string(), "sha256:12");
    assert!(bench.load(&short).unwrap_err().to_string().contains("64 hex digits"));
}

#[test]
fn private_files_are_private_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/sub/token");
    create_private(&path, b"one").unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap()), mode(&dir.path().join("new"))), (0o600, 0o700, 0o700));
    assert_eq!(create_private(&path, b"two").unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
}
