//! Checks histories of concurrent operations on a path: some order of them must explain every answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use memsync::digest::Md5;
use memsync::store::{BlobMeta, DeleteOutcome, GetOutcome, IndexEntry, PutOutcome, Store, StoreError, WriteCondition};

use super::{path, seed};

/// The content of a path; `None` is absent. The version is unknown after a write without an answer.
type Held = Option<(Md5, bool, Option<u64>)>;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked {
    Put(WriteCondition, Md5),
    Delete(Option<WriteCondition>),
    Get,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Written(u64),
    /// The path's state, from a get or a refused write.
    Holds(Option<(Md5, bool, u64)>),
    /// No answer: it may have happened, may happen later, or never.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub asked: Asked,
    pub answer: Answer,
    /// Ticks of one clock.
    pub began: u64,
    pub ended: u64,
}

/// The rule for the versions of successive writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Versions {
    Grow,
    /// Two tombstones have the same ETag on S3. A proxy that replaces one cannot see a later one that came between.
    Differ,
}

fn held(entry: &IndexEntry) -> (Md5, bool, u64) {
    (entry.md5, entry.is_deleted, entry.version)
}

impl Answer {
    pub(crate) fn from_put(put: &Result<PutOutcome, StoreError>) -> Self {
        match put {
            Ok(PutOutcome::Created(entry) | PutOutcome::Updated(entry)) => Self::Written(entry.version),
            Ok(PutOutcome::Mismatch(found)) => Self::Holds(found.as_ref().map(held)),
            Err(_) => Self::Unknown,
        }
    }

    pub(crate) fn from_delete(deleted: &Result<DeleteOutcome, StoreError>) -> Self {
        match deleted {
            Ok(DeleteOutcome::Done(entry)) => Self::Written(entry.version),
            Ok(DeleteOutcome::Absent) => Self::Holds(None),
            Ok(DeleteOutcome::Tombstone(entry) | DeleteOutcome::Mismatch(entry)) => Self::Holds(Some(held(entry))),
            Err(_) => Self::Unknown,
        }
    }

    pub(crate) fn from_get(got: &Result<GetOutcome, StoreError>) -> Self {
        match got {
            Ok(GetOutcome::Found(blob)) => Self::Holds(Some(held(&blob.entry))),
            Ok(GetOutcome::Tombstone(entry)) => Self::Holds(Some(held(entry))),
            Ok(GetOutcome::Absent) => Self::Holds(None),
            Err(_) => Self::Unknown,
        }
    }
}

fn admits(expect: WriteCondition, state: &Held) -> bool {
    match expect {
        WriteCondition::Absent => state.is_none_or(|(_, deleted, _)| deleted),
        WriteCondition::Md5(md5) => state.is_some_and(|(is, ..)| is == md5),
        WriteCondition::Version(version) => state.is_some_and(|(.., is)| is.is_none_or(|is| is == version)),
    }
}

/// The state after the operation; `None` if the operation cannot have given this answer now.
fn step(operation: &Operation, state: Held, versions: Versions) -> Option<Held> {
    let is = |found: Option<(Md5, bool, u64)>| match (found, state) {
        (None, None) => true,
        (Some((md5, deleted, version)), Some((is, was_deleted, at))) => {
            md5 == is && deleted == was_deleted && at.is_none_or(|at| at == version)
        }
        (None, Some(_)) | (Some(_), None) => false,
    };
    let follows = |at: u64, version: u64| if versions == Versions::Grow { version > at } else { version != at };
    let after = |md5, deleted| match operation.answer {
        Answer::Written(version) if state.is_none_or(|(.., at)| at.is_none_or(|at| follows(at, version))) => {
            Some(Some((md5, deleted, Some(version))))
        }
        Answer::Unknown => Some(Some((md5, deleted, None))),
        Answer::Written(_) | Answer::Holds(_) => None,
    };
    match (operation.asked, operation.answer) {
        (Asked::Get, Answer::Holds(found)) => is(found).then_some(state),
        (Asked::Get, Answer::Written(_) | Answer::Unknown) => None,
        (Asked::Put(expect, _), Answer::Holds(found)) => (is(found) && !admits(expect, &state)).then_some(state),
        (Asked::Put(expect, md5), Answer::Written(_) | Answer::Unknown) => {
            if admits(expect, &state) {
                after(md5, false)
            } else {
                None
            }
        }
        (Asked::Delete(expect), Answer::Holds(found)) => {
            let refused = state.is_none_or(|(_, deleted, _)| deleted || expect.is_some_and(|e| !admits(e, &state)));
            (is(found) && refused).then_some(state)
        }
        (Asked::Delete(expect), Answer::Written(_) | Answer::Unknown) => match state {
            Some((md5, false, _)) if expect.is_none_or(|e| admits(e, &state)) => after(md5, true),
            Some(_) | None => None,
        },
    }
}

