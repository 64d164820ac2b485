//! `memsync store`: figures, backups and checks of the embedded store, and copying one store to another.
//! `memsync reindex`: rebuilds the index of a store on S3.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::{StoreAction, StoreDir};
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::machine::proxy_store::{bucket_options, connect_bucket, namespace_text};
use crate::cli::process::output;
use crate::cli::process::runtime::server_runtime;
use crate::cli::view::format;
use crate::path::RelPath;
use crate::store::sqlite::upkeep::{self, StoreStats, VerifyReport};
use crate::store::sqlite::{SqliteRecords, SqliteStore};
use crate::store::{S3Store, copy};

/// The name of the bucket that the environment names, where a store is asked for.
const BUCKET: &str = "s3:";

pub(super) fn run(app: &App, action: StoreAction) -> anyhow::Result<Exit> {
    let dir = |dir: StoreDir| dir.store.unwrap_or_else(|| app.dirs.proxy.clone());
    match action {
        StoreAction::Stats(store) => stats(app, &dir(store)),
        StoreAction::Backup { to, store } => backup(app, &dir(store), &to),
        StoreAction::Restore { from, store } => restore(app, &from, &dir(store)),
        StoreAction::Verify(store) => verify(app, &dir(store)),
        StoreAction::Copy { from, to } => copy_store(app, &from, &to),
    }
}

#[derive(Serialize)]
struct StoreTransfer<'a> {
    from: &'a Path,
    to: &'a Path,
}

fn stats(app: &App, dir: &Path) -> anyhow::Result<Exit> {
    app.answer(&upkeep::stats(dir)?, |out, stats| write_stats(out, dir, stats))
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
    })
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
    })
}

fn verify(app: &App, dir: &Path) -> anyhow::Result<Exit> {
    let bar = running_count("contents read");
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
        return Err(CommandFailure::usage(format!("{}: a store is not copied to itself", from.display())).into());
    }
    // Opening a directory makes a store there, so a wrong source is refused first.
    if from != Path::new(BUCKET) && SqliteRecords::open(from)?.is_none() {
        let why = format!("{}: there is no store; name the directory that `memsync serve --store` had", from.display());
        return Err(CommandFailure::usage(why).into());
    }
    let bar = running_count("paths copied");
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
            let target = SqliteStore::open(to)?;
            anyhow::Ok(copy::copy(&source, &target, progress).await?)
        })
    } else if to == Path::new(BUCKET) {
        let source = SqliteStore::open(from)?;
        runtime.block_on(async { anyhow::Ok(copy::copy(&source, &bucket(app).await?, progress).await?) })
    } else {
        let (source, target) = (SqliteStore::open(from)?, SqliteStore::open(to)?);
        runtime.block_on(async { anyhow::Ok(copy::copy(&source, &target, progress).await?) })
    }
}

/// The bucket that the environment names.
async fn bucket(app: &App) -> anyhow::Result<S3Store> {
    let Some(options) = bucket_options(app)? else {
        let why = "`s3:` is the bucket that S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name; set them";
        return Err(CommandFailure::usage(why).into());
    };
    connect_bucket(&options).await
}

/// The repairs in one namespace.
#[derive(Serialize)]
struct NamespaceRepairs<'a> {
    namespace: &'a str,
    files: usize,
    added: &'a [RelPath],
    corrected: &'a [RelPath],
    dropped: &'a [RelPath],
    left_out: &'a [String],
}

pub(super) fn reindex(app: &App) -> anyhow::Result<Exit> {
    let Some(options) = bucket_options(app)? else {
        let why = "reindex is for a proxy on S3: set S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY as for \
                   `memsync serve`; the index of a store in a directory needs no repair";
        return Err(CommandFailure::usage(why).into());
    };
    let (store, reports) = server_runtime()?.block_on(async {
        let store = connect_bucket(&options).await?;
        let reports = store.reindex().await?;
        Ok::<_, anyhow::Error>((store, reports))
    })?;
    let repairs = reports.iter().map(|(namespace, report)| NamespaceRepairs {
        namespace,
        files: report.blobs,
        added: &report.added,
        corrected: &report.corrected,
        dropped: &report.dropped,
        left_out: &report.left_out,
    });
    app.answer(&repairs.collect::<Vec<_>>(), |out, repairs| write_repairs(out, store.url(), repairs))
}

fn write_repairs(out: &mut dyn Write, place: &str, repairs: &[NamespaceRepairs<'_>]) -> io::Result<()> {
    for NamespaceRepairs { namespace, files, added, corrected, dropped, left_out } in repairs {
        for (what, paths) in [("added", added), ("corrected", corrected), ("dropped", dropped)] {
            paths.iter().try_for_each(|path| writeln!(out, "{what:<10} {path}"))?;
        }
        for name in *left_out {
            writeln!(out, "left out   {name:?} (no name that a client could use)")?;
        }
        let [added, corrected, dropped] = [added, corrected, dropped].map(|paths| paths.len());
        let namespace = namespace_text(namespace);
        if added + corrected + dropped == 0 {
            writeln!(out, "{place}, {namespace}: the index is right ({files} files).")?;
        } else {
            writeln!(
                out,
                "{place}, {namespace}: {added} added, {corrected} corrected, {dropped} dropped ({files} files)."
            )?;
        }
    }
    Ok(())
}

fn running_count(what: &'static str) -> ProgressBar {
    let bar = output::progress_bar(&format!("{{spinner}} {{pos}} {what}"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
