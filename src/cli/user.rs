//! `memsync user`: whom the proxy's keys belong to.

use std::io::{self, Write};
use std::path::Path;

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::app::App;
use super::args::keys::UserAction;
use super::exit::Exit;
use super::machine_store::{self, Missing};
use super::{key, serve, show};
use crate::proxy::keys::{self, Keys};
use crate::store::RecordStore;

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    created: Timestamp,
    /// Bytes.
    quota: Option<u64>,
    keys: usize,
}

#[derive(Serialize)]
struct Listing<'a> {
    users: Vec<Listed<'a>>,
}

#[derive(Serialize)]
struct Removed<'a> {
    name: &'a str,
    revoked: Vec<&'a str>,
}

/// # Errors
/// When there is no such user, or one already, or the store cannot be read or written.
pub fn run(app: &App, dir: Option<&Path>, action: &UserAction) -> anyhow::Result<Exit> {
    let place = machine_store::place(app, dir)?;
    let missing = match action {
        UserAction::Create { .. } => Missing::Make,
        _ => Missing::Refuse,
    };
    serve::runtime()?.block_on(async { act(app, &machine_store::records(&place, missing).await?, action).await })
}

async fn act(app: &App, records: &impl RecordStore, action: &UserAction) -> anyhow::Result<Exit> {
    match action {
        UserAction::Create { name, quota } => {
            let user = keys::edit(records, |keys| keys.create_user(name, *quota, Timestamp::now())).await?;
            tracing::info!(target: "memsync::audit", "user created: {name}");
            let listed = Listed { name, created: user.created, quota: user.quota, keys: 0 };
            app.answer(&listed, |out, user| {
                writeln!(out, "User {0}. A key for them: `memsync key create --user {0}`.", user.name)
            })?;
        }
        UserAction::Remove { name } => {
            let revoked = keys::edit(records, |keys| keys.remove_user(name)).await?;
            tracing::info!(target: "memsync::audit", "user removed: {name}");
            revoked.iter().for_each(|key| key::audit("key revoked", key));
            let removed = Removed { name, revoked: revoked.iter().map(|key| key.id.as_str()).collect() };
            app.answer(&removed, |out, removed| {
                writeln!(out, "Removed: user {}, with {}.", removed.name, show::count(removed.revoked.len(), "key"))
            })?;
        }
        UserAction::List => list(app, &keys::load(records).await?)?,
    }
    Ok(Exit::Done)
}

fn list(app: &App, all: &Keys) -> anyhow::Result<()> {
    let count = |name: &str| all.keys.values().filter(|key| key.user.as_deref() == Some(name)).count();
    let users = all.users.values().map(|user| Listed {
        name: &user.name,
        created: user.created,
        quota: user.quota,
        keys: count(&user.name),
    });
    app.answer(&Listing { users: users.collect() }, |out, listing| {
        if listing.users.is_empty() {
            return writeln!(out, "There are no users. Make one with `memsync user create NAME`.");
        }
        table(out, &listing.users)
    })
}

fn table(out: &mut dyn Write, users: &[Listed<'_>]) -> io::Result<()> {
    let now = Timestamp::now();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["user", "keys", "quota", "created"]);
    for user in users {
        table.add_row([
            user.name.to_owned(),
            user.keys.to_string(),
            user.quota.map_or_else(|| "none".to_owned(), show::size),
            show::ago(now, user.created),
        ]);
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    Ok(())
}
