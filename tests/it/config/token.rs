//! The token: its sources, the mode of its file, and its characters.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use memsync::config::{Config, ConfigError, TokenSource, parse_token};
use secrecy::ExposeSecret;

use super::{Bench, MINIMAL};

#[test]
fn token_comes_from_the_first_source_that_is_set() {
    let bench = Bench::new();
    let own = bench.file("own", "from-config-file\n", 0o600);
    let named = bench.file("named", "from-env-file\r\n", 0o400);
    std::fs::create_dir(bench.dir.path().join("creds")).unwrap();
    // The access list of systemd shows as group bits.
    bench.file("creds/token", "from-credential", 0o440);
    std::fs::write(bench.path(), "").unwrap();
    std::fs::set_permissions(bench.path(), PermissionsExt::from_mode(0o600)).unwrap();
    let text = format!(
        "[proxy]\nurl = \"https://x\"\ntoken = \"inline\"\ntoken_file = \"{}\"\n[[folder]]\npath = \"/m\"",
        own.display()
    );
    let mut config = bench.load(&text).unwrap();

    let creds = bench.dir.path().join("creds").display().to_string();
    let named = named.display().to_string();
    let mut env: BTreeMap<String, String> =
        [("MEMSYNC_TOKEN", "direct"), ("MEMSYNC_TOKEN_FILE", &named), ("CREDENTIALS_DIRECTORY", &creds)]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
    let token = |config: &Config, env: &BTreeMap<String, String>| {
        let (token, from) = config.token(env).unwrap();
        (token.expose_secret().to_owned(), from)
    };
    assert_eq!(token(&config, &env), ("direct".to_owned(), TokenSource::Environment));
    env.remove("MEMSYNC_TOKEN");
    assert_eq!(token(&config, &env).0, "from-env-file");
    env.remove("MEMSYNC_TOKEN_FILE");
    assert_eq!(token(&config, &env).0, "from-credential");
    env.remove("CREDENTIALS_DIRECTORY");
    assert_eq!(token(&config, &env), ("from-config-file".to_owned(), TokenSource::ConfigFile(own)));
    config.proxy.token_file = None;
    assert_eq!(token(&config, &env), ("inline".to_owned(), TokenSource::Config));
    config.proxy.token = None;
    assert!(matches!(config.token(&env), Err(ConfigError::NoToken)));
}

#[test]
fn wrong_token_source_is_an_error() {
    let bench = Bench::new();
    let open = bench.file("open", "secret", 0o640);
    let mut config = Config::defaults("h");
    config.proxy.token = Some("inline".to_owned().into());
    config.proxy.token_file = Some(open.clone());
    let error = config.token(&BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("mode 0640") && error.ends_with(&format!("run: chmod 600 {}", open.display())), "{error}");
    config.proxy.token_file = Some(bench.dir.path().join("missing"));
    assert!(config.token(&BTreeMap::new()).unwrap_err().to_string().contains("missing"));
}

#[test]
fn config_with_a_token_must_be_private() {
    let bench = Bench::new();
    let text = MINIMAL.replace("[proxy]", "[proxy]\ntoken = \"s3cret\"");
    std::fs::write(bench.path(), "").unwrap();
    std::fs::set_permissions(bench.path(), PermissionsExt::from_mode(0o644)).unwrap();
    let error = bench.refusal(&text);
    assert!(error.contains("mode 0644") && error.contains("chmod 600") && !error.contains("s3cret"), "{error}");
    std::fs::set_permissions(bench.path(), PermissionsExt::from_mode(0o600)).unwrap();
    let config = bench.load(&text).unwrap();
    assert!(!format!("{config:?}").contains("s3cret"), "the token is never shown");
}

#[test]
fn token_is_visible_ascii() {
    let from = TokenSource::Stdin;
    assert_eq!(parse_token("abc-._~+/=\r\n", &from).unwrap().expose_secret(), "abc-._~+/=");
    for bad in ["", "\n", "a b", "a\nb", " a", "a\t", "a\0", "ü"] {
        let error = parse_token(bad, &from).unwrap_err().to_string();
        assert!(error.starts_with("the token from standard input:"), "{bad:?}: {error}");
    }
}
