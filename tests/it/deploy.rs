//! `Procfile` and `Dockerfile` use options that the program has and files that exist.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Parser;
use memsync::cli::args::{Args, Command, ServeArgs};

fn shipped(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The address of a proxy that is started with these words, when the platform chose `port`.
#[track_caller]
fn listens(words: &[&str], port: &str) -> String {
    let args = Args::try_parse_from(words.iter().copied()).unwrap_or_else(|e| panic!("{words:?}: {e}"));
    let Some(Command::Serve(ServeArgs { listen, store, .. })) = args.command else {
        panic!("{words:?} does not start a proxy")
    };
    assert!(store.is_none(), "{words:?}: the environment says where the files are, be it a bucket");
    listen.resolve(&BTreeMap::from([("PORT".to_owned(), port.to_owned())])).unwrap().to_string()
}

#[test]
fn procfile_starts_a_proxy_at_the_platforms_port() {
    let file = shipped("Procfile");
    let lines: Vec<_> = file.lines().filter(|line| !line.starts_with('#')).collect();
    let [line] = lines[..] else { panic!("{lines:?}") };
    let words: Vec<_> = line.strip_prefix("web: target/release/").unwrap().split(' ').collect();
    assert_eq!(words[0], "memsync");
    assert_eq!(listens(&words, "5000"), "0.0.0.0:5000", "unexpanded");
    let expanded = line.replace("$PORT", "5000");
    let words: Vec<_> = expanded.split(' ').skip(1).collect();
    assert_eq!(listens(&words, ""), "0.0.0.0:5000", "expanded by a shell");
}

#[test]
fn dockerfile_starts_a_proxy_from_existing_files() {
    let file = shipped("Dockerfile");
    let instructions: Vec<(&str, &str)> =
        file.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(' ')).collect();
    let of = |name: &str| instructions.iter().filter(|(n, _)| *n == name).map(|(_, rest)| *rest).collect::<Vec<_>>();
    let list = |text: &str| serde_json::from_str::<Vec<String>>(text).unwrap();

    let (entry, command) = (list(of("ENTRYPOINT")[0]), list(of("CMD")[0]));
    let words: Vec<&str> = entry.iter().chain(&command).map(String::as_str).collect();
    let port = of("ENV")[0].split("PORT=").nth(1).unwrap();
    assert_eq!(listens(&words, port), format!("0.0.0.0:{port}"));
    assert_eq!(of("EXPOSE"), [port]);
    assert!(of("VOLUME") == ["/data"] && of("ENV")[0].contains("MEMSYNC_HOME=/data"), "all that is kept is there");
    assert_eq!(of("USER"), ["65532:65532"], "not root");
    assert_eq!(of("STOPSIGNAL"), ["SIGTERM"]);

    // The second of two stages copies the program from the first.
    let stages = of("FROM");
    assert_eq!(stages.len(), 2);
    let cargo: toml::Table = shipped("Cargo.toml").parse().unwrap();
    let rust = cargo["package"]["rust-version"].as_str().unwrap();
    assert!(stages[0].starts_with(&format!("rust:{rust}-")) && stages[0].ends_with(" AS build"), "{}", stages[0]);
    let workdir = of("WORKDIR")[0];
    let copies = of("COPY");
    assert!(of("RUN")[0].contains("--profile dist ") && cargo["profile"].get("dist").is_some());
    assert!(copies.contains(&format!("--from=build {workdir}/target/dist/memsync {}", entry[0]).as_str()));
    let mut sources = Vec::new();
    for copy in copies.iter().filter(|copy| !copy.starts_with("--from")) {
        let words: Vec<_> = copy.split(' ').collect();
        sources.extend_from_slice(&words[..words.len() - 1]);
    }
    for source in &sources {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(source).exists(), "{source}");
    }
    // Cargo needs these files. Cargo.toml names the benches.
    for needed in ["Cargo.toml", "Cargo.lock", "src", "benches"] {
        assert!(sources.contains(&needed), "{needed}");
    }
}
