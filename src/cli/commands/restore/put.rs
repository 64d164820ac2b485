//! Puts a version in its place. The present file goes to history first.

use anyhow::Context;

use crate::cli::app::App;
use crate::cli::folder::{ConfiguredFolder, change_file};
use crate::cli::versions::EarlierVersion;
use crate::local::{ChangeOutcome, FolderChange};

/// Gives the file at `at` the content of a version. `fetch` gives the content if no file here has it.
pub(super) fn put_version(
    app: &App,
    open: &ConfiguredFolder,
    version: &EarlierVersion,
    fetch: impl FnOnce() -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<ChangeOutcome> {
    let put = |from: &str| {
        let put = FolderChange::Put { from: from.to_owned(), at: version.path.clone() };
        change_file(app, open, &put)
    };
    if let Some(file) = &version.file {
        return put(file);
    }
    let fetched = open.folder.keep_fetched(&fetch()?);
    let fetched = fetched.with_context(|| format!("{}: the version cannot be kept", open.root.display()))?;
    put(fetched.path())
}
