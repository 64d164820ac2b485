use notify::event::{DataChange, Flag, MetadataKind, RemoveKind, RenameMode};

use super::*;

fn shared(patterns: &[&str]) -> (WatchShared, Instant) {
    let list: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
    let shared = WatchShared {
        dirty: DirtySet::new(Duration::from_millis(200), 100),
        state: WATCHING,
        poll_at: None,
        poll_interval: Duration::from_secs(30),
        rules: Arc::new(IgnoreRules::new(&list, None).unwrap()),
    };
    (shared, Instant::now())
}

/// Longer than the wait of a closed file, and shorter than that of an open one.
const MOMENT: Duration = Duration::from_millis(20);

fn scope_of(shared: &mut WatchShared, kind: EventKind, path: &str, now: Instant) -> ScanScope {
    let root = Path::new("/root");
    shared.note(root, &Event::new(kind).add_path(root.join(path)), now);
    shared.dirty.due(now)
}

#[test]
fn each_kind_of_event_has_its_scope() {
    let (mut shared, t) = shared(&["*.tmp"]);
    let nothing = ScanScope::default();
    let path = ScanScope { paths: ["a/b".to_owned()].into(), ..ScanScope::default() };
    let subtree = ScanScope { subtrees: ["a/b".to_owned()].into(), ..ScanScope::default() };
    for (kind, expected) in [
        (EventKind::Access(AccessKind::Close(AccessMode::Read)), &nothing),
        (EventKind::Access(AccessKind::Open(AccessMode::Any)), &nothing),
        (EventKind::Access(AccessKind::Read), &nothing),
        (EventKind::Other, &nothing),
        (EventKind::Create(CreateKind::Folder), &subtree),
        (EventKind::Remove(RemoveKind::File), &path),
        (EventKind::Remove(RemoveKind::Folder), &path),
        (EventKind::Modify(ModifyKind::Name(RenameMode::From)), &path),
        (EventKind::Modify(ModifyKind::Name(RenameMode::To)), &path),
        (EventKind::Modify(ModifyKind::Name(RenameMode::Any)), &path),
    ] {
        assert_eq!(scope_of(&mut shared, kind, "a/b", t), *expected, "{kind:?}");
    }
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    assert_eq!(scope_of(&mut shared, closed, "a/b", t), nothing, "a closed file waits for a moment");
    assert_eq!(shared.dirty.due(t + MOMENT), path);
    for kind in [
        EventKind::Any,
        EventKind::Create(CreateKind::File),
        EventKind::Modify(ModifyKind::Data(DataChange::Any)),
        EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)),
    ] {
        assert_eq!(scope_of(&mut shared, kind, "a/b", t), nothing, "{kind:?}");
        assert_eq!(shared.dirty.due(t + Duration::from_millis(200)), path, "{kind:?}");
    }
}

#[test]
fn root_event_or_lost_events_cause_a_full_scan() {
    let (mut shared, t) = shared(&[]);
    let gone = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    assert_eq!(scope_of(&mut shared, gone, "", t), ScanScope::full());
    assert_eq!(scope_of(&mut shared, EventKind::Remove(RemoveKind::Folder), "", t), ScanScope::full());

    let root = Path::new("/root");
    let rescan = Event::new(EventKind::Other).set_flag(Flag::Rescan);
    assert!(shared.note(root, &rescan, t));
    assert_eq!(shared.dirty.due(t), ScanScope::full());
    shared.note(root, &rescan.clone().add_path(root.join("sub")), t);
    assert_eq!(shared.dirty.due(t).subtrees, ["sub".to_owned()].into());
    shared.note(root, &rescan.add_path("/elsewhere".into()), t);
    assert_eq!(shared.dirty.due(t), ScanScope::full());
}

#[test]
fn removed_private_folder_causes_a_full_scan() {
    let (mut shared, t) = shared(&[]);
    assert_eq!(scope_of(&mut shared, EventKind::Remove(RemoveKind::Folder), ".memsync", t), ScanScope::full());
    assert!(scope_of(&mut shared, EventKind::Remove(RemoveKind::File), ".memsync/stage/1", t).is_empty());
}

#[test]
fn events_of_ignored_paths_are_dropped() {
    let (mut shared, t) = shared(&["*.tmp", "cache/"]);
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    for path in ["a.tmp", "cache/x", ".memsync/staging/1", ".memsync", "sub/.x.md.swp"] {
        assert!(scope_of(&mut shared, closed, path, t).is_empty() && shared.dirty.next_due().is_none(), "{path}");
    }
    assert!(scope_of(&mut shared, EventKind::Create(CreateKind::Folder), "cache", t).is_empty());
    assert!(scope_of(&mut shared, closed, "cache", t).is_empty());
    assert!(!shared.dirty.due(t + MOMENT).is_empty(), "a file of that name is synced");
}

#[cfg(target_os = "linux")]
#[test]
fn name_that_is_not_utf8_causes_a_scan_of_its_folder() {
    use std::os::unix::ffi::OsStrExt;
    let (mut shared, t) = shared(&[]);
    let root = Path::new("/root");
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    shared.note(root, &Event::new(closed).add_path(root.join("a").join(name)), t);
    assert_eq!(shared.dirty.due(t).subtrees, ["a".to_owned()].into());
}

#[test]
fn remedy_names_the_limit_that_was_reached() {
    let (reason, remedy) = explain(&notify::Error::new(ErrorKind::MaxFilesWatch));
    assert!(reason.contains("inotify watches") && remedy.contains("fs.inotify.max_user_watches="));
    let error = io::Error::from_raw_os_error(Errno::MFILE.raw_os_error());
    assert!(explain(&notify::Error::io(error)).1.contains("fs.inotify.max_user_instances="));
    let error = notify::Error::io(io::ErrorKind::PermissionDenied.into()).add_path("/x/secret".into());
    assert!(explain(&error).1.contains("right to read /x/secret"));
}

#[test]
fn limit_reached_later_degrades_to_polling_and_mends() {
    let dir = tempfile::TempDir::new().unwrap();
    let options = WatchOptions {
        debounce: Duration::ZERO,
        poll_interval: Duration::from_secs(30),
        force_poll: false,
        rules: Arc::new(IgnoreRules::new(&[], None).unwrap()),
    };
    let mut watcher = FolderWatcher::start(dir.path(), options, || {}).unwrap();
    assert_eq!((watcher.state(), watcher.next_due()), (WATCHING, None));
    let t = Instant::now();
    lock(&watcher.shared).degrade(explain(&notify::Error::new(ErrorKind::MaxFilesWatch)), t);
    assert_eq!(watcher.state().name(), "degraded");
    let at = watcher.next_due().unwrap();
    assert_eq!(at, t + Duration::from_secs(30));
    assert!(watcher.take_due(at - Duration::from_secs(1)).is_empty());
    assert_eq!(watcher.take_due(at), ScanScope::full());
    if cfg!(target_os = "linux") {
        assert_eq!((watcher.state(), watcher.next_due()), (WATCHING, None), "the limit was raised");
    }
}
