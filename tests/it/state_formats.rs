//! The state files on disk: every released format, and files that are cut short or damaged.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use memsync::digest::Md5;
use memsync::disk::{self, FileStat};
use memsync::path::RelPath;
use memsync::state::{
    BaseChange, BaseEntry, Container, OpenOutcome, RemoteState, StateError, StateFormat, StateOptions,
};
use memsync::sync::Base;
use proptest::prelude::*;

use memsync::testing::{MemDisk, seed};

type Files = BTreeMap<String, Vec<u8>>;
type Entries = BTreeMap<RelPath, BaseEntry>;

const NAME: &str = "notes";
const LAYOUTS: [(StateFormat, bool); 3] =
    [(StateFormat::Json, true), (StateFormat::Json, false), (StateFormat::MsgPack, false)];

fn options((format, pretty): (StateFormat, bool)) -> StateOptions {
    StateOptions { format, pretty, session_id: "this device".into() }
}

fn open_as(disk: &MemDisk, layout: (StateFormat, bool)) -> Result<(Container<MemDisk>, OpenOutcome), StateError> {
    Container::open(Arc::new(disk.clone()), NAME, options(layout), at("2026-01-01T00:00:00Z"))
}

fn open(files: &Files) -> Result<(Container<MemDisk>, OpenOutcome), StateError> {
    open_as(&MemDisk::with(files), LAYOUTS[1])
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn fixture(name: &str) -> Vec<u8> {
    let file = format!("{}/testdata/state/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&file).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn alone(bytes: impl Into<Vec<u8>>) -> Files {
    [(NAME.to_owned(), bytes.into())].into()
}

/// The entries of every fixture. Versions before 2 have no `ctime_ns`.
fn frozen(version: u32) -> Entries {
    let md5 = |hex: &str| hex.parse::<Md5>().unwrap();
    let ctime_ns = if version < 2 { 0 } else { 1_705_314_600_123_456_790 };
    let stat = FileStat { size: 5, mtime_ns: 1_705_314_600_123_456_789, ctime_ns, inode: 4711 };
    let entry = |base, stat, version| BaseEntry { base, stat, version };
    [
        (path("gone.md"), entry(Base::Seen(md5("0cc175b9c0f1b6a831c399e269772661")), None, 0)),
        (
            path("topics/ai.md"),
            entry(Base::Synced(md5("5d41402abc4b2a76b9719d911017c592")), Some(stat), 1_705_314_600_123),
        ),
        (path("ü/日本 \"q\".md"), entry(Base::Synced(md5("d41d8cd98f00b204e9800998ecf8427e")), None, 0)),
    ]
    .into()
}

const FILES: [&str; 3] = ["pretty.json", "compact.json", "container.msgpack"];

#[test]
fn every_version_and_format_loads() {
    for version in 0..=2 {
        for file in FILES {
            let what = format!("v{version}/{file}");
            let disk = MemDisk::with(&alone(fixture(&what)));
            let (mut container, opened) = open_as(&disk, LAYOUTS[1]).unwrap();
            let expected = if version == 2 { OpenOutcome::Loaded } else { OpenOutcome::Migrated { from: version } };
            assert_eq!(opened, expected, "{what}");
            assert_eq!(*container.entries(), frozen(version), "{what}");
            assert_eq!(container.wants_save(), what != "v2/compact.json", "{what}");
            let header = container.header();
            assert_eq!(header.session_id, ["migrated", "laptop-1", "laptop-2"][version as usize]);
            if version > 0 {
                assert_eq!(header.created_at, at("2024-01-15T10:30:00.123Z"));
                assert_eq!(header.modified_at, at("2024-01-15T11:00:00Z"));
            }
            let remote = RemoteState {
                origin: "https://memory.example.org".into(),
                namespace: String::new(),
                epoch: Some("e1".into()),
                cursor: Some(981),
                obeyed: None,
                set_back: false,
                history: None,
            };
            assert_eq!(header.remote, if version == 2 { remote } else { RemoteState::default() });
            assert_eq!(header.folder_id.as_deref(), (version == 2).then_some("f0lder"));

            // The old file stays while the journal grows on it, and is the backup after the save.
            container.commit(vec![BaseChange::Forget(path("gone.md"))]).unwrap();
            assert_eq!(disk.files()[NAME], fixture(&what));
            let (mut container, opened) = open_as(&disk, LAYOUTS[1]).unwrap();
            assert_eq!((opened, container.entries().len()), (expected, 2), "{what}");
            container.save(at("2026-01-02T00:00:00Z")).unwrap();
            assert_eq!(disk.files()["notes.bak"], fixture(&what));
            let (container, opened) = open_as(&disk, LAYOUTS[1]).unwrap();
            assert_eq!((opened, container.entries().len()), (OpenOutcome::Loaded, 2), "{what}");
            assert!(!container.wants_save());
        }
    }
}

#[test]
fn written_container_equals_the_frozen_one() {
    for (layout, file) in LAYOUTS.into_iter().zip(FILES) {
        let old = fixture(&format!("v2/{file}"));
        let disk = MemDisk::with(&alone(old.clone()));
        let (mut container, _) = open_as(&disk, layout).unwrap();
        container.save(at("2024-01-15T11:00:00.5Z")).unwrap();
        // Only the time of the save differs; in MessagePack, the length before it as well.
        let (before, after): (&[u8], &[u8]) = match layout.0 {
            StateFormat::Json => (b"\"2024-01-15T11:00:00Z", b"\"2024-01-15T11:00:00.5Z"),
            StateFormat::MsgPack => (b"\xb42024-01-15T11:00:00Z", b"\xb62024-01-15T11:00:00.5Z"),
        };
        let time = old.windows(before.len()).position(|w| w == before).unwrap();
        let expected = [&old[..time], after, &old[time + before.len()..]].concat();
        let written = &disk.files()[NAME];
        assert!(*written == expected, "{file}: {}", String::from_utf8_lossy(written));
    }
}

#[test]
fn journal_format_is_frozen() {
    let files: Files = [
        (NAME.to_owned(), fixture("v2/compact.json")),
        ("notes.journal".to_owned(), fixture("v2/compact.json.journal")),
    ]
    .into();
    let (container, opened) = open(&files).unwrap();
    let mut expected = frozen(2);
    expected.remove(&path("gone.md"));
    expected.insert(path("new.md"), BaseEntry { base: Base::Synced(Md5::of(b"a")), stat: None, version: 0 });
    assert_eq!((container.entries(), opened), (&expected, OpenOutcome::Loaded));
    assert_eq!(container.header().folder_id.as_deref(), Some("moved"));
}

#[test]
fn newer_version_is_refused_and_nothing_is_changed() {
    let future =
        [br#"{"version": 3, "entries": {"a": 1}, "x": null}"#.to_vec(), b"\x82\xa7version\x03\xa1x\xc0".to_vec()];
    for bytes in future {
        let mut files = lived_in(LAYOUTS[1]).0;
        files.insert(NAME.into(), bytes);
        files.insert("notes.tmp.1".into(), b"rest".to_vec());
        let disk = MemDisk::with(&files);
        let error = open_as(&disk, LAYOUTS[1]).err().unwrap();
        assert!(matches!(error, StateError::FutureVersion { found: 3, known: 2, .. }), "{error}");
        assert!(error.to_string().contains("version 3") && error.to_string().contains("up to 2"), "{error}");
        assert_eq!((disk.files(), disk.ops()), (files, 0));
    }
}

#[test]
fn invalid_content_is_damage() {
    let entry = r#"{"path":"a","md5":"5d41402abc4b2a76b9719d911017c592"}"#;
    let deep = format!("{{\"version\":2,\"x\":{}", "[".repeat(100_000));
    let deep_pack = [b"\x82\xa7version\x02\xa1x".to_vec(), vec![0x91; 100_000]].concat();
    for bytes in [
        format!("[{entry},{entry}]").into_bytes(),
        format!("[{entry}] []").into_bytes(),
        entry.replace("\"a\"", "\"../a\"").into_bytes(),
        format!("[{}]", entry.replace("\"a\"", "\"../a\"")).into_bytes(),
        format!("[{}]", entry.replace("5d", "5D")).into_bytes(),
        b"{}".to_vec(),
        br#"{"version":0,"entries":[]}"#.to_vec(),
        b"  \n ".to_vec(),
        b"\xdd\xff\xff\xff\xff".to_vec(),
        b"\xdf\xff\xff\xff\xff\xdb\xff\xff\xff\xff".to_vec(),
        [fixture("v2/container.msgpack"), vec![0]].concat(),
        deep.into_bytes(),
        deep_pack,
    ] {
        let (container, opened) = open(&alone(bytes.clone())).unwrap();
        let set_aside = vec!["notes.damaged-1".to_owned()];
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        assert_eq!(opened, OpenOutcome::Recovered { set_aside, from_backup: false }, "{shown}");
        assert!(container.entries().is_empty());
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let text = String::from_utf8(fixture("v2/compact.json")).unwrap();
    let more =
        text.replace("\"size\":5", "\"size\":5,\"colour\":[{}]").replace("{\"version\":2", "{\"x\":1,\"version\":2");
    let (container, opened) = open(&alone(more)).unwrap();
    assert_eq!((container.entries(), opened), (&frozen(2), OpenOutcome::Loaded));
}

#[test]
fn changed_options_convert_the_file() {
    let disk = MemDisk::with(&alone(fixture("v2/pretty.json")));
    for (layout, first) in [(LAYOUTS[2], 0x87), (LAYOUTS[1], b'{'), (LAYOUTS[0], b'{'), (LAYOUTS[2], 0x87)] {
        let (mut container, opened) = open_as(&disk, layout).unwrap();
        assert_eq!(opened, OpenOutcome::Loaded);
        assert!(container.wants_save(), "{layout:?}");
        container.save(at("2026-01-02T00:00:00Z")).unwrap();
        assert!(!container.wants_save());
        let bytes = disk.files()[NAME].clone();
        assert_eq!(bytes[0], first);
        assert_eq!(bytes.starts_with(b"{\n"), layout.0 == StateFormat::Json && layout.1);
        assert_eq!(*open_as(&disk, layout).unwrap().0.entries(), frozen(2));
    }
}

/// The files of a container with a backup and both journals, and every state it has had, in order.
fn lived_in(layout: (StateFormat, bool)) -> (Files, Vec<Entries>) {
    let disk = MemDisk::default();
    let (mut container, _) = open_as(&disk, layout).unwrap();
    let mut states = vec![Entries::new()];
    let mut commit = |container: &mut Container<MemDisk>, n: u8| {
        let stat = Some(FileStat { size: 1, mtime_ns: 2, ctime_ns: 3, inode: 4 });
        let entry = BaseEntry { base: Base::Synced(Md5::of(&[n])), stat, version: n.into() };
        let mut changes = vec![BaseChange::Set(path(&format!("f{}", n % 3)), entry)];
        if n % 4 == 3 {
            changes.push(BaseChange::Forget(path("f0")));
        }
        container.commit(changes).unwrap();
        states.push(container.entries().clone());
    };
    commit(&mut container, 1);
    container.save(at("2026-01-02T00:00:00Z")).unwrap();
    commit(&mut container, 2);
    commit(&mut container, 3);
    container.save(at("2026-01-03T00:00:00Z")).unwrap();
    commit(&mut container, 4);
    commit(&mut container, 5);
    (disk.files(), states)
}

const ALL: [&str; 4] = [NAME, "notes.journal", "notes.bak", "notes.journal.bak"];

/// Opens the files, of which `file` is damaged, and checks the outcome.
fn assert_sound(files: &Files, states: &[Entries], file: &str, what: &str) {
    let disk = MemDisk::with(files);
    let (container, opened) = match open_as(&disk, LAYOUTS[1]) {
        Ok(opened) => opened,
        // A damaged digit can make a newer version.
        Err(StateError::FutureVersion { .. }) if what.starts_with("bit") => return,
        Err(e) => panic!("{what}: {e}"),
    };
    let last = states.last().unwrap();
    assert!(states.contains(container.entries()), "{what}: {opened:?} {:?}", container.entries());
    match file {
        // The backup and the journals lead to the state of the container.
        NAME => {
            assert_eq!(container.entries(), last, "{what}: {opened:?}");
            assert!(matches!(opened, OpenOutcome::Recovered { from_backup: true, .. }), "{what}: {opened:?}");
        }
        // A line cut off at the end looks like a commit that never finished.
        "notes.journal" if opened == OpenOutcome::Loaded => {
            assert!(states[states.len() - 3..].contains(container.entries()), "{what}");
        }
        "notes.journal" => assert!(matches!(opened, OpenOutcome::Recovered { from_backup: false, .. }), "{what}"),
        _ => assert_eq!((container.entries(), &opened), (last, &OpenOutcome::Loaded), "{what}"),
    }
    let expected = container.entries().clone();
    drop(container);
    let (container, opened) = open_as(&disk, LAYOUTS[1]).unwrap();
    assert_eq!((container.entries(), opened), (&expected, OpenOutcome::Loaded), "{what}, opened again");
}

#[test]
fn file_cut_short_at_any_byte_is_recovered() {
    for layout in LAYOUTS {
        let (files, states) = lived_in(layout);
        assert!(files.keys().map(String::as_str).eq(["notes", "notes.bak", "notes.journal", "notes.journal.bak"]));
        for file in ALL {
            for length in 0..files[file].len() {
                let mut cut = files.clone();
                cut.get_mut(file).unwrap().truncate(length);
                assert_sound(&cut, &states, file, &format!("{layout:?}: {file} cut to {length} bytes"));
            }
        }
    }
}

#[test]
fn file_with_a_flipped_bit_is_recovered() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for layout in LAYOUTS {
        let (files, states) = lived_in(layout);
        for file in ALL {
            for at in 0..files[file].len() {
                let bit = random.u8(0..8);
                let mut flipped = files.clone();
                flipped.get_mut(file).unwrap()[at] ^= 1 << bit;
                assert_sound(&flipped, &states, file, &format!("bit {bit} of byte {at} of {file}, {layout:?}"));
            }
        }
    }
}

fn any_entry() -> impl Strategy<Value = BaseEntry> {
    let stat = (any::<u64>(), any::<i64>(), any::<i64>(), 1..=u64::MAX);
    let stat = stat.prop_map(|(size, mtime_ns, ctime_ns, inode)| FileStat { size, mtime_ns, ctime_ns, inode });
    (0..3u8, any::<[u8; 16]>(), proptest::option::of(stat), any::<u64>()).prop_map(|(kind, md5, stat, version)| {
        let md5 = Md5::from_bytes(md5);
        let base = [Base::Synced(md5), Base::Detached(md5), Base::Seen(md5)][usize::from(kind)];
        BaseEntry { base, stat, version }
    })
}

fn any_path() -> impl Strategy<Value = RelPath> {
    "\\PC{1,12}(/\\PC{1,12}){0,2}".prop_filter_map("a valid path", |text| RelPath::parse(&text).ok())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn written_entries_are_read_back(
        saved in proptest::collection::btree_map(any_path(), any_entry(), 0..20),
        committed in proptest::collection::btree_map(any_path(), any_entry(), 0..5),
        layout in 0..3usize,
    ) {
        let disk = MemDisk::default();
        let (mut container, _) = open_as(&disk, LAYOUTS[layout]).unwrap();
        container.replace_all(saved.clone());
        container.save(at("2026-01-02T00:00:00Z")).unwrap();
        container.commit(committed.clone().into_iter().map(|(p, e)| BaseChange::Set(p, e)).collect()).unwrap();
        let mut expected = saved;
        expected.extend(committed);
        let (container, opened) = open_as(&disk, LAYOUTS[layout]).unwrap();
        prop_assert_eq!(opened, OpenOutcome::Loaded);
        prop_assert_eq!(container.entries(), &expected);
    }
}

#[test]
fn leftover_that_cannot_be_removed_does_not_stop_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(disk::real::RealDisk::open(dir.path()).unwrap());
    // A folder with the name of a temporary file cannot be removed as a file.
    std::fs::create_dir(dir.path().join(format!("{NAME}.tmp.1"))).unwrap();
    std::fs::write(dir.path().join(format!("{NAME}.tmp.2")), "half a container").unwrap();
    let opened = Container::open(disk, NAME, options(LAYOUTS[0]), at("2026-01-01T00:00:00Z"));
    assert_eq!(opened.map(|(_, opened)| opened).unwrap(), OpenOutcome::New);
    assert!(!dir.path().join(format!("{NAME}.tmp.2")).exists());
}

#[test]
fn boot_is_kept_until_a_clean_stop() {
    for layout in LAYOUTS {
        let disk = MemDisk::with(&Files::new());
        let reopen = || open_as(&disk, layout).unwrap().0;
        let mut container = reopen();
        for boot in [Some("first"), None, Some("second")] {
            container.set_boot(boot.map(str::to_owned));
            container.commit(Vec::new()).unwrap();
            assert_eq!(reopen().header().boot.as_deref(), boot, "from the journal");
            container = reopen();
            container.save(at("2026-01-02T00:00:00Z")).unwrap();
            assert_eq!(reopen().header().boot.as_deref(), boot, "from the container");
            container = reopen();
        }
    }
}
