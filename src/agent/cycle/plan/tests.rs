//! Plans without a disk.

use std::sync::Arc;

use super::*;
use crate::agent::BatchOptions;
use crate::local::LocalEntry;
use crate::protocol::{IndexCursor, IndexEntry};
use crate::remote::FetchedIndex;
use crate::sync::{Action, PlanStep};

const CONFIRM: Duration = Duration::from_secs(1);

struct PlanSetting {
    base: BTreeMap<RelPath, BaseEntry>,
    observed: Observed,
    memory: CycleMemory,
    uploads: UnconfirmedUploads,
    in_transit: SlowSteps,
    options: EngineOptions,
    ignored: IgnoreFn,
}

fn path(name: &str) -> RelPath {
    RelPath::parse(name).unwrap()
}

fn live(content: &str) -> IndexEntry {
    IndexEntry {
        md5: Md5::of(content.as_bytes()),
        size: content.len() as u64,
        is_deleted: false,
        version: 0,
        cursor: 0,
    }
}

impl PlanSetting {
    /// Both sides agree on these files.
    fn synced(names: &[&str]) -> Self {
        let mut setting = Self {
            base: BTreeMap::new(),
            observed: Observed { is_confirming: true, ..Observed::default() },
            memory: CycleMemory::default(),
            uploads: UnconfirmedUploads::default(),
            in_transit: SlowSteps::new(),
            options: EngineOptions {
                max_file_size: 100,
                unread_from: u64::MAX,
                max_delete: 0.5,
                concurrency: 1,
                batch: BatchOptions::default(),
                threads: 1,
                fold: false,
                quiet: Duration::ZERO,
                confirm: CONFIRM,
                merge: None,
                origin: String::new(),
                namespace: String::new(),
            },
            ignored: Arc::new(|path: &str, _: bool| path == "ignored"),
        };
        let cursor = Some(IndexCursor { epoch: "e".into(), cursor: 1, floor: 0 });
        setting.observed.index = Some(FetchedIndex { cursor, ..FetchedIndex::default() });
        for name in names {
            let base = Base::Synced(Md5::of(name.as_bytes()));
            setting.base.insert(path(name), BaseEntry { base, stat: None, version: 0 });
            setting.list(name, Some(live(name)));
            setting.find(name, Some(name));
        }
        setting
    }

    fn list(&mut self, name: &str, entry: Option<IndexEntry>) {
        let files = &mut self.observed.index.as_mut().unwrap().files;
        match entry {
            Some(entry) => files.insert(path(name), entry),
            None => files.remove(&path(name)),
        };
    }

    fn find(&mut self, name: &str, content: Option<&str>) {
        let found = content.map(|content| LocalEntry {
            local: LocalState::File(Md5::of(content.as_bytes())),
            stat: None,
            size: content.len() as u64,
        });
        self.observed.tree.put(path(name), found);
    }

    /// A scan at `now` that misses the file.
    fn miss(&mut self, name: &str, now: Duration) {
        self.find(name, None);
        self.observed.scanned_at = now;
        self.memory.missed = self.memory.missed.renewed([&path(name)].into_iter(), now);
    }

    fn input(&self) -> PlanInput<'_> {
        PlanInput {
            base: &self.base,
            observed: &self.observed,
            memory: &self.memory,
            uploads: &self.uploads,
            in_transit: &self.in_transit,
            options: &self.options,
            ignored: &self.ignored,
            now: self.observed.scanned_at,
        }
    }

    /// The plan for all paths. A plan for each path alone has the same steps.
    #[track_caller]
    fn plan(&self) -> Vec<PlanStep> {
        let all = self.input().plan(&TouchedPaths::Everywhere).steps;
        for step in &all {
            let alone = self.input().plan(&TouchedPaths::Paths([step.path.clone()].into())).steps;
            assert!(alone.contains(step), "{step:?} is not in {alone:?}");
        }
        all
    }

    #[track_caller]
    fn action(&self, name: &str) -> Option<Action> {
        self.plan().into_iter().find(|step| step.path == path(name)).map(|step| step.action)
    }
}

