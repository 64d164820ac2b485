//! The README tells the truth: every command in it is run, in its order, with the real binary and a home for each
//! machine; its tables are those of the program; the tests it names exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::Parser;
use memsync::cli::args::Args;
use memsync::cli::exit::Exit;
use memsync::config::KEYS;

mod desk;
#[path = "../common/killed.rs"]
mod killed;
mod page;
#[path = "../common/s3.rs"]
mod s3;
#[path = "../common/terminal.rs"]
mod terminal;

use desk::Desk;
use page::{blocks, code, commands, repository, shape, shipped, table};

/// Beginnings of commands that cannot run in a test, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo install ", "builds for minutes, and the binary is there"),
    ("cargo test ", "runs this test"),
    ("ssh ", "needs a second machine; here both are one"),
    ("systemctl ", "needs a user's session of systemd"),
    ("loginctl ", "needs a user's session of systemd"),
    ("launchctl ", "is of macOS alone, and would change the system"),
    ("sudo ", "changes the system"),
];

#[test]
fn every_command_works_in_the_readmes_order() {
    let mut desk = Desk::new();
    let mut passed_over = vec![0; NOT_RUN.len()];
    for (machine, line) in commands() {
        println!("{machine}$ {line}");
        match NOT_RUN.iter().position(|(begins, _)| line.starts_with(begins)) {
            Some(n) => passed_over[n] += 1,
            None => desk.type_in(&machine, &line),
        }
    }
    desk.stop();
    for ((begins, why), times) in NOT_RUN.iter().zip(passed_over) {
        assert!(times > 0, "{begins:?} ({why}) is in no command; take it off the list");
    }
    // What the README shows was printed; `doctor` is shown where something is wrong, and the picture is none's.
    for block in blocks().into_iter().filter(|b| b.language == "text") {
        if !["Is everything all right?", "How it works"].contains(&block.section.as_str()) {
            for line in &block.lines {
                assert!(
                    desk.said.contains(&shape(line)),
                    "{}: nothing printed {line:?}\n{:#?}",
                    block.section,
                    desk.said
                );
            }
        }
    }
    // What the commands were for.
    let (first, home) = (desk.first(), |file: &str| desk.first().file(file));
    assert_eq!(fs::read_to_string(first.note("hello.md")).unwrap(), "from the first\n", "restored");
    assert_eq!(fs::read_to_string(first.note("plan.md")).unwrap(), "a plan\n", "restored");
    assert!(first.note("many-0.md").exists(), "rejected, so it came back");
    assert_eq!(
        fs::read(home(".config/systemd/user/memsync.service")).unwrap(),
        fs::read(home("systemd/memsync.service")).unwrap()
    );
    assert!(home(".local/bin/memsync").exists());
    let plist = fs::read_to_string(home("Library/LaunchAgents/org.memsync.agent.plist")).unwrap();
    let binary = assert_cmd::cargo::cargo_bin("memsync");
    assert!(plist.contains(&format!("<string>{}</string>", binary.display())), "{plist}");
}

#[test]
fn every_block_says_what_it_is() {
    for block in blocks() {
        let known = ["sh", "text", "ini"].contains(&block.language.as_str());
        assert!(known, "{}: a block of {:?}", block.section, block.language);
        assert!(block.machine.is_empty() || block.language == "sh", "{}: {:?}", block.section, block.machine);
        let shown = block.lines.iter().any(|line| line.starts_with("$ "));
        assert!(!shown, "{}: a command in a block that is not run", block.section);
    }
}

#[test]
fn one_command_does_the_main_thing_and_one_tests_it() {
    let of = |section: &str| {
        let mut blocks = blocks().into_iter().filter(|b| b.section == section && b.language == "sh");
        blocks.next().unwrap_or_else(|| panic!("{section} has no command")).lines
    };
    assert_eq!(of("Run it"), ["cargo run --release -- up ./memory"]);
    let test = of("Test it");
    assert_eq!(test, ["cargo test --locked"]);
    let ci = shipped(".ci/run");
    assert_eq!(ci.lines().last().unwrap(), format!("step {}", test[0]), ".ci/run ends with the README's test");
}

#[test]
fn what_is_named_in_passing_can_be_typed() {
    let named: Vec<_> = code(&shipped("README.md")).into_iter().filter(|c| c.starts_with("memsync ")).collect();
    assert!(!named.is_empty());
    for command in named {
        if let Err(e) = Args::try_parse_from(command.split_whitespace()) {
            panic!("{command}: {e}");
        }
    }
}

