//! `memsync reindex`: rebuilds the index of a store on S3.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use crate::cli::app::App;
use crate::cli::exit::{CommandFailure, Exit};
use crate::cli::machine::s3_store::{self, namespace_text};
use crate::cli::process::runtime::server_runtime;
use crate::path::RelPath;
use crate::store::s3::RepairReport;

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

pub(super) fn run(app: &App) -> anyhow::Result<Exit> {
    let Some(options) = s3_store::options(app)? else {
        let why = "reindex is for a proxy on S3: set S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY as for \
                   `memsync serve`; the index of a store in a directory needs no repair";
        return Err(CommandFailure::new(Exit::Usage, why).into());
    };
    let (store, reports) = server_runtime()?.block_on(async {
        let store = s3_store::connect(&options).await?;
        let reports = store.reindex().await?;
        Ok::<_, anyhow::Error>((store, reports))
    })?;
    app.answer(&repairs(&reports), |out, repairs| write_repairs(out, store.url(), repairs))?;
    Ok(Exit::Done)
}

fn repairs(reports: &BTreeMap<String, RepairReport>) -> Vec<NamespaceRepairs<'_>> {
    reports
        .iter()
        .map(|(namespace, m)| NamespaceRepairs {
            namespace,
            files: m.blobs,
            added: &m.added,
            corrected: &m.corrected,
            dropped: &m.dropped,
            left_out: &m.left_out,
        })
        .collect()
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
