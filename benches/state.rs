//! The cost of the container with 100,000 entries, on a real disk with real fsyncs.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use memsync::digest::Md5;
use memsync::disk::{Disk, DiskFile, FileKind, FileMeta, FileStat};
use memsync::path::RelPath;
use memsync::state::{BaseChange, BaseEntry, Container, StateFormat, StateOptions};
use memsync::sync::Base;

/// One directory in the standard library's API.
struct StdDisk(PathBuf);

struct StdFile(File);

fn meta(m: &std::fs::Metadata) -> FileMeta {
    FileMeta {
        kind: FileKind::File,
        size: m.len(),
        allocated: 0,
        mtime_ns: m.mtime() * 1_000_000_000 + m.mtime_nsec(),
        ctime_ns: m.ctime() * 1_000_000_000 + m.ctime_nsec(),
        inode: m.ino(),
        links: 1,
        device: m.dev(),
        is_mount: false,
        mode: m.mode(),
    }
}

impl DiskFile for StdFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn meta(&self) -> io::Result<FileMeta> {
        Ok(meta(&self.0.metadata()?))
    }
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.0.set_permissions(std::fs::Permissions::from_mode(mode))
    }
}

impl Disk for StdDisk {
    type File = StdFile;
    fn list(&self, dir: &str) -> io::Result<Vec<(OsString, FileMeta)>> {
        std::fs::read_dir(self.0.join(dir))?
            .map(|e| e.and_then(|e| Ok((e.file_name(), meta(&e.metadata()?)))))
            .collect()
    }
    fn stat(&self, path: &str) -> io::Result<FileMeta> {
        Ok(meta(&std::fs::symlink_metadata(self.0.join(path))?))
    }
    fn open(&self, path: &str) -> io::Result<StdFile> {
        File::open(self.0.join(path)).map(StdFile)
    }
    fn create(&self, path: &str) -> io::Result<StdFile> {
        File::create_new(self.0.join(path)).map(StdFile)
    }
    fn append(&self, path: &str) -> io::Result<StdFile> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.0.join(path)).map(StdFile)
    }
    fn mkdir(&self, dir: &str) -> io::Result<()> {
        std::fs::create_dir(self.0.join(dir))
    }
    fn rmdir(&self, dir: &str) -> io::Result<()> {
        std::fs::remove_dir(self.0.join(dir))
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(path))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::hard_link(self.0.join(from), self.0.join(to))?;
        self.unlink(from)
    }
    fn exchange(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.0.join(dir))?.sync_all()
    }
    fn sync_all(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn entry(n: u64) -> BaseEntry {
    let stat = Some(FileStat {
        size: n,
        mtime_ns: 1_705_314_600_123_456_789,
        ctime_ns: 1_705_314_600_123_456_790,
        inode: n + 1,
    });
    BaseEntry { base: Base::Synced(Md5::of(&n.to_le_bytes())), stat, version: 0 }
}

fn path(n: u64) -> RelPath {
    RelPath::parse(&format!("topics/{:03}/note-{n:06}.md", n % 500)).unwrap()
}

fn state(c: &mut Criterion) {
    let mut group = c.benchmark_group("state");
    group.sample_size(10);
    for (what, format, pretty) in [
        ("pretty", StateFormat::Json, true),
        ("compact", StateFormat::Json, false),
        ("msgpack", StateFormat::MsgPack, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = StateOptions { format, pretty, session_id: "bench".into() };
        let open = || {
            let disk = Arc::new(StdDisk(dir.path().to_owned()));
            Container::open(disk, "notes", options.clone(), Timestamp::UNIX_EPOCH).unwrap().0
        };
        let mut container = open();
        container.replace_all((0..100_000).map(|n| (path(n), entry(n))).collect());
        container.save(Timestamp::UNIX_EPOCH).unwrap();
        group
            .bench_function(format!("save 100k {what}"), |b| b.iter(|| container.save(Timestamp::UNIX_EPOCH).unwrap()));
        group.bench_function(format!("open 100k {what}"), |b| b.iter(|| black_box(open())));
        let mut n = 0;
        group.bench_function(format!("commit 1 of 100k {what}"), |b| {
            b.iter(|| {
                n += 1;
                container.commit(vec![BaseChange::Set(path(n % 100_000), entry(n))]).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, state);
criterion_main!(benches);