#[test]
fn every_key_is_there_with_its_default() {
    let example = shipped("config.example.toml");
    let mut defaults = BTreeMap::new();
    let mut section = String::new();
    for line in example.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_matches(['[', ']']));
        } else if let Some((key, value)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")) {
            defaults.insert(format!("{section}{key}"), value.to_owned());
        }
    }
    let rows = table("key");
    let keys: Vec<_> = rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(keys, KEYS);
    for row in &rows {
        let (key, default) = (row[0].trim_matches('`'), row[1].trim_matches('`'));
        assert!(default == "–" || defaults.get(key).is_some_and(|d| d == default), "{key}: {default}");
    }
}

#[test]
fn built_in_ignore_patterns_are_named() {
    let readme = shipped("README.md");
    let hex = |digits: usize| "[0-9a-f]".repeat(digits);
    let uuid = [8, 4, 4, 4, 12].map(hex).join("-");
    for pattern in memsync::local::ignore::built_in_patterns() {
        let shown = pattern.replace(&uuid, "<uuid>").replace(&hex(32), "<32 hex>").replace("tmp-[0-9]*", "tmp-<pid>");
        assert!(readme.contains(&format!("`{}`", shown.escape_debug())), "the README does not name {shown:?}");
    }
}

#[test]
fn the_exit_codes_are_the_programs() {
    let codes = [
        Exit::Done,
        Exit::Error,
        Exit::Usage,
        Exit::NotConfigured,
        Exit::Pending,
        Exit::Temporary,
        Exit::Refused,
        Exit::Halted,
        Exit::Conflicts,
    ];
    let words = [
        "in sync",
        "error",
        "usage",
        "not configured",
        "pending",
        "the proxy or the disk",
        "refused",
        "halted",
        "conflicts",
    ];
    let rows = table("code");
    assert_eq!(rows.len(), codes.len());
    for ((row, code), word) in rows.iter().zip(codes).zip(words) {
        assert_eq!(row[0], (code as u8).to_string());
        assert!(row[1].contains(word), "{row:?}");
    }
}

#[test]
fn what_shows_a_promise_exists() {
    let rows = table("promise");
    assert_eq!(rows.len(), 15);
    for (n, row) in rows.iter().enumerate() {
        assert!(row[0].starts_with(&format!("{}. ", n + 1)), "{row:?}");
        let mut file = String::new();
        let mut tests = 0;
        for word in row[1].split('`').skip(1).step_by(2) {
            if word.ends_with(".rs") {
                file = shipped(word);
            } else {
                tests += 1;
                // A line of `points!` is a test as well.
                if file.contains(&format!("\n    {word}: a_cycle at \"")) {
                    continue;
                }
                let at = file.find(&format!("fn {word}(")).unwrap_or_else(|| panic!("{}: no {word}", row[0]));
                let before: Vec<_> = file[..at].lines().rev().take(3).collect();
                assert!(before.iter().any(|line| line.contains("test")), "{word} is no test: {before:?}");
            }
        }
        assert!(tests > 0, "{row:?}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for file in ["README.md", "docs/architecture.md", "CHANGELOG.md"] {
        let dir = Path::new(file).parent().unwrap().to_owned();
        for target in shipped(file).split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned()) {
            let path = target.split('#').next().unwrap();
            if !path.starts_with("https://") && !path.is_empty() {
                assert!(repository(dir.join(path).to_str().unwrap()).exists(), "{file}: {target}");
            }
            if let Some((page, anchor)) = target.split_once('#').filter(|(page, _)| page.ends_with(".md")) {
                let page = shipped(dir.join(page).to_str().unwrap());
                let slug = |title: &str| {
                    let plain = title.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-");
                    plain.replace(|c: char| !c.is_alphanumeric() && c != '-', "")
                };
                assert!(page.lines().any(|l| l.starts_with('#') && slug(l) == anchor), "{file}: {target}");
            }
        }
    }
}

#[test]
fn every_capability_is_explained() {
    let source = shipped("src/protocol/mod.rs");
    let (_, module) = source.split_once("pub mod capability {").unwrap();
    let names = module.lines().take_while(|line| !line.starts_with('}'));
    let names: Vec<_> = names.filter_map(|line| line.strip_suffix("\";")?.split_once("= \"")).map(|(_, n)| n).collect();
    assert!(names.len() >= 10, "{names:?}");
    let page = shipped("docs/protocol-extensions.md");
    for name in names {
        let told = page.lines().any(|line| line.starts_with("## ") && line.contains(&format!("`{name}`")));
        assert!(told, "docs/protocol-extensions.md has no section of `{name}`");
    }
}
