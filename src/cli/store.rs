//! `memsync store`: figures, backups and checks of the embedded store, and moving from one store to another.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::app::App;
use super::args::StoreAction;
use super::exit::{Exit, Failure};
use super::{machine_store, s3, serve, show};
use crate::store::sqlite::upkeep::{self, StoreStats, VerifyReport};
use crate::store::{S3Store, copy};

/// # Errors
/// What the store says.
pub fn run(app: &App, action: StoreAction) -> anyhow::Result<Exit> {
    let dir = |store: Option<PathBuf>| store.unwrap_or_else(|| app.dirs.proxy.clone());
    match action {
        StoreAction::Stats { store } => stats(app, &dir(store)),
        StoreAction::Backup { to, store } => backup(app, &dir(store), &to),
        StoreAction::Restore { from, store } => restore(app, &from, &dir(store)),
        StoreAction::Verify { store } => verify(app, &dir(store)),
        StoreAction::Copy { from, to } => copy_all(app, &from, &to),
    }
}

/// A store and what was done with it.
#[derive(Serialize)]
struct Done<'a> {
    from: &'a Path,
    to: &'a Path,
}

fn stats(app: &App, dir: &Path) -> anyhow::Result<Exit> {
    app.answer(&upkeep::stats(dir)?, |out, stats| people(out, dir, stats))?;
    Ok(Exit::Done)
}

fn people(out: &mut dyn Write, dir: &Path, stats: &StoreStats) -> io::Result<()> {
    writeln!(out, "{}: {} on disk", dir.display(), show::size(stats.database + stats.bodies))?;
    for ns in &stats.namespaces {
        let name = if ns.name.is_empty() { "(no namespace)" } else { &ns.name };
        writeln!(
            out,
            "  {name}: {}, {}; {} earlier versions, {}; {} deleted",
            show::count(usize::try_from(ns.files).unwrap_or(usize::MAX), "file"),
            show::size(ns.bytes),
            ns.earlier_versions,
            show::size(ns.earlier_bytes),
            ns.tombstones
        )?;
    }
    Ok(())
}

fn backup(app: &App, dir: &Path, to: &Path) -> anyhow::Result<Exit> {
    upkeep::backup(dir, to)?;
    app.answer(&Done { from: dir, to }, |out, _| {
        writeln!(out, "{} is a copy of {}; `memsync store restore` brings it back", to.display(), dir.display())
    })?;
    Ok(Exit::Done)
}

fn restore(app: &App, from: &Path, dir: &Path) -> anyhow::Result<Exit> {
    upkeep::restore(from, dir)?;
    app.answer(&Done { from, to: dir }, |out, _| {
        writeln!(
            out,
            "{} is back from {}; start the proxy, and agents that were ahead of it ask for approval",
            dir.display(),
            from.display()
        )
    })?;
    Ok(Exit::Done)
}

fn verify(app: &App, dir: &Path) -> anyhow::Result<Exit> {
    let bar = bar("contents read");
    let verified = upkeep::verify(dir, |read| bar.set_position(read));
    bar.finish_and_clear();
    let verified = verified?;
    app.answer(&verified, |out, verified| {
        let VerifyReport { contents, bytes, damage } = verified;
        writeln!(out, "{contents} contents read, {}; {} damaged", show::size(*bytes), damage.len())?;
        damage.iter().try_for_each(|damage| writeln!(out, "  {damage}"))
    })?;
    if verified.damage.is_empty() {
        return Ok(Exit::Done);
    }
    let why = format!(
        "{}: some contents are damaged; agents that hold these files write them again when they are edited, or bring \
         back a backup with `memsync store restore`",
        dir.display()
    );
    Err(Failure::new(Exit::Error, why).into())
}

#[derive(Serialize)]
struct CopyFigures {
    paths: usize,
    written: usize,
    kept: usize,
    bytes: u64,
    records: usize,
    /// One message for each path, index or record that is not copied.
    failures: Vec<String>,
}

/// What stands for the bucket that the environment names.
const BUCKET: &str = "s3:";

fn copy_all(app: &App, from: &Path, to: &Path) -> anyhow::Result<Exit> {
    if from == to {
        return Err(Failure::new(Exit::Usage, format!("{}: a store is not copied to itself", from.display())).into());
    }
    // Nothing is made for a copy of nothing.
    if from != Path::new(BUCKET) && machine_store::records_if_any(from)?.is_none() {
        let why = format!("{}: there is no store; name the directory that `memsync serve --store` had", from.display());
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let runtime = serve::runtime()?;
    let bar = bar("paths copied");
    let done = Arc::new(AtomicU64::new(0));
    let progress = || bar.set_position(done.fetch_add(1, Ordering::Relaxed) + 1);
    let copied = if from == Path::new(BUCKET) {
        runtime.block_on(async {
            let source = bucket(app).await?;
            // An index that is not exact may lack files.
            source.repair_after_crash().await?;
            let target = machine_store::open(to)?;
            anyhow::Ok(copy::copy(&source, &*target, progress).await?)
        })
    } else if to == Path::new(BUCKET) {
        let source = machine_store::open(from)?;
        runtime.block_on(async { anyhow::Ok(copy::copy(&*source, &bucket(app).await?, progress).await?) })
    } else {
        let (source, target) = (machine_store::open(from)?, machine_store::open(to)?);
        runtime.block_on(async { anyhow::Ok(copy::copy(&*source, &*target, progress).await?) })
    };
    bar.finish_and_clear();
    let copy::CopyReport { paths, written, kept, bytes, records, failures } = copied?;
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let count = failures.len();
    app.answer(&CopyFigures { paths, written, kept, bytes, records, failures }, |out, copied| {
        writeln!(
            out,
            "{} of {}: {} versions written, {}; {} were there already; {}",
            show::count(copied.paths, "path"),
            from.display(),
            copied.written,
            show::size(copied.bytes),
            copied.kept,
            if count == 0 { "all compared".to_owned() } else { format!("{count} failed") }
        )?;
        copied.failures.iter().try_for_each(|failure| writeln!(out, "  {failure}"))
    })?;
    if count == 0 {
        return Ok(Exit::Done);
    }
    let why = format!("{}: {count} of its files were not copied; fix what is listed and copy again", from.display());
    Err(Failure::new(Exit::Error, why).into())
}

/// The bucket that the environment names.
async fn bucket(app: &App) -> anyhow::Result<S3Store> {
    let Some(options) = s3::options(app)? else {
        let why = "`s3:` is the bucket that S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name; set them";
        return Err(Failure::new(Exit::Usage, why).into());
    };
    s3::connect(&options).await
}

/// A count that goes on, on a terminal.
fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    if !io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(&format!("{{spinner}} {{pos}} {what}")) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
