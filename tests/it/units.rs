//! The units start commands that exist, and know the exit codes.

use clap::Parser;
use memsync::cli::args::{Args, Command, ServeArgs};
use memsync::cli::exit::Exit;

fn shipped(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The value of a key that a systemd unit has once.
fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let mut values = unit.lines().filter_map(|l| l.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("{key} is missing"));
    assert_eq!(values.next(), None, "{key} twice");
    value
}

fn command(line: &str) -> Command {
    Args::try_parse_from(line.split_whitespace()).unwrap().command.unwrap()
}

fn prevented(unit: &str) -> Vec<u8> {
    value(unit, "RestartPreventExitStatus").split(' ').map(|n| n.parse().unwrap()).collect()
}

#[test]
fn agent_unit_starts_the_agent() {
    let unit = shipped("systemd/memsync.service");
    assert!(matches!(command(value(&unit, "ExecStart")), Command::Run));
    assert_eq!(prevented(&unit), [Exit::Usage as u8, Exit::NotConfigured as u8, Exit::Refused as u8]);
    assert_eq!((value(&unit, "Type"), value(&unit, "Restart")), ("notify", "on-failure"));
    assert_eq!(value(&unit, "WantedBy"), "default.target");
}

#[test]
fn proxy_unit_starts_a_hardened_proxy() {
    let unit = shipped("systemd/memsync-proxy.service");
    let Command::Serve(ServeArgs { listen, store, token_file, .. }) = command(value(&unit, "ExecStart")) else {
        panic!("not serve")
    };
    assert!(listen.resolve(&Default::default()).unwrap().ip().is_loopback() && store.is_some());
    // `serve` reads the credential by itself. As a token file its group bits would be refused.
    assert_eq!(token_file, None);
    assert!(value(&unit, "LoadCredential").starts_with("token:"));
    assert_eq!(prevented(&unit), [Exit::Usage as u8, Exit::NotConfigured as u8]);
    assert!(value(&unit, "ExecReload").contains("-HUP"));
    // The commands in its comments parse.
    let shown: Vec<_> = unit.lines().filter_map(|l| l.strip_prefix("#   ExecStart=/")).collect();
    assert_eq!(shown.len(), 2);
    assert!(shown.iter().all(|line| matches!(command(line), Command::Serve(_))));
    for wall in
        ["DynamicUser=yes", "ProtectSystem=strict", "ProtectHome=yes", "NoNewPrivileges=yes", "CapabilityBoundingSet="]
    {
        assert!(unit.lines().any(|l| l == wall), "{wall}");
    }
}

#[test]
fn agent_plist_starts_the_agent() {
    let plist = shipped("launchd/org.memsync.agent.plist");
    let (_, arguments) = plist.split_once("<key>ProgramArguments</key>").unwrap();
    let (arguments, _) = arguments.split_once("</array>").unwrap();
    let words = arguments.split("<string>").skip(1).map(|w| w.split_once("</string>").unwrap().0);
    assert!(matches!(command(&words.collect::<Vec<_>>().join(" ")), Command::Run));
}
