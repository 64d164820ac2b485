//! Notes of uploads, and the header.

use super::*;

#[test]
fn noted_uploads_are_durable_until_their_path_is_settled() {
    let md5 = |n: u64| Md5::of(&n.to_le_bytes());
    let note = |name: &str, n| UploadNote { path: path(name), md5: md5(n) };
    let disk = MemDisk::default().in_boot("1");
    let notes_in = |disk: &MemDisk, boot: &str| -> Vec<UploadNote> {
        open(&MemDisk::with(&disk.files()).in_boot(boot)).unwrap().0.uploads().iter().collect()
    };
    let reopened = |disk: &MemDisk| notes_in(disk, "1");
    let (mut container, _) = open(&disk).unwrap();
    container.commit(vec![set("a", 1)]).unwrap();
    container.note_uploads(vec![note("a", 2), note("b", 3), note("c", 4)]).unwrap();
    assert_eq!(reopened(&disk), [note("a", 2), note("b", 3), note("c", 4)]);
    let ops = disk.ops();
    container.note_uploads(vec![note("a", 2)]).unwrap();
    assert_eq!(disk.ops(), ops, "a known note is written again");
    container.note_uploads(vec![note("a", 5)]).unwrap();
    container.commit(vec![set("b", 3)]).unwrap();
    let left = [note("a", 2), note("a", 5), note("c", 4)];
    let settled = reopened(&disk);
    assert!(left.iter().all(|n| settled.contains(n)) && settled.len() == 3, "{settled:?}");
    container.save(Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(reopened(&disk), settled, "in the container, too");
    assert!(notes_in(&disk, "2").is_empty(), "a power cut may have set the files back behind what was sent");
    container.commit(vec![set("a", 2), BaseChange::Forget(path("c"))]).unwrap();
    assert!(reopened(&disk).is_empty());
    container.note_uploads(vec![note("d", 6)]).unwrap();
    container.replace_all(Entries::new());
    container.commit(Vec::new()).unwrap();
    assert!(reopened(&disk).is_empty());
}

#[test]
fn failed_upload_note_is_written_by_the_next_call() {
    let disk = MemDisk::default().in_boot("1");
    let (mut container, _) = open(&disk).unwrap();
    container.commit(vec![set("a", 1)]).unwrap();
    let note = UploadNote { path: path("a"), md5: Md5::of(b"2") };
    disk.fail(DiskFault::Only(disk.ops()));
    assert!(container.note_uploads(vec![note.clone()]).is_err());
    container.note_uploads(vec![note.clone()]).unwrap();
    let (again, _) = open(&MemDisk::with(&disk.files()).in_boot("1")).unwrap();
    assert_eq!(again.uploads().iter().collect::<Vec<_>>(), [note]);
}

/// Older builds know these steps only, and ignore unknown fields.
#[test]
fn upload_notes_use_steps_that_older_builds_know() {
    let disk = MemDisk::default().in_boot("1");
    let (mut container, _) = open(&disk).unwrap();
    container.note_uploads(vec![UploadNote { path: path("a"), md5: Md5::of(b"2") }]).unwrap();
    let journal = String::from_utf8(disk.files()["notes.journal"].clone()).unwrap();
    let mut steps = 0;
    for line in journal.lines().skip(1) {
        let commit: Vec<serde_json::Value> = serde_json::from_str(&line[9..]).unwrap();
        for step in commit {
            let header = step.get("header").expect("a header");
            assert!(serde_json::from_value::<StateHeader>(header.clone()).is_ok());
            steps += 1;
        }
    }
    assert!(steps > 0, "{journal}");
}

#[test]
fn header_is_durable_with_the_next_commit() {
    let disk = MemDisk::default();
    let (mut container, _) = open(&disk).unwrap();
    let remote = RemoteState {
        origin: "https://proxy.example".into(),
        namespace: "n".into(),
        epoch: Some("e".into()),
        cursor: Some(7),
        obeyed: None,
        set_back: true,
        history: Some(HistoryPoint { id: "h".into(), cursor: 6 }),
    };
    container.bind_folder("folder");
    container.set_remote(remote.clone());
    assert_eq!(disk.ops(), 0);
    container.commit(Vec::new()).unwrap();
    let ops = disk.ops();
    container.set_remote(remote.clone());
    container.commit(Vec::new()).unwrap();
    assert_eq!(disk.ops(), ops, "an unchanged header is written again");
    let (container, _) = open(&disk).unwrap();
    assert_eq!((container.header().folder_id.as_deref(), &container.header().remote), (Some("folder"), &remote));
    assert_eq!(container.header().session_id, "laptop");
}
