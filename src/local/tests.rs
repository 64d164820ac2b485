mod edit;
mod history;
mod moves;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::conflicts::{conflict_name, is_conflict_name};
use super::history::{HistoryLimits, VersionKind};
use super::scan::{ScanOptions, ScanStats};
use super::stage::StagedFile;
use super::*;
use crate::digest::Md5;
use crate::disk::{Disk, DiskFile, FileKind, FileStat};
use crate::path::RelPath;
use crate::sync::{LocalState, SkipReason};
use crate::testing::{SimDisk, StepFate, StepKind};

const SECOND: i64 = 1_000_000_000;

fn p(path: &str) -> RelPath {
    RelPath::parse(path).unwrap()
}

fn file(content: &str) -> LocalState {
    LocalState::File(Md5::of(content.as_bytes()))
}

pub(super) fn folder() -> (SimDisk, Folder<SimDisk>) {
    let disk = SimDisk::new();
    let folder = Folder::new(Arc::new(disk.handle()), "dev", 1);
    folder.ensure_private().unwrap();
    (disk, folder)
}

fn scan(folder: &Folder<SimDisk>, tree: &mut LocalTree, scope: &ScanScope, now_ns: i64) -> ScanStats {
    let ignored = |path: &str, _: bool| path == "ignored";
    let options = ScanOptions {
        max_file_size: 100,
        unread: &|_, _| false,
        ignored: &ignored,
        base: &|path| (path.as_str() == "based\u{e9}").then(|| Md5::of(b"base")),
        same_rules: false,
        quiet_ns: 0,
        overdue: &|_| false,
        threads: 2,
        now_ns,
        stop: &|| false,
    };
    folder.scan(tree, scope, &options).unwrap()
}

fn full(folder: &Folder<SimDisk>, tree: &mut LocalTree) -> ScanStats {
    scan(folder, tree, &ScanScope::full(), folder.disk().time() + 10 * SECOND)
}

fn paths(names: &[&str]) -> ScanScope {
    ScanScope { paths: names.iter().map(|n| (*n).to_owned()).collect(), ..ScanScope::default() }
}

fn local(tree: &LocalTree, path: &str) -> Option<LocalState> {
    tree.found().get(path).map(|f| f.local.clone())
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn staged(folder: &Folder<SimDisk>, content: &str) -> StagedFile<SimDisk> {
    let mut staging = folder.stage().unwrap();
    staging.write(Bytes::copy_from_slice(content.as_bytes())).unwrap();
    staging.finish(Md5::of(content.as_bytes())).unwrap()
}

fn kept(disk: &SimDisk) -> Vec<(String, String)> {
    let text = |b: bytes::Bytes| String::from_utf8(b.to_vec()).unwrap();
    disk.user_tree(".memsync/history").into_iter().map(|(p, c)| (p, text(c))).collect()
}

/// Makes every call of `kind` on `path` fail.
fn fail_on(disk: &SimDisk, kind: StepKind, path: &'static str) {
    disk.set_hook(Some(Box::new(move |op| match op.kind == kind && op.path == path {
        true => StepFate::Fail(ErrorKind::Other),
        false => StepFate::Go,
    })));
}

/// Replaces the content `expect` of a file.
fn replace(folder: &Folder<SimDisk>, at: &str, content: &str, expect: &str) -> MoveOutcome {
    let staged = staged(folder, content);
    let step = FileMove::Replace { path: p(at), at: at.into(), staged, expect: Md5::of(expect.as_bytes()) };
    folder.perform(vec![step], &[], now()).unwrap().moved.remove(0)
}
