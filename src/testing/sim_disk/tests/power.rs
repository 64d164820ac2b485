//! The states that a power cut may leave, and the content that must survive.

use super::*;

/// The different states after `run` and a power cut, of 200 seeds.
fn outcomes(run: impl Fn(&SimDisk)) -> Vec<Vec<(String, Vec<u8>)>> {
    let mut seen = Vec::new();
    for seed in 0..200 {
        let disk = SimDisk::new();
        run(&disk);
        disk.power_cut(&mut Rng::with_seed(seed));
        let mut left: Vec<_> = disk.user_tree("").into_iter().map(|(p, b)| (p, b.to_vec())).collect();
        left.extend(disk.user_tree(PRIVATE_DIR).into_iter().map(|(p, b)| (p, b.to_vec())));
        if !seen.contains(&left) {
            seen.push(left);
        }
    }
    seen.sort();
    seen
}

fn tree(files: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    files.iter().map(|(p, b)| ((*p).to_owned(), b.as_bytes().to_vec())).collect()
}

#[test]
fn content_without_sync_is_anything_up_to_all() {
    let left = outcomes(|d| {
        drop(create(d, "f", b"abc"));
        d.sync_dir("").unwrap();
    });
    assert_eq!(
        left,
        [tree(&[("f", "")]), tree(&[("f", "a")]), tree(&[("f", "ab")]), tree(&[("f", "abc")])],
        "the name is durable, the content is not"
    );
}

#[test]
fn a_synced_file_may_have_lost_its_name() {
    let left = outcomes(|d| synced(d, "f", b"abc"));
    assert_eq!(left, [tree(&[]), tree(&[("f", "abc")])]);
    let left = outcomes(|d| {
        synced(d, "f", b"abc");
        d.sync_dir("").unwrap();
    });
    assert_eq!(left, [tree(&[("f", "abc")])]);
}

#[test]
fn synced_content_survives_an_append() {
    let left = outcomes(|d| {
        let mut log = d.append("log").unwrap();
        log.write_all(b"ab").unwrap();
        log.sync().unwrap();
        d.sync_dir("").unwrap();
        log.write_all(b"cd").unwrap();
    });
    assert_eq!(left, [tree(&[("log", "ab")]), tree(&[("log", "abc")]), tree(&[("log", "abcd")])]);
}

#[test]
fn overwriting_in_place_may_leave_the_old_the_new_or_a_piece() {
    let left = outcomes(|d| {
        d.user_write("f", "OLD").unwrap();
        d.user_write_volatile("f", "new").unwrap();
    });
    let expected = ["", "OLD", "n", "ne", "new"].map(|content| tree(&[("f", content)]));
    assert_eq!(left, expected);
}

#[test]
fn the_old_content_comes_back_with_its_times() {
    for seed in 0..50 {
        let d = SimDisk::new();
        d.set_time(10);
        d.user_write("f", "old").unwrap();
        d.set_time(20);
        d.user_write_volatile("f", "new").unwrap();
        d.power_cut(&mut Rng::with_seed(seed));
        let stat = d.user_stat("f").unwrap();
        let old = d.user_read("f").unwrap() == "old";
        assert_eq!((stat.mtime_ns, stat.ctime_ns), if old { (10, 10) } else { (20, 20) }, "seed {seed}");
    }
}

#[test]
fn names_are_left_as_a_prefix_in_order() {
    let left = outcomes(|d| {
        for name in ["1", "2", "3"] {
            synced(d, name, b"");
        }
        d.unlink("1").unwrap();
    });
    assert_eq!(
        left,
        [
            tree(&[]),
            tree(&[("1", "")]),
            tree(&[("1", ""), ("2", "")]),
            tree(&[("1", ""), ("2", ""), ("3", "")]),
            tree(&[("2", ""), ("3", "")]),
        ]
    );
}

