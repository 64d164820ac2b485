//! README.md and docs/ tell the truth. Every command in them runs, in reading order, with the real binary and a home for
//! each machine. Their tables match the program, the tests that they name exist, and their links lead somewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use memsync::cli::args::Args;
use memsync::cli::exit::Exit;
use memsync::config::{Config, KEYS};
use memsync::store::Retention;
use memsync::sync::safety::{MASS_DELETE_MIN, MISSING_MIN};

mod desk;
mod page;

use desk::Desk;
use page::{READING_ORDER, anchors, blocks, blocks_of, inline_code, markdown_files, repository, shape, shipped, table};

/// The goal is a page that a newcomer reads in a few minutes.
const MAX_README_WORDS: usize = 1_500;

/// First words of commands that no test can run, and the reason. Their blocks have the mark `no-test`.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo ", "builds for minutes, and runs this test"),
    (".ci/", "runs this test"),
    ("MEMSYNC_", "runs the simulator for minutes"),
    ("ssh ", "needs a second machine; here both are one"),
    ("systemctl ", "needs a user session of systemd"),
    ("loginctl ", "needs a user session of systemd"),
    ("launchctl ", "exists on macOS only, and would change the system"),
    ("sudo ", "changes the system"),
];

#[test]
fn every_command_runs_in_reading_order() {
    let mut desk = Desk::new();
    for block in blocks().into_iter().filter(|b| b.is_run()) {
        for line in &block.lines {
            println!("{} {}$ {line}", block.file, block.mark);
            desk.type_in(&block.mark, line);
        }
    }
    desk.stop();
    for block in blocks().into_iter().filter(|b| b.is_printed_output()) {
        for line in &block.lines {
            let printed = desk.printed.contains(&shape(line));
            assert!(printed, "{}: no command printed {line:?}\n{:#?}", block.file, desk.printed);
        }
    }
    assert_effects(&desk);
}