/// True if some order that agrees with real time explains every answer. Searches all orders, and remembers the visited
/// states.
pub(crate) fn is_linearizable(history: &[Operation], versions: Versions) -> bool {
    let mut history: Vec<Operation> =
        history.iter().filter(|o| !matches!((o.asked, o.answer), (Asked::Get, Answer::Unknown))).copied().collect();
    history.sort_by_key(|o| o.began);
    let certain = |o: &Operation| o.answer != Answer::Unknown;
    let mut tried = HashSet::new();
    let mut open = vec![(vec![false; history.len()], None)];
    while let Some((done, state)) = open.pop() {
        let left = || history.iter().zip(&done).enumerate().filter(|(_, (_, done))| !**done).map(|(n, (o, _))| (n, o));
        if !left().any(|(_, o)| certain(o)) {
            return true;
        }
        // An operation cannot come before one that ended before it began.
        let first_end = left().filter(|(_, o)| certain(o)).map(|(_, o)| o.ended).min().unwrap_or(u64::MAX);
        for (n, operation) in left().filter(|(_, o)| o.began < first_end) {
            if let Some(next) = step(operation, state, versions) {
                let mut now = done.clone();
                now[n] = true;
                if tried.insert((now.clone(), next)) {
                    open.push((now, next));
                }
            }
        }
    }
    false
}

/// Eight clients read, write and delete two paths, each with a precondition from its last read.
pub(crate) async fn linearizable(store: impl Store, _: Arc<AtomicU64>) {
    linearizable_together(&[Arc::new(store)], Versions::Grow).await;
}

/// As [`linearizable`], for several proxies on one bucket, which share the clients.
pub(crate) async fn linearizable_together(stores: &[Arc<impl Store>], versions: Versions) {
    let seed = seed();
    let tick = Arc::new(AtomicU64::new(0));
    let clients = (0..8u64).zip(stores.iter().cycle().cloned()).map(|(client, store)| {
        let tick = tick.clone();
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed ^ client);
            let mut history = [Vec::new(), Vec::new()];
            let now = || tick.fetch_add(1, Ordering::SeqCst);
            for n in 0..25 {
                let which = usize::from(random.bool());
                let name = path(["x", "y"][which]);
                let began = now();
                let answer = Answer::from_get(&store.get("", &name).await);
                history[which].push(Operation { asked: Asked::Get, answer, began, ended: now() });
                let Answer::Holds(found) = answer else { continue };
                if random.bool() {
                    tokio::task::yield_now().await;
                }
                let expect = match found {
                    Some((_, deleted, version))
                        if random.u8(..3) == 0 && !(deleted && versions == Versions::Differ) =>
                    {
                        WriteCondition::Version(version)
                    }
                    Some((md5, false, _)) => WriteCondition::Md5(md5),
                    Some((_, true, _)) | None => WriteCondition::Absent,
                };
                let content = format!("{client}.{n}");
                let began = now();
                let (asked, answer) = if random.u8(..5) == 0 {
                    let deleted = store.delete("", &name, Some(expect), BlobMeta::default()).await;
                    (Asked::Delete(Some(expect)), Answer::from_delete(&deleted))
                } else {
                    let md5 = Md5::of(content.as_bytes());
                    let put = store.put_bytes("", &name, expect, content.into()).await;
                    (Asked::Put(expect, md5), Answer::from_put(&put))
                };
                history[which].push(Operation { asked, answer, began, ended: now() });
            }
            history
        })
    });
    let clients: Vec<_> = join_all(clients).await.into_iter().map(Result::unwrap).collect();
    for which in 0..2 {
        let history: Vec<Operation> = clients.iter().flat_map(|history| history[which].clone()).collect();
        let written = history.iter().filter(|o| matches!(o.answer, Answer::Written(_))).count();
        assert!(written >= 20, "{written} writes");
        assert!(is_linearizable(&history, versions), "no order explains these answers:\n{history:#?}");
    }
}

#[test]
fn checker_finds_wrong_histories() {
    let check = |history: &[Operation]| is_linearizable(history, Versions::Grow);
    let (a, b) = (Md5::of(b"a"), Md5::of(b"b"));
    let put = |expect, md5, answer, began, ended| Operation { asked: Asked::Put(expect, md5), answer, began, ended };
    let get = |answer, began, ended| Operation { asked: Asked::Get, answer, began, ended };
    let is = |md5, version| Answer::Holds(Some((md5, false, version)));
    let first = put(WriteCondition::Absent, a, Answer::Written(1), 0, 1);
    let lost = put(WriteCondition::Absent, b, is(a, 1), 0, 3);
    assert!(check(&[first, lost, get(is(a, 1), 2, 4)]));
    // Two winners, a stale read, a version that does not grow, an unknown content, a lost write.
    assert!(!check(&[first, put(WriteCondition::Absent, b, Answer::Written(2), 0, 3)]));
    let second = put(WriteCondition::Md5(a), b, Answer::Written(2), 2, 3);
    assert!(!check(&[first, second, get(is(a, 1), 4, 5)]));
    assert!(check(&[first, second, get(is(a, 1), 2, 5)]));
    assert!(!check(&[first, put(WriteCondition::Md5(a), b, Answer::Written(1), 2, 3)]));
    assert!(!check(&[first, get(is(b, 2), 2, 3)]));
    assert!(!check(&[first, get(Answer::Holds(None), 2, 3)]));
    // A write without an answer may have happened or not.
    let unknown = put(WriteCondition::Md5(a), b, Answer::Unknown, 2, 3);
    assert!(check(&[first, unknown, get(is(a, 1), 4, 5), get(is(b, 7), 6, 7)]));
    assert!(!check(&[first, unknown, get(is(b, 7), 4, 5), get(is(a, 1), 6, 7)]));
    let deleted = Operation { asked: Asked::Delete(None), answer: Answer::Written(2), began: 2, ended: 3 };
    assert!(check(&[first, deleted, get(Answer::Holds(Some((a, true, 2))), 4, 5)]));
    assert!(!check(&[deleted]));
}
