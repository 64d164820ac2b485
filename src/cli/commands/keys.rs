//! `memsync key` and `memsync user`: creates, lists, rotates and revokes the keys of the proxy, and the users who own them.
//!
//! stdout carries a new key alone. Messages go to stderr.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Serialize;

use crate::cli::app::App;
use crate::cli::args::{KeyAction, KeyArgs, NewKeyArgs, UserAction, UserArgs};
use crate::cli::exit::Exit;
use crate::cli::machine::proxy_store::{MissingStore, open_records};
use crate::cli::process::output;
use crate::cli::process::runtime::server_runtime;
use crate::cli::view::format::{self, new_table, write_table};
use crate::proxy::keys::{self, IssuedKey, Key, KeyScope, KeySpec};
use crate::store::RecordStore;

/// A key without its secret.
#[derive(Serialize)]
struct KeyRow<'a> {
    id: &'a str,
    name: &'a str,
    user: Option<&'a str>,
    device: Option<&'a str>,
    #[serde(flatten)]
    scope: &'a KeyScope,
    created: Timestamp,
    /// Exact to five minutes.
    last_used: Option<Timestamp>,
    expires: Option<Timestamp>,
    expired: bool,
}

/// A key with its secret, which is shown only once.
#[derive(Serialize)]
struct NewSecret<'a> {
    token: &'a str,
    #[serde(flatten)]
    key: KeyRow<'a>,
}

#[derive(Serialize)]
struct UserRow<'a> {
    name: &'a str,
    created: Timestamp,
    /// Bytes.
    quota: Option<u64>,
    keys: usize,
}

#[derive(Serialize)]
struct RemovedUser<'a> {
    name: &'a str,
    revoked: Vec<&'a str>,
}

pub(super) fn run_key(app: &App, args: &KeyArgs) -> anyhow::Result<Exit> {
    let missing = match args.action {
        KeyAction::Create(_) => MissingStore::Create,
        _ => MissingStore::Refuse,
    };
    server_runtime()?.block_on(async {
        let records = open_records(app, args.store.store.as_deref(), missing).await?;
        act_on_keys(app, &records, &args.action).await
    })
}

async fn act_on_keys(app: &App, records: &impl RecordStore, action: &KeyAction) -> anyhow::Result<Exit> {
    let now = Timestamp::now();
    match action {
        KeyAction::Create(new) => {
            let made = keys::edit(records, |keys| keys.create_key(&new_key(new), now)).await?;
            audit_key("key created", &made.key);
            show_secret(app, &made, now)?;
            output::note(format_args!("Key {}. It is shown only once: keep it in a file of mode 0600.", made.key));
        }
        KeyAction::Rotate { id, grace, expires } => {
            let (made, had_expired) = keys::edit(records, |keys| {
                let had_expired = keys.keys.get(id).is_some_and(|key| key.is_expired(now));
                Ok((keys.rotate(id, *grace, *expires, now)?, had_expired))
            })
            .await?;
            audit_key("key rotated", &made.key);
            show_secret(app, &made, now)?;
            let old = if grace.is_zero() || had_expired {
                "The old secret no longer works.".to_owned()
            } else {
                format!("The old secret works for {} more.", format::span(*grace))
            };
            output::note(format_args!("Key {} has a new secret, shown only once. {old}", made.key));
        }
        KeyAction::Revoke { id } => {
            let key = keys::edit(records, |keys| keys.revoke(id)).await?;
            audit_key("key revoked", &key);
            app.answer(&key_row(&key, &BTreeMap::new(), now), |out, _| writeln!(out, "Revoked: key {key}."))?;
        }
        KeyAction::List => {
            let all = keys::load(records).await?;
            // The last use decides nothing, so the list is shown without it.
            let used = keys::last_used(records).await.unwrap_or_else(|e| {
                tracing::warn!("the last use of the keys is unknown: {e}");
                BTreeMap::new()
            });
            let mut rows: Vec<_> = all.keys.values().map(|key| key_row(key, &used, now)).collect();
            rows.sort_by_key(|key| (key.created, key.id));
            app.answer_list("keys", &rows, |out, rows| write_keys(out, rows, now))?;
        }
    }
    Ok(Exit::Done)
}

