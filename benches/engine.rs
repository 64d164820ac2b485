//! The speed of reconcile, of a first scan and of a scan without changes, compared with the minimum that the machine
//! needs for the same files.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use memsync::digest::Md5;
use memsync::disk::real::RealDisk;
use memsync::local::scan::ScanOptions;
use memsync::local::{Folder, LocalTree, ScanScope};
use memsync::path::RelPath;
use memsync::sync::{Base, IndexTrust, LocalState, RemoteSide, reconcile};

fn paths(n: usize) -> Vec<RelPath> {
    (0..n)
        .map(|i| RelPath::parse(&format!("topic-{:02}/area-{:02}/note-{i:06}.md", i % 8, i / 8 % 8)).unwrap())
        .collect()
}

fn reconcile_unchanged(c: &mut Criterion) {
    let md5 = Md5::of(b"x");
    let base: BTreeMap<_, _> = paths(100_000).into_iter().map(|p| (p, Base::Synced(md5))).collect();
    let local: BTreeMap<_, _> = base.keys().map(|p| (p.clone(), LocalState::File(md5))).collect();
    let remote: BTreeMap<_, _> = base.keys().map(|p| (p.clone(), RemoteSide::Live(md5))).collect();
    c.bench_function("reconcile 100,000 unchanged paths", |b| {
        b.iter(|| {
            let plan = reconcile(
                base.iter().map(|(p, e)| (p, *e)),
                &local,
                remote.iter().map(|(p, e)| (p, *e)),
                IndexTrust::Evidence,
                false,
            );
            assert!(black_box(plan).steps.is_empty());
        });
    });
}

fn make(root: &Path, n: usize) {
    for (i, path) in paths(n).iter().enumerate() {
        let file = root.join(path.as_str());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, vec![u8::try_from(i % 251).unwrap(); 3600]).unwrap();
    }
}

fn bare_walk(root: &Path) -> u64 {
    let mut total = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        total += if meta.is_dir() { bare_walk(&entry.path()) } else { meta.len() };
    }
    total
}

fn scans(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), 10_000);
    // Old enough for its stats to be trusted.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let folder = Folder::new(Arc::new(RealDisk::open(dir.path()).unwrap()), "bench", 1);
    let ignored = |_: &str, _: bool| false;
    let options = || ScanOptions {
        same_rules: true,
        max_file_size: u64::MAX,
        unread: &|_, _| false,
        ignored: &ignored,
        base: &|_| None,
        quiet_ns: 0,
        overdue: &|_| false,
        threads: 2,
        now_ns: i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap(),
        stop: &|| false,
    };
    let mut tree = LocalTree::default();
    folder.scan(&mut tree, &ScanScope::full(), &options()).unwrap();
    let mut group = c.benchmark_group("scan of 10,000 files");
    group.sample_size(20);
    group.bench_function("bare walk with stat", |b| b.iter(|| black_box(bare_walk(dir.path()))));
    group.bench_function("warm", |b| {
        b.iter(|| {
            let stats = folder.scan(&mut tree, &ScanScope::full(), &options()).unwrap();
            assert_eq!((stats.files, stats.hashed), (10_000, 0));
        });
    });
    group.bench_function("first", |b| {
        b.iter(|| {
            let stats = folder.scan(&mut LocalTree::default(), &ScanScope::full(), &options()).unwrap();
            assert_eq!(stats.hashed, 10_000);
        });
    });
    group.bench_function("md5sum on both cores", |b| {
        b.iter(|| {
            let ok = std::process::Command::new("sh")
                .arg("-c")
                .arg("find . -type f -print0 | xargs -0 -n 2500 -P 2 md5sum > /dev/null")
                .current_dir(dir.path())
                .status()
                .unwrap();
            assert!(ok.success());
        });
    });
    group.finish();
}

criterion_group!(benches, reconcile_unchanged, scans);
criterion_main!(benches);
