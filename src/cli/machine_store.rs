//! The store of this machine, for whoever serves it and for whoever changes its users and keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::app::App;
use super::exit::{Exit, Failure};
use crate::store::embedded::{Beside, Embedded};

/// Where the store is: as it was asked for, else the usual place.
pub fn place(app: &App, asked: Option<&Path>) -> PathBuf {
    asked.map_or_else(|| app.dirs.proxy.clone(), Path::to_owned)
}

/// Opens the store for serving.
///
/// # Errors
/// What the store says.
pub fn open(dir: &Path) -> anyhow::Result<Arc<Embedded>> {
    Ok(Arc::new(Embedded::open(dir)?))
}

/// The private records of the store, also while a proxy serves it.
///
/// # Errors
/// Where there is no store, or as the store says.
pub fn records(dir: &Path) -> anyhow::Result<Beside> {
    records_if_any(dir)?.ok_or_else(|| {
        let why = "there is no store; `memsync key create` makes one, or give --store the directory that one is in";
        Failure::new(Exit::Error, format!("{}: {why}", dir.display())).into()
    })
}

/// [`records`], or `None` where there is no store.
///
/// # Errors
/// As the store says.
pub fn records_if_any(dir: &Path) -> anyhow::Result<Option<Beside>> {
    Ok(Beside::open(dir)?)
}

/// [`records`] of a store that is made where there is none.
///
/// # Errors
/// As the store says.
pub fn records_of_new(dir: &Path) -> anyhow::Result<Beside> {
    Ok(Beside::open_or_create(dir)?)
}
