//! git merges notes with memsync as its merge driver.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::common::left_out::left_out;

/// A repository whose notes are merged by memsync. `None` without git.
struct GitRepository(tempfile::TempDir);

impl GitRepository {
    fn new() -> Option<Self> {
        let repository = Self(tempfile::tempdir().unwrap());
        match repository.try_git(&["init"]) {
            Err(e) => {
                left_out(&format!("no git here: {e}"));
                return None;
            }
            Ok(out) => assert!(out.status.success(), "{out:?}"),
        }
        let binary = assert_cmd::cargo::cargo_bin("memsync");
        let driver = format!("'{}' merge %O %A %B --path %P --output %A", binary.display());
        repository.git(&["config", "merge.memsync.driver", &driver]);
        fs::write(repository.path().join(".gitattributes"), "* merge=memsync\n").unwrap();
        Some(repository)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn try_git(&self, args: &[&str]) -> std::io::Result<Output> {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=one"]);
        git.env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", self.path());
        git.args(args).current_dir(self.path()).output()
    }

    #[track_caller]
    fn git(&self, args: &[&str]) {
        let out = self.try_git(args).unwrap();
        assert!(out.status.success(), "{args:?}: {out:?}");
    }

    /// Commits a text of `name` on the current branch.
    fn commit(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.git(&["add", "-A"]);
        self.git(&["commit", "-m", "a note"]);
    }

    /// Both versions of a file on two branches, then the merge.
    fn merge(&self, name: &str, base: Option<&str>, local: &str, remote: &str) -> (bool, String) {
        self.git(&["checkout", "-B", "one"]);
        self.commit(base.map_or("other.md", |_| name), base.unwrap_or("other\n"));
        self.git(&["checkout", "-B", "two"]);
        self.commit(name, remote);
        self.git(&["checkout", "one"]);
        self.commit(name, local);
        let out = self.try_git(&["merge", "two", "-m", "merged"]).unwrap();
        (out.status.success(), fs::read_to_string(self.path().join(name)).unwrap())
    }
}

#[test]
fn git_merges_an_index_with_memsync() {
    let Some(repository) = GitRepository::new() else { return };
    let base = "# Index\n\n- [a](a.md)\n- [b](b.md)\n";
    let local = "# Index\n\n- [a](a.md)\n- [b](b.md)\n- [c](c.md)\n";
    let remote = "# Index\n\n- [a](a.md)\n";
    let merged = repository.merge("my notes/it's.md", Some(base), local, remote);
    assert_eq!(merged, (true, "# Index\n\n- [a](a.md)\n- [c](c.md)\n".to_owned()));
}

#[test]
fn git_merges_json_by_key() {
    let Some(repository) = GitRepository::new() else { return };
    let merged = repository.merge("a.json", Some("{\"a\":1}\n"), "{\"a\":2}\n", "{\"a\":1,\"b\":1}\n");
    assert_eq!(merged, (true, "{\"a\":2,\"b\":1}\n".to_owned()));
}

#[test]
fn git_reports_a_conflict_of_memsync() {
    let Some(repository) = GitRepository::new() else { return };
    let (is_clean, text) = repository.merge("a.md", Some("one\n"), "two\n", "three\n");
    assert_eq!((is_clean, text.as_str()), (false, "two\n"), "the file keeps the local text");
    let status = repository.try_git(&["status", "--porcelain"]).unwrap();
    assert!(String::from_utf8(status.stdout).unwrap().contains("UU a.md"));
}

#[test]
fn git_merges_notes_that_both_sides_began() {
    let Some(repository) = GitRepository::new() else { return };
    let merged = repository.merge("daily/2026-11-20.md", None, "# Day\n\n- call\n", "# Day\n\n- shop\n");
    assert_eq!(merged, (true, "# Day\n\n- call\n- shop\n".to_owned()));
}