/// The commands did what the pages say.
fn assert_effects(desk: &Desk) {
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
fn every_markdown_file_is_in_the_reading_order() {
    let mut order: Vec<_> = READING_ORDER.iter().map(|file| (*file).to_owned()).collect();
    order.sort();
    assert_eq!(markdown_files(), order);
}

#[test]
fn readme_is_short() {
    let words = shipped("README.md").split_whitespace().count();
    assert!(words <= MAX_README_WORDS, "README.md has {words} words, more than {MAX_README_WORDS}; move some to docs/");
}

#[test]
fn every_block_has_a_known_language_and_mark() {
    for block in blocks() {
        let place = format!("{}, {}", block.file, block.section);
        match (block.language.as_str(), block.mark.as_str()) {
            ("sh", _) | ("ini" | "json", "") | ("text", "" | "drawing") => {}
            ("toml", "") => {
                block.lines.join("\n").parse::<toml::Table>().unwrap_or_else(|e| panic!("{place}: {e}"));
            }
            (language, mark) => panic!("{place}: a block of {language:?} with the mark {mark:?}"),
        }
        let prompt = block.lines.iter().find(|line| line.starts_with("$ "));
        assert_eq!(prompt, None, "{place}: a command in a block that is not run");
    }
}

#[test]
fn only_commands_that_cannot_run_are_marked() {
    let mut uses = vec![0; NOT_RUN.len()];
    for block in blocks().into_iter().filter(|b| b.language == "sh") {
        for line in &block.lines {
            let reason = NOT_RUN.iter().position(|(begins, _)| line.starts_with(begins));
            let place = format!("{}: {line}", block.file);
            match reason.filter(|_| line != MAIN_COMMAND) {
                Some(n) if !block.is_run() => uses[n] += 1,
                Some(n) => panic!("{place}\n{}; mark the block `no-test`", NOT_RUN[n].1),
                None => assert!(block.is_run(), "{place}\ncan run; remove the mark"),
            }
        }
    }
    for ((begins, reason), count) in NOT_RUN.iter().zip(uses) {
        assert!(count > 0, "no command begins with {begins:?} ({reason}); remove it from the list");
    }
}

/// Runs as `memsync up` here: the binary is built already.
const MAIN_COMMAND: &str = "cargo run --release -- up ./memory";

#[test]
fn one_command_starts_and_one_command_tests() {
    let first_command = |section: &str| {
        let mut found = blocks_of("README.md").into_iter().filter(|b| b.section == section && b.language == "sh");
        found.next().unwrap_or_else(|| panic!("{section} has no command")).lines
    };
    assert_eq!(first_command("Run it"), [MAIN_COMMAND]);
    let test = first_command("Test it");
    assert_eq!(test, ["cargo test --locked"]);
    let ci = shipped(".ci/run");
    assert_eq!(ci.lines().last().unwrap(), format!("step {}", test[0]), ".ci/run ends with the README's test");
}

#[test]
fn named_test_targets_exist() {
    let lines: Vec<_> = blocks().into_iter().filter(|b| b.mark == "no-test").flat_map(|b| b.lines).collect();
    let mut targets = 0;
    for line in &lines {
        for (flag, folder) in [("--test", "tests"), ("--bench", "benches")] {
            let mut words = line.split_whitespace().skip_while(|word| *word != flag).skip(1);
            let Some(name) = words.next() else { continue };
            let exists = [format!("{folder}/{name}.rs"), format!("{folder}/{name}/main.rs")];
            assert!(exists.iter().any(|file| repository(file).exists()), "{line}: no target {name}");
            targets += 1;
        }
    }
    assert!(targets > 3, "{lines:?}");
}

#[test]
fn named_source_files_exist() {
    let mut missing = Vec::new();
    for file in READING_ORDER {
        for name in inline_code(&shipped(file)) {
            let is_source = name.ends_with(".rs") && !name.contains(['*', ' ', '<']);
            if is_source && !repository(&name).exists() && !repository(&format!("src/{name}")).exists() {
                missing.push(format!("{file}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "these files do not exist:\n{}", missing.join("\n"));
}

#[test]
fn every_module_is_on_the_map() {
    let page = shipped("docs/architecture.md");
    let (_, map) = page.split_once("## The map").unwrap();
    let map = map.split("\n## ").next().unwrap();
    let lib = shipped("src/lib.rs");
    let modules: Vec<_> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("pub(crate) mod ")))
        .collect();
    assert!(modules.len() > 8, "{modules:?}");
    for module in modules {
        let name = module.trim_end_matches(';');
        let is_listed = [format!("`{name}`"), format!("`{name}/`")].iter().any(|entry| map.contains(entry));
        assert!(is_listed, "docs/architecture.md: the map has no {name}");
    }
}

#[test]
fn decision_table_has_every_row() {
    let rows: Vec<_> = table("docs/sync-model.md", "row").into_iter().map(|row| row[0].clone()).collect();
    // `decide` has an arm for each, and `tests/it/table` runs them all.
    assert_eq!(rows, (1..=22).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn inline_commands_parse() {
    for file in READING_ORDER {
        for command in inline_code(&shipped(file)).into_iter().filter(|c| c.starts_with("memsync ")) {
            // `--version` is an "error" that prints to stdout.
            if let Err(e) = Args::try_parse_from(shell_words(&command))
                && e.use_stderr()
            {
                panic!("{file}: {command}: {e}");
            }
        }
    }
}

/// The words of a command, without single quotes.
fn shell_words(command: &str) -> Vec<String> {
    command.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
}

#[test]
fn every_key_is_listed_with_its_default() {
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
    let rows = table("docs/guide.md", "key");
    let keys: Vec<_> = rows.iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    assert_eq!(keys, KEYS);
    for row in &rows {
        let (key, default) = (row[0].trim_matches('`'), row[1].trim_matches('`'));
        assert!(default == "–" || defaults.get(key).is_some_and(|d| d == default), "{key}: {default}");
    }
}

/// Each number is stated on one page. Other pages link to it.
#[test]
fn stated_limits_match_the_program() {
    let states = |file: &str, text: String| assert!(shipped(file).contains(&text), "{file} does not say {text:?}");
    let kept = Retention::default();
    let days = |age: Duration| age.as_secs() / 86_400;
    let proxy_keeps =
        format!("the last {} versions of a file for {} days after they were replaced.", kept.versions, days(kept.age));
    states("docs/operating.md", proxy_keeps);
    let number = |n: u32| ["none", "one", "two", "three", "four", "five"][n as usize];
    states("docs/operating.md", format!("The newest {} stay longer.", number(kept.ageless)));
    states("docs/protocol.md", format!("Tombstones go after {} days", days(kept.tombstones)));
    states("docs/guide.md", format!("more than half of the files, and at least {MASS_DELETE_MIN},"));
    assert_eq!(Config::defaults("desk").sync.max_delete, 0.5, "docs/guide.md says half of the files");
    states("docs/guide.md", format!("a fifth of the files, at least {MISSING_MIN},"));
    let local = shipped("src/local/history/prune.rs");
    let (_, ageless) = local.split_once("AGELESS_VERSIONS: usize = ").unwrap();
    let ageless: u32 = ageless.split(';').next().unwrap().parse().unwrap();
    states("docs/guide.md", format!("The newest {} versions of a file never expire by age.", number(ageless)));
}

#[test]
fn built_in_ignore_patterns_are_listed() {
    let guide = shipped("docs/guide.md");
    let hex = |digits: usize| "[0-9a-f]".repeat(digits);
    let uuid = [8, 4, 4, 4, 12].map(hex).join("-");
    for pattern in memsync::local::ignore::built_in_patterns() {
        let shown = pattern.replace(&uuid, "<uuid>").replace(&hex(32), "<32 hex>").replace("tmp-[0-9]*", "tmp-<pid>");
        assert!(guide.contains(&format!("`{}`", shown.escape_debug())), "docs/guide.md does not list {shown:?}");
    }
}

#[test]
fn listed_exit_codes_match_the_program() {
    let expected = [
        (Exit::Done, "in sync"),
        (Exit::Error, "error"),
        (Exit::Usage, "usage"),
        (Exit::NotConfigured, "not configured"),
        (Exit::Pending, "pending"),
        (Exit::Temporary, "the proxy or the disk"),
        (Exit::Refused, "refused"),
        (Exit::Halted, "halted"),
        (Exit::Conflicts, "conflicts"),
        (Exit::ConditionFailed, "condition"),
    ];
    let rows = table("docs/guide.md", "code");
    assert_eq!(rows.len(), expected.len());
    for (row, (code, word)) in rows.iter().zip(expected) {
        assert_eq!(row[0], (code as u8).to_string());
        assert!(row[1].contains(word), "{row:?}");
    }
}

#[test]
fn tests_of_guarantees_exist() {
    let rows = table("docs/guarantees.md", "promise");
    assert_eq!(rows.len(), 15);
    for (n, row) in rows.iter().enumerate() {
        assert!(row[0].starts_with(&format!("{}. ", n + 1)), "{row:?}");
        let mut file = String::new();
        let mut tests = 0;
        for word in row[1].split('`').skip(1).step_by(2) {
            if word.ends_with(".rs") {
                file = shipped(word);
            } else {
                assert!(is_test(&file, word), "{}: {word} is not a test", row[0]);
                tests += 1;
            }
        }
        assert!(tests > 0, "{row:?}");
    }
}

/// True if `source` has a test function of this name, or a line of the macro `points!` that makes one.
fn is_test(source: &str, name: &str) -> bool {
    let Some(at) = source.find(&format!("fn {name}(")) else {
        let rest = source.split_once(&format!("\n    {name}: ")).map(|(_, rest)| rest);
        return rest.is_some_and(|rest| rest.split('"').next().is_some_and(|scenario| scenario.ends_with(" at ")));
    };
    source[..at].lines().rev().take(3).any(|line| line.contains("test"))
}

#[test]
fn every_link_leads_somewhere() {
    for file in READING_ORDER {
        let dir = Path::new(file).parent().unwrap().to_owned();
        for target in shipped(file).split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned()) {
            if target.starts_with("https://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let page = if path.is_empty() { (*file).to_owned() } else { dir.join(path).to_str().unwrap().to_owned() };
            assert!(repository(&page).exists(), "{file}: {target}");
            assert!(anchor.is_empty() || anchors(&shipped(&page)).iter().any(|a| a == anchor), "{file}: {target}");
        }
    }
}

#[test]
fn every_capability_has_a_section() {
    let source = shipped("src/protocol/capability.rs");
    let constants = source.lines().filter_map(|line| line.strip_suffix("\";")?.split_once(": &str = \""));
    let names: Vec<_> = constants.map(|(_, name)| name).collect();
    assert!(names.len() >= 10, "{names:?}");
    let page = shipped("docs/protocol.md");
    for name in names {
        let has_section = page.lines().any(|line| line.starts_with("## ") && line.contains(&format!("`{name}`")));
        assert!(has_section, "docs/protocol.md has no section of `{name}`");
    }
}
