//! Displaced files that are left in the stage.

use super::*;

/// Conflict copies of files whose names start with `start` cannot be made.
fn refuse_copies(story: &Story, start: &'static str) {
    let is_copy = move |to: &str| to.starts_with(start) && to.contains(".conflict-");
    story.disk.set_hook(Some(Box::new(move |op| match op.kind {
        StepKind::RenameNew if op.to.is_some_and(is_copy) => StepFate::Fail(ErrorKind::Other),
        _ => StepFate::Go,
    })));
}

#[test]
fn displaced_file_is_put_in_order_after_a_failed_commit() {
    let mut story = Story::new(FakeConfig::default());
    let (first, second) = (RelPath::parse("first").unwrap(), RelPath::parse("second").unwrap());
    for path in [&first, &second] {
        story.disk.user_write(path.as_str(), "before").unwrap();
    }
    story.settle();
    for path in [&first, &second] {
        story.disk.user_write(path.as_str(), format!("my {path}")).unwrap();
        story.server.foreign_put(path, format!("their {path}"));
    }
    refuse_copies(&story, "");
    while !story.engine.has_leftovers() {
        story.cycle(ScanScope::full()).unwrap();
    }
    // The sweep makes the first copy. The state cannot be written, and the second file is left.
    refuse_copies(&story, "second");
    story.state.set_hook(Some(Box::new(|op| match op.kind {
        kind if kind.writes() => StepFate::Fail(ErrorKind::StorageFull),
        _ => StepFate::Go,
    })));
    story.cycle(ScanScope::full()).unwrap_err();
    assert!(story.disk.user_tree("").keys().any(|name| name.starts_with("first.conflict-")));
    assert!(story.engine.problems().contains_key(&second), "{:?}", story.engine.problems());
    story.disk.set_hook(None);
    story.state.set_hook(None);
    story.settle();
    let contents: BTreeSet<_> = story.disk.user_tree("").into_values().collect();
    assert_eq!(contents, ["my first", "my second", "their first", "their second"].map(Into::into).into());
    assert!(story.disk.user_tree(".memsync/stage").is_empty() && !story.engine.has_leftovers());
}
