//! `memsync store`: figures, backups and checks of the embedded store, and copying one store to another.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::StoreAction;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::machine::proxy_store::{open_sqlite, records_in};
use crate::cli::machine::s3_store;
use crate::cli::process::runtime::server_runtime;
use crate::cli::view::format;
use crate::store::sqlite::upkeep::{self, StoreStats, VerifyReport};
use crate::store::{S3Store, copy};

/// The name of the bucket that the environment names, where a store is asked for.
const BUCKET: &str = "s3:";

pub(super) fn run(app: &App, action: StoreAction) -> anyhow::Result<Exit> {
    let dir = |store: Option<PathBuf>| store.unwrap_or_else(|| app.dirs.proxy.clone());
    match action {
        StoreAction::Stats { store } => stats(app, &dir(store)),
        StoreAction::Backup { to, store } => backup(app, &dir(store), &to),
        StoreAction::Restore { from, store } => restore(app, &from, &dir(store)),
        StoreAction::Verify { store } => verify(app, &dir(store)),
        StoreAction::Copy { from, to } => copy_store(app, &from, &to),
    }
}

#[derive(Serialize)]
struct StoreTransfer<'a> {
    from: &'a Path,
    to: &'a Path,
}

fn stats(app: &App, dir: &Path) -> anyhow::Result<Exit> {
    app.answer(&upkeep::stats(dir)?, |out, stats| write_stats(out, dir, stats))?;
    Ok(Exit::Done)
}

fn write_stats(out: &mut dyn Write, dir: &Path, stats: &StoreStats) -> io::Result<()> {
    writeln!(out, "{}: {} on disk", dir.display(), format::size(stats.database + stats.bodies))?;
    for ns in &stats.namespaces {
        let name = if ns.name.is_empty() { "(no namespace)" } else { &ns.name };
        writeln!(
            out,
            "  {name}: {}, {}; {} earlier versions, {}; {} deleted",
            format::count(usize::try_from(ns.files).unwrap_or(usize::MAX), "file"),
            format::size(ns.bytes),
            ns.earlier_versions,
            format::size(ns.earlier_bytes),
            ns.tombstones
        )?;
    }
    Ok(())
}

fn backup(app: &App, dir: &Path, to: &Path) -> anyhow::Result<Exit> {
    upkeep::backup(dir, to)?;
    app.answer(&StoreTransfer { from: dir, to }, |out, _| {
        writeln!(out, "{} is a copy of {}; `memsync store restore` brings it back", to.display(), dir.display())
    })?;
    Ok(Exit::Done)
}

fn restore(app: &App, from: &Path, dir: &Path) -> anyhow::Result<Exit> {
    upkeep::restore(from, dir)?;
    app.answer(&StoreTransfer { from, to: dir }, |out, _| {
        writeln!(
            out,
            "{} is back from {}; start the proxy; agents with newer files then ask for approval",
            dir.display(),
            from.display()
        )
    })?;
    Ok(Exit::Done)
}

fn verify(app: &App, dir: &Path) -> anyhow::Result<Exit> {
    let bar = progress_bar("contents read");
    let verified = upkeep::verify(dir, |read| bar.set_position(read));
    bar.finish_and_clear();
    let verified = verified?;
    app.answer(&verified, |out, verified| {
        let VerifyReport { contents, bytes, damage } = verified;
        writeln!(out, "{contents} contents read, {}; {} damaged", format::size(*bytes), damage.len())?;
        damage.iter().try_for_each(|damage| writeln!(out, "  {damage}"))
    })?;
    if verified.damage.is_empty() {
        return Ok(Exit::Done);
    }
    let why = format!(
        "{}: some contents are damaged; an agent that has such a file writes it again when it is edited, or bring \
         back a backup with `memsync store restore`",
        dir.display()
    );
    Err(CommandFailure::new(Exit::Error, why).into())
}

#[derive(Serialize)]
struct CopyAnswer {
    paths: usize,
    written: usize,
    kept: usize,
    bytes: u64,
    records: usize,
    /// One message for each path, index or record that was not copied.
    failures: Vec<String>,
}

fn copy_store(app: &App, from: &Path, to: &Path) -> anyhow::Result<Exit> {
    if from == to {
        return Err(
            CommandFailure::new(Exit::Usage, format!("{}: a store is not copied to itself", from.display())).into()
        );
    }
    // Opening a directory makes a store there, so a wrong source is refused first.
    if from != Path::new(BUCKET) && records_in(from)?.is_none() {
        let why = format!("{}: there is no store; name the directory that `memsync serve --store` had", from.display());
        return Err(CommandFailure::new(Exit::Usage, why).into());
    }
    let bar = progress_bar("paths copied");
    let copied = copy_all(app, from, to, &bar);
    bar.finish_and_clear();
    let copy::CopyReport { paths, written, kept, bytes, records, failures } = copied?;
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let answer = CopyAnswer { paths, written, kept, bytes, records, failures };
    app.answer(&answer, |out, answer| write_copy(out, from, answer))?;
    match answer.failures.len() {
        0 => Ok(Exit::Done),
        count => {
            let from = from.display();
            let why = format!("{from}: {count} of its files were not copied; fix what is listed and copy again");
            Err(CommandFailure::new(Exit::Error, why).into())
        }
    }
}

fn write_copy(out: &mut dyn Write, from: &Path, answer: &CopyAnswer) -> io::Result<()> {
    let CopyAnswer { written, kept, failures, .. } = answer;
    let (paths, size) = (format::count(answer.paths, "path"), format::size(answer.bytes));
    let outcome = if failures.is_empty() { "all compared".to_owned() } else { format!("{} failed", failures.len()) };
    writeln!(
        out,
        "{paths} of {}: {written} versions written, {size}; {kept} were there already; {outcome}",
        from.display()
    )?;
    failures.iter().try_for_each(|failure| writeln!(out, "  {failure}"))
}

fn copy_all(app: &App, from: &Path, to: &Path, bar: &ProgressBar) -> anyhow::Result<copy::CopyReport> {
    let runtime = server_runtime()?;
    let done = AtomicU64::new(0);
    let progress = || bar.set_position(done.fetch_add(1, Ordering::Relaxed) + 1);
    if from == Path::new(BUCKET) {
        runtime.block_on(async {
            let source = bucket(app).await?;
            // After a crash the index may lack files.
            source.repair_after_crash().await?;
            let target = open_sqlite(to)?;
            anyhow::Ok(copy::copy(&source, &*target, progress).await?)
        })
    } else if to == Path::new(BUCKET) {
        let source = open_sqlite(from)?;
        runtime.block_on(async { anyhow::Ok(copy::copy(&*source, &bucket(app).await?, progress).await?) })
    } else {
        let (source, target) = (open_sqlite(from)?, open_sqlite(to)?);
        runtime.block_on(async { anyhow::Ok(copy::copy(&*source, &*target, progress).await?) })
    }
}

/// The bucket that the environment names.
async fn bucket(app: &App) -> anyhow::Result<S3Store> {
    let Some(options) = s3_store::options(app)? else {
        let why = "`s3:` is the bucket that S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name; set them";
        return Err(CommandFailure::new(Exit::Usage, why).into());
    };
    s3_store::connect(&options).await
}

/// A running count, shown on a terminal only.
fn progress_bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(&format!("{{spinner}} {{pos}} {what}")) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
