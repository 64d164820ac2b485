//! The units as shipped start what there is to start, and know the exit codes.

use clap::Parser;
use memsync::cli::args::{Args, Command};
use memsync::cli::exit::Exit;

fn shipped(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The value of a key that stands once in a systemd unit.
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
fn the_agents_unit() {
    let unit = shipped("systemd/memsync.service");
    assert!(matches!(command(value(&unit, "ExecStart")), Command::Run));
    assert_eq!(prevented(&unit), [Exit::Usage as u8, Exit::NotConfigured as u8, Exit::Refused as u8]);
    assert_eq!((value(&unit, "Type"), value(&unit, "Restart")), ("notify", "on-failure"));
    assert_eq!(value(&unit, "WantedBy"), "default.target");
}

#[test]
fn the_proxys_unit() {
    let unit = shipped("systemd/memsync-proxy.service");
    let Command::Serve { listen, store, token_file, .. } = command(value(&unit, "ExecStart")) else {
        panic!("not serve")
    };
    assert!(listen.resolve(&Default::default()).unwrap().ip().is_loopback() && store.is_some());
    // A credential's group bits would be refused in a plain token file; `serve` finds the credential by itself.
    assert_eq!(token_file, None);
    assert!(value(&unit, "LoadCredential").starts_with("token:"));
    assert_eq!(prevented(&unit), [Exit::Usage as u8, Exit::NotConfigured as u8]);
    assert!(value(&unit, "ExecReload").contains("-HUP"));
    // What its comments tell to type can be typed.
    let told: Vec<_> = unit.lines().filter_map(|l| l.strip_prefix("#   ExecStart=/")).collect();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|line| matches!(command(line), Command::Serve { .. })));
    for wall in
        ["DynamicUser=yes", "ProtectSystem=strict", "ProtectHome=yes", "NoNewPrivileges=yes", "CapabilityBoundingSet="]
    {
        assert!(unit.lines().any(|l| l == wall), "{wall}");
    }
}

#[test]
fn the_agents_plist() {
    let plist = shipped("launchd/org.memsync.agent.plist");
    let (_, arguments) = plist.split_once("<key>ProgramArguments</key>").unwrap();
    let (arguments, _) = arguments.split_once("</array>").unwrap();
    let words = arguments.split("<string>").skip(1).map(|w| w.split_once("</string>").unwrap().0);
    assert!(matches!(command(&words.collect::<Vec<_>>().join(" ")), Command::Run));
}