#[test]
fn a_rename_across_folders_is_durable_whole_when_either_is_synced() {
    for dir in ["", "b"] {
        let left = outcomes(|d| {
            d.user_write("x", "1").unwrap();
            d.user_mkdir("b").unwrap();
            d.rename("x", "b/x").unwrap();
            d.sync_dir(dir).unwrap();
        });
        assert_eq!(left, [tree(&[("b/x", "1")])], "{dir:?}");
    }
    let left = outcomes(|d| {
        d.user_write("x", "1").unwrap();
        d.user_mkdir("b").unwrap();
        d.rename("x", "b/x").unwrap();
    });
    assert_eq!(left, [tree(&[("b/x", "1")]), tree(&[("x", "1")])]);
}

#[test]
fn an_exchange_loses_neither_side() {
    let staged = format!("{PRIVATE_DIR}/staged");
    let both = |a, b| tree(&[("x", a), (&staged, b)]);
    let run = |d: &SimDisk| {
        d.user_write("x", "old").unwrap();
        d.user_mkdir(PRIVATE_DIR).unwrap();
        synced(d, &staged, b"new");
        d.sync_dir(PRIVATE_DIR).unwrap();
        d.exchange(&staged, "x").unwrap();
    };
    assert_eq!(outcomes(run), [both("new", "old"), both("old", "new")]);
    let left = outcomes(|d| {
        run(d);
        d.sync_dir(PRIVATE_DIR).unwrap();
    });
    assert_eq!(left, [both("new", "old")]);
}

#[test]
fn syncing_a_folder_takes_what_its_changes_build_on_and_no_more() {
    let left = outcomes(|d| {
        d.user_mkdir("a").unwrap();
        synced(d, "loose", b"");
        d.mkdir("a/new").unwrap();
        synced(d, "a/new/f", b"1");
        d.rename("a/new", "moved").unwrap();
        synced(d, "moved/g", b"2");
        d.sync_dir("moved").unwrap();
    });
    let needed = [("moved/f", "1"), ("moved/g", "2")];
    let with_loose = [("loose", ""), ("moved/f", "1"), ("moved/g", "2")];
    assert_eq!(left, [tree(&with_loose), tree(&needed)], "`loose` was made earlier, but nothing needs it");
}

#[test]
fn removing_a_folder_needs_that_it_was_emptied() {
    let left = outcomes(|d| {
        d.user_write("d/f", "1").unwrap();
        d.user_mkdir("e").unwrap();
        d.rename("d/f", "e/f").unwrap();
        d.rmdir("d").unwrap();
        d.sync_dir("").unwrap();
    });
    assert_eq!(left, [tree(&[("e/f", "1")])]);
}

#[test]
fn user_operation_is_durable_with_its_parents() {
    let left = outcomes(|d| {
        d.mkdir("new").unwrap();
        drop(create(d, "new/f", b"engine"));
        d.user_write("new/f", "user").unwrap();
        d.user_write("deep/er/g", "user").unwrap();
        d.user_replace("new/h", "1").unwrap();
        d.user_replace("new/h", "2").unwrap();
        d.user_rename("new/h", "else/where").unwrap();
        d.user_write("gone", "").unwrap();
        d.user_remove("gone").unwrap();
        d.user_write("all/gone/x", "").unwrap();
        d.user_remove_dir_all("all").unwrap();
    });
    assert_eq!(left, [tree(&[("deep/er/g", "user"), ("else/where", "2"), ("new/f", "user")])]);
}

#[test]
fn sync_all_keeps_all() {
    let run = |d: &SimDisk| {
        d.mkdir("a").unwrap();
        drop(create(d, "a/f", b"1"));
        d.user_write_volatile("a/g", "2").unwrap();
        d.rename("a", "b").unwrap();
        d.sync_all().unwrap();
    };
    assert_eq!(outcomes(run), [tree(&[("b/f", "1"), ("b/g", "2")])]);
    let lazy = outcomes(|d| {
        d.plant_no_fsync(true);
        run(d);
        d.sync_dir("").unwrap();
        d.append("b/f").unwrap().sync().unwrap();
    });
    assert!(lazy.len() > 3, "the planted bug loses nothing: {lazy:?}");
}
