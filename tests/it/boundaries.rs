//! The walls between the modules: the uses that are allowed, and the modules that may print, touch files, read the
//! environment or leave the process. The checker reads the source, and is tested on planted violations.
//!
//! It skips code under `#[cfg(test)]`. It does not understand macros that build paths; the source has no such macro.

use std::collections::BTreeMap;
use std::path::Path;

mod circles;
mod licences;
mod source;

use circles::{circles, shared_type_names};
use source::{code_of, paths_of, top_module};

/// The layers from left to right. A module may use modules of earlier layers, and no others.
const LAYERS: &[&[&str]] = &[
    &["path", "digest", "failpoint", "clock", "merge"],
    &["sync"],
    &["protocol"],
    &["disk"],
    &["local", "remote", "state", "store"],
    &["agent", "proxy"],
    &["config", "dirs"],
    &["cli"],
    &["main"],
    // The test doubles: no product code may use them.
    &["testing"],
];

/// Uses that the layers allow and the design forbids: agent and proxy meet in `protocol`.
const NEVER: &[(&str, &[&str])] = &[
    ("agent", &["store", "proxy"]),
    ("proxy", &["sync", "local", "state", "remote"]),
    ("store", &["sync"]),
    ("sync", &["failpoint"]),
];

/// Files and folders of the source that may touch files.
const FILES: &[&str] = &[
    "disk",
    // A debug build that stops at a point reports it by a file.
    "failpoint.rs",
    "local",
    "state",
    "store/sqlite",
    "store/body.rs",
    "config",
    // The file of the socket: an old one is removed, the new one gets its mode.
    "agent/control.rs",
    // The record of a socket in another place, and the check that no other user can reach it.
    "dirs.rs",
    // It inspects files for the user.
    "cli/commands/doctor/machine.rs",
];

/// Modules that may read the environment and print. The test doubles read the seed of a random test, and print it.
const SPEAKERS: &[&str] = &["cli", "main", "testing"];

/// Source that may open a file for writing under its final name. All other source uses `disk/whole.rs`.
const WRITERS: &[&str] = &[
    "disk",
    "failpoint.rs",
    // A lock may be empty.
    "state/lock.rs",
    // The database recovers by itself, and a row names a body only once the body is complete.
    "store/sqlite",
    // Its files disappear with the process.
    "store/body.rs",
];

/// Checks a path against the rules for its beginning. The error is the reason.
fn is_allowed(module: &str, file: &str, path: &str) -> Result<(), &'static str> {
    let begins = |prefixes: &[&str]| {
        prefixes.iter().any(|p| path.strip_prefix(p).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
    };
    let is_in = |places: &[&str]| places.iter().any(|p| file == *p || file.strip_prefix(p).is_some_and(is_inside));
    if begins(&["std::fs", "tokio::fs", "rustix::fs"]) && !is_in(FILES) {
        return Err("touches files");
    }
    let writes = ["std::fs::write", "std::fs::File::create", "std::fs::OpenOptions", "tokio::fs::write"];
    let short = ["fs::write", "File::create", "File::create_new", "OpenOptions"];
    if (begins(&writes) || begins(&short)) && !is_in(WRITERS) {
        return Err("writes a file under its final name; use `disk::whole`");
    }
    if begins(&["std::env"]) && !SPEAKERS.contains(&module) {
        return Err("reads the environment; take the value as an argument");
    }
    if begins(&["std::process::exit"]) && module != "main" {
        return Err("leaves the process");
    }
    if begins(&["std::process::abort"]) && module != "failpoint" {
        return Err("leaves the process");
    }
    let impure = [
        "std::io",
        "std::net",
        "std::time",
        "std::thread",
        "std::sync",
        "std::process",
        "tokio",
        "tracing",
        "futures",
        "rustix",
        "fastrand",
        "jiff",
    ];
    // The merge reads the times that notes contain, and no clock.
    let is_written_time = module == "merge" && begins(&["jiff::Timestamp", "jiff::civil"]);
    if matches!(module, "sync" | "merge") && begins(&impure) && !is_written_time {
        return Err("is not pure");
    }
    Ok(())
}

fn is_inside(rest: &str) -> bool {
    rest.starts_with(['/', '.'])
}