#[test]
fn synced_folder_has_nothing_to_do() {
    assert!(PlanSetting::synced(&["a", "b/c"]).plan().is_empty());
}

#[test]
fn nothing_is_planned_without_an_index() {
    let mut setting = PlanSetting::synced(&["a"]);
    setting.find("a", Some("edited"));
    setting.observed.index = None;
    assert!(setting.plan().is_empty());
    assert_eq!(setting.input().plan_local_changes().steps.len(), 1);
}

#[test]
fn deletion_needs_a_second_scan() {
    let mut setting = PlanSetting::synced(&["a"]);
    setting.miss("a", Duration::from_secs(5));
    assert_eq!(setting.action("a"), Some(Action::Skip(SkipReason::Vanished)));
    setting.miss("a", Duration::from_secs(6));
    assert_eq!(setting.action("a"), Some(Action::DeleteRemote { base: Md5::of(b"a") }));
    setting.observed.is_confirming = false;
    assert_eq!(setting.action("a"), Some(Action::Skip(SkipReason::Vanished)), "the scan did not look at it");
}

#[test]
fn removed_file_is_deleted_after_an_unconfirmed_upload() {
    let mut setting = PlanSetting::synced(&[]);
    setting.uploads.note(&path("a"), Md5::of(b"sent"));
    setting.list("a", Some(live("sent")));
    setting.miss("a", Duration::from_secs(5));
    setting.miss("a", Duration::from_secs(6));
    assert_eq!(setting.action("a"), Some(Action::DeleteRemote { base: Md5::of(b"sent") }));
    setting.list("a", Some(live("theirs")));
    assert_eq!(setting.action("a"), Some(Action::Download { remote: Md5::of(b"theirs") }));
}

#[test]
fn emptied_file_has_no_base() {
    let mut setting = PlanSetting::synced(&["a"]);
    setting.find("a", Some(""));
    assert!(matches!(setting.action("a"), Some(Action::Upload { .. })));
    setting.memory.crash.emptied.insert(path("a"));
    assert!(matches!(setting.action("a"), Some(Action::Conflict { base: None, .. })));
}

#[test]
fn file_is_not_downloaded_when_it_is_ignored_or_too_large() {
    let mut setting = PlanSetting::synced(&[]);
    setting.list("ignored", Some(live("1")));
    setting.list("large", Some(IndexEntry { size: 101, ..live("1") }));
    assert_eq!(setting.action("ignored"), Some(Action::Skip(SkipReason::Ignored)));
    assert_eq!(setting.action("large"), Some(Action::Skip(SkipReason::TooLarge(101))));
}

#[test]
fn expired_tombstone_is_obeyed_where_the_index_is_exact() {
    let mut setting = PlanSetting::synced(&["a"]);
    setting.list("a", None);
    assert!(matches!(setting.action("a"), Some(Action::Probe { .. })));
    setting.observed.has_expired_tombstones = true;
    assert!(matches!(setting.action("a"), Some(Action::Trash { .. })));
}

#[test]
fn blob_answer_counts_until_the_index_changes() {
    let mut setting = PlanSetting::synced(&["a"]);
    let (listed, gone) = (live("a"), RemoteSide::Tombstone(Md5::of(b"a")));
    setting.observed.corrections.prove(&path("a"), Some(listed), gone);
    assert!(matches!(setting.action("a"), Some(Action::Trash { .. })));
    setting.list("a", Some(live("theirs")));
    assert!(matches!(setting.action("a"), Some(Action::Replace { .. })));
}

#[test]
fn failed_path_waits_until_it_is_edited() {
    let mut setting = PlanSetting::synced(&["a"]);
    setting.find("a", Some("edited"));
    let failure = super::super::quarantine::PathFailure {
        why: "why".to_owned(),
        content: Some(Md5::of(b"edited")),
        is_open: false,
    };
    setting.memory.quarantine.fail(&path("a"), failure, Duration::ZERO, 0);
    assert_eq!(setting.action("a"), Some(Action::Skip(SkipReason::Quarantined("why".to_owned()))));
    setting.find("a", Some("edited again"));
    assert!(matches!(setting.action("a"), Some(Action::Upload { .. })));
}
