//! `memsync user`: creates, lists and removes the users of the proxy. A user owns keys.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::key::{audit_key, open_key_records};
use crate::cli::app::App;
use crate::cli::args::{UserAction, UserArgs};
use crate::cli::exit::Exit;
use crate::cli::machine::proxy_store::MissingStore;
use crate::cli::process::runtime::server_runtime;
use crate::cli::view::format;
use crate::cli::view::table::{new_table, write_table};
use crate::proxy::keys::{self, Keys};
use crate::store::RecordStore;

#[derive(Serialize)]
struct UserRow<'a> {
    name: &'a str,
    created: Timestamp,
    /// Bytes.
    quota: Option<u64>,
    keys: usize,
}

#[derive(Serialize)]
struct UserList<'a> {
    users: Vec<UserRow<'a>>,
}

#[derive(Serialize)]
struct RemovedUser<'a> {
    name: &'a str,
    revoked: Vec<&'a str>,
}

pub(super) fn run(app: &App, args: &UserArgs) -> anyhow::Result<Exit> {
    let missing = match args.action {
        UserAction::Create { .. } => MissingStore::Create,
        _ => MissingStore::Refuse,
    };
    server_runtime()?.block_on(async {
        let records = open_key_records(app, &args.store, missing).await?;
        act(app, &records, &args.action).await
    })
}

async fn act(app: &App, records: &impl RecordStore, action: &UserAction) -> anyhow::Result<Exit> {
    match action {
        UserAction::Create { name, quota } => {
            let user = keys::edit(records, |keys| keys.create_user(name, *quota, Timestamp::now())).await?;
            tracing::info!(target: "memsync::audit", "user created: {name}");
            let listed = UserRow { name, created: user.created, quota: user.quota, keys: 0 };
            app.answer(&listed, |out, user| {
                writeln!(out, "User {0}. Make a key for them: `memsync key create --user {0}`.", user.name)
            })?;
        }
        UserAction::Remove { name } => {
            let revoked = keys::edit(records, |keys| keys.remove_user(name)).await?;
            tracing::info!(target: "memsync::audit", "user removed: {name}");
            revoked.iter().for_each(|key| audit_key("key revoked", key));
            let removed = RemovedUser { name, revoked: revoked.iter().map(|key| key.id.as_str()).collect() };
            app.answer(&removed, |out, removed| {
                writeln!(out, "Removed: user {}, with {}.", removed.name, format::count(removed.revoked.len(), "key"))
            })?;
        }
        UserAction::List => list(app, &keys::load(records).await?)?,
    }
    Ok(Exit::Done)
}

fn list(app: &App, all: &Keys) -> anyhow::Result<()> {
    let count = |name: &str| all.keys.values().filter(|key| key.user.as_deref() == Some(name)).count();
    let users = all.users.values().map(|user| UserRow {
        name: &user.name,
        created: user.created,
        quota: user.quota,
        keys: count(&user.name),
    });
    app.answer(&UserList { users: users.collect() }, |out, listing| {
        if listing.users.is_empty() {
            return writeln!(out, "There are no users. Make one with `memsync user create NAME`.");
        }
        write_users(out, &listing.users)
    })
}

fn write_users(out: &mut dyn Write, users: &[UserRow<'_>]) -> io::Result<()> {
    let now = Timestamp::now();
    let mut table = new_table();
    table.set_header(["user", "keys", "quota", "created"]);
    for user in users {
        table.add_row([
            user.name.to_owned(),
            user.keys.to_string(),
            user.quota.map_or_else(|| "none".to_owned(), format::size),
            format::ago(now, user.created),
        ]);
    }
    write_table(out, &table)
}