/// Every violation in one file. `file` is its path below `src`.
fn violations(file: &str, text: &str, modules: &[&str]) -> Vec<String> {
    let module = top_module(file);
    let code = code_of(text);
    let mut found = Vec::new();
    let layer = |name: &str| LAYERS.iter().position(|l| l.contains(&name));
    let Some(own) = layer(module) else {
        return vec![format!("{file}: `{module}` is in no layer; add it to LAYERS")];
    };
    for path in paths_of(&code, file, modules) {
        if let Some(used) = path.strip_prefix("crate::").map(|p| p.split("::").next().unwrap_or_default()) {
            let never = NEVER.iter().any(|(from, to)| *from == module && to.contains(&used));
            if used != module && layer(used).is_some_and(|l| l >= own || never) {
                found.push(format!("{file}: `{module}` uses `{used}` ({path})"));
            }
        }
        if let Err(why) = is_allowed(module, file, &path) {
            found.push(format!("{file}: `{module}` {why} ({path})"));
        }
    }
    if !SPEAKERS.contains(&module) {
        for print in ["println!", "eprintln!", "print!", "eprint!", "dbg!"] {
            let calls = code.match_indices(print).filter(|(at, _)| !code[..*at].ends_with(is_word));
            found.extend(calls.map(|_| format!("{file}: `{module}` prints ({print})")));
        }
    }
    for name in file.trim_end_matches(".rs").split('/') {
        if ["util", "utils", "helper", "helpers", "manager", "misc", "common"].contains(&name) {
            found.push(format!("{file}: `{name}` says nothing; name it for what it does"));
        }
    }
    let (lines, most) = (code.lines().count(), if module == "main" { 80 } else { 600 });
    if lines > most {
        found.push(format!("{file}: {lines} lines, more than {most}; split it"));
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Every source file by its path below `src`, without the files of tests.
fn sources() -> BTreeMap<String, String> {
    fn walk(dir: &Path, below: &str, into: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{below}{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), into);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && !name.contains("tests/") {
                into.insert(name, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    files
}

/// The modules that `lib.rs` declares.
fn declared(lib: &str) -> Vec<&str> {
    lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect()
}

#[test]
fn source_keeps_its_walls() {
    let files = sources();
    let modules = declared(&files["lib.rs"]);
    assert!(modules.len() > 8 && files.len() > modules.len(), "the source was found");
    let found: Vec<String> = files
        .iter()
        .filter(|(file, _)| *file != "lib.rs")
        .flat_map(|(file, text)| violations(file, text, &modules))
        .collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn files_import_each_other_in_no_circle() {
    let found = circles(&sources());
    let lines: Vec<String> = found.iter().map(|group| group.join(", ")).collect();
    assert!(found.is_empty(), "\n{}\nMove what they share into a file below them.\n", lines.join("\n"));
}

#[test]
fn planted_circles_are_found() {
    let files = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
        list.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect()
    };
    let lower = ("store/types.rs", "pub struct BlobMeta;");
    let circle = [
        ("store/mod.rs", "mod types; mod rows; pub use types::BlobMeta; use rows::Row;"),
        ("store/rows.rs", "use super::super::store::Floor;"),
        lower,
    ];
    assert_eq!(circles(&files(&circle)), [["store/mod.rs", "store/rows.rs"]]);
    let across = [
        ("disk/mod.rs", "use crate::{path::RelPath, digest};"),
        ("path.rs", ""),
        ("digest.rs", "use crate::disk::Disk;"),
    ];
    assert_eq!(circles(&files(&across)), [["digest.rs", "disk/mod.rs"]]);
    let by_export = [
        ("store/mod.rs", "mod types; mod rows; pub use types::{BlobMeta}; use rows::Row;"),
        ("store/rows.rs", "use super::BlobMeta; #[cfg(test)]\nuse super::Floor;\nfn f() {}"),
        lower,
    ];
    assert_eq!(circles(&files(&by_export)), [[""; 0]; 0]);
}

#[test]
fn type_names_are_unique() {
    let shared = shared_type_names(&sources());
    assert!(shared.is_empty(), "types share a name: {shared:?}");
}

#[test]
fn planted_name_of_two_types_is_found() {
    let files = [
        ("store/mod.rs", "pub struct IndexEntry;\npub(crate) enum GetOutcome {}"),
        ("remote/mod.rs", "struct IndexEntry(u8);\nimpl Remote for X {\n    type Body = u8;\n}"),
        ("remote/body.rs", "type Body = u8;"),
    ];
    let files = files.map(|(file, text)| (file.to_owned(), text.to_owned())).into();
    assert_eq!(shared_type_names(&files), [("IndexEntry".to_owned(), 2)].into());
}

#[test]
fn planted_violations_are_found() {
    let modules = [
        "path", "merge", "sync", "protocol", "disk", "local", "state", "store", "agent", "proxy", "config", "cli",
        "testing",
    ];
    for (file, text, want) in [
        ("sync/mod.rs", "use crate::protocol::Health;", "`sync` uses `protocol`"),
        ("sync/plan.rs", "fn f() { let x = crate::local::Scan::new(); }", "`sync` uses `local`"),
        ("merge/mod.rs", "use crate::path::RelPath;", "`merge` uses `path`"),
        ("local/mod.rs", "use crate::{path::RelPath, state::Entry};", "`local` uses `state`"),
        ("local/mod.rs", "use super::state::Entry;", "`local` uses `state`"),
        ("local/scan.rs", "use super::super::state::Entry;", "`local` uses `state`"),
        ("agent/mod.rs", "use crate::store::Store;", "`agent` uses `store`"),
        ("proxy/mod.rs", "use crate::sync::{self, Base};", "`proxy` uses `sync`"),
        ("proxy/mod.rs", "use crate::agent::run;", "`proxy` uses `agent`"),
        ("agent/mod.rs", "use crate::cli;", "`agent` uses `cli`"),
        ("cli/run.rs", "use crate::testing::SimDisk;", "`cli` uses `testing`"),
        ("newcomer.rs", "", "in no layer"),
        ("agent/mod.rs", "fn f() { println!(\"x\"); }", "prints (println!)"),
        ("agent/mod.rs", "fn f() { eprint!(\"x\"); }", "prints (eprint!)"),
        ("agent/mod.rs", "use std::fs;", "touches files (std::fs)"),
        ("agent/mod.rs", "use std::{io, fs::{File, self}};", "touches files (std::fs::File)"),
        ("store/memory.rs", "fn f() { std::fs::read(p) }", "touches files"),
        ("remote/http.rs", "use tokio::fs::File;", "touches files"),
        ("config/draft.rs", "fn f() { std::fs::write(p, b) }", "under its final name"),
        ("state/note.rs", "use std::fs; fn f() { fs::write(p, b) }", "under its final name"),
        ("dirs.rs", "use std::fs::{File, OpenOptions};", "under its final name"),
        ("config/mod.rs", "fn f() { std::env::var(\"HOME\") }", "reads the environment"),
        ("cli/run.rs", "fn f() { std::process::exit(1) }", "leaves the process"),
        ("sync/plan.rs", "use std::time::Instant;", "is not pure"),
        ("merge/stamp.rs", "use jiff::Zoned;", "is not pure"),
        ("sync/plan.rs", "async fn f() { tokio::spawn(x) }", "is not pure"),
        ("agent/utils.rs", "", "`utils` says nothing"),
    ] {
        let found = violations(file, text, &modules);
        assert!(found.iter().any(|v| v.contains(want)), "{file}: {text}\n  found: {found:?}\n  want: {want}");
    }
    let long = "fn f() {}\n".repeat(81);
    assert!(violations("main.rs", &long, &modules)[0].contains("81 lines, more than 80"));
}

#[test]
fn allowed_uses_are_accepted() {
    let modules = ["path", "merge", "sync", "protocol", "disk", "local", "state", "store", "agent", "config", "cli"];
    for (file, text) in [
        ("agent/mod.rs", "use crate::{local::Scan, path::RelPath, sync::{self, plan::Plan}};"),
        (
            "local/mod.rs",
            "// use crate::state::Entry;\n/* println!() */ const S: &str = \"crate::state std::fs \\\" std::env\";",
        ),
        ("local/mod.rs", "const R: &str = r#\"crate::agent \" \"#; const C: char = '\"'; fn f<'a>(x: &'a str) {}"),
        ("local/mod.rs", "use super::path::RelPath; use self::scan::Scan; use crate::local::scan;"),
        (
            "state/mod.rs",
            "use std::fs; #[cfg(test)]\nmod tests { use crate::agent::x; fn f() { println!(\"{}\", '}'); } }\n",
        ),
        ("store/sqlite/spool.rs", "use std::fs::File;"),
        ("store/sqlite/mod.rs", "use std::fs::File;"),
        ("cli/tell.rs", "fn f() { println!(); std::env::var(\"X\"); }"),
        ("agent/mod.rs", "fn f() { my_println!(); writeln!(out, \"\"); }"),
        ("sync/plan.rs", "use std::collections::BTreeMap; use super::snapshot::Base;"),
        ("protocol/mod.rs", "#[cfg(test)]\nuse crate::agent::Agent;\nfn f() {}"),
        ("merge/stamp.rs", "use jiff::civil::{Date, Time}; use jiff::Timestamp;"),
    ] {
        assert_eq!(violations(file, text, &modules), [""; 0], "{file}: {text}");
    }
}