fn new_key(new: &NewKeyArgs) -> KeySpec {
    let mut scope = KeyScope { read_only: new.read_only, ..KeyScope::default() };
    if !new.namespaces.is_empty() {
        scope.namespaces.clone_from(&new.namespaces);
    }
    KeySpec { name: new.name.clone(), user: new.user.clone(), device: new.device.clone(), scope, expires: new.expires }
}

/// Logs a change of a key. A proxy that serves the store logs it as well.
fn audit_key(what: &str, key: &Key) {
    tracing::info!(target: "memsync::audit", "{what}: {key}");
}

fn show_secret(app: &App, made: &IssuedKey, now: Timestamp) -> anyhow::Result<Exit> {
    let used = BTreeMap::new();
    let shown = NewSecret { token: made.token.expose_secret(), key: key_row(&made.key, &used, now) };
    app.answer(&shown, |out, shown| writeln!(out, "{}", shown.token))
}

fn key_row<'a>(key: &'a Key, used: &BTreeMap<String, Timestamp>, now: Timestamp) -> KeyRow<'a> {
    KeyRow {
        id: &key.id,
        name: &key.name,
        user: key.user.as_deref(),
        device: key.device.as_deref(),
        scope: &key.scope,
        created: key.created,
        last_used: used.get(&key.id).copied(),
        expires: key.expires,
        expired: key.is_expired(now),
    }
}

fn write_keys(out: &mut dyn Write, keys: &[KeyRow<'_>], now: Timestamp) -> io::Result<()> {
    if keys.is_empty() {
        return writeln!(out, "There are no keys. Make one with `memsync key create`.");
    }
    let mut table = new_table();
    table.set_header(["id", "name", "user", "may", "created", "last used", "expires"]);
    for key in keys {
        let expires = match key.expires {
            Some(at) if key.expired => format!("expired {}", format::ago(now, at)),
            Some(at) => format::day(at),
            None => "never".to_owned(),
        };
        table.add_row([
            key.id.to_owned(),
            key.name.to_owned(),
            key.user.unwrap_or("–").to_owned(),
            format::printable(&key.scope.to_string()),
            format::ago(now, key.created),
            key.last_used.map_or_else(|| "never".to_owned(), |at| format::ago(now, at)),
            expires,
        ]);
    }
    write_table(out, &table)
}

pub(super) fn run_user(app: &App, args: &UserArgs) -> anyhow::Result<Exit> {
    let missing = match args.action {
        UserAction::Create { .. } => MissingStore::Create,
        _ => MissingStore::Refuse,
    };
    server_runtime()?.block_on(async {
        let records = open_records(app, args.store.store.as_deref(), missing).await?;
        act_on_users(app, &records, &args.action).await
    })
}

async fn act_on_users(app: &App, records: &impl RecordStore, action: &UserAction) -> anyhow::Result<Exit> {
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
        UserAction::List => {
            let all = keys::load(records).await?;
            let count = |name: &str| all.keys.values().filter(|key| key.user.as_deref() == Some(name)).count();
            let users = all.users.values().map(|user| UserRow {
                name: &user.name,
                created: user.created,
                quota: user.quota,
                keys: count(&user.name),
            });
            app.answer_list("users", &users.collect::<Vec<_>>(), write_users)?;
        }
    }
    Ok(Exit::Done)
}

fn write_users(out: &mut dyn Write, users: &[UserRow<'_>]) -> io::Result<()> {
    if users.is_empty() {
        return writeln!(out, "There are no users. Make one with `memsync user create NAME`.");
    }
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
