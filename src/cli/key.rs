//! `memsync key`: the keys that may call the proxy.
//!
//! A key goes to stdout alone, once; what there is to say about it goes to stderr.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use comfy_table::{Table, presets};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::Serialize;

use super::app::App;
use super::args::keys::{KeyAction, NewKey};
use super::exit::Exit;
use super::machine_store::{self, Missing};
use super::{output, serve, show};
use crate::proxy::keys::{self, Key, Keys, Made, Scope};
use crate::store::RecordStore;

/// A key for lists.
#[derive(Serialize)]
pub struct Listed<'a> {
    id: &'a str,
    name: &'a str,
    user: Option<&'a str>,
    device: Option<&'a str>,
    #[serde(flatten)]
    scope: &'a Scope,
    created: Timestamp,
    /// Within five minutes.
    last_used: Option<Timestamp>,
    expires: Option<Timestamp>,
    expired: bool,
}

#[derive(Serialize)]
struct Listing<'a> {
    keys: Vec<Listed<'a>>,
}

/// A new secret, the only time it is shown.
#[derive(Serialize)]
struct Shown<'a> {
    token: &'a str,
    #[serde(flatten)]
    key: Listed<'a>,
}

/// # Errors
/// When there is no such key or user, or the store cannot be read or written.
pub fn run(app: &App, dir: Option<&Path>, action: &KeyAction) -> anyhow::Result<Exit> {
    let place = machine_store::place(app, dir)?;
    let missing = match action {
        KeyAction::Create(_) => Missing::Make,
        _ => Missing::Refuse,
    };
    serve::runtime()?.block_on(async { act(app, &machine_store::records(&place, missing).await?, action).await })
}

async fn act(app: &App, records: &impl RecordStore, action: &KeyAction) -> anyhow::Result<Exit> {
    let now = Timestamp::now();
    match action {
        KeyAction::Create(new) => {
            let wanted = wanted(new);
            let made = keys::edit(records, |keys| keys.create_key(&wanted, now)).await?;
            audit("key created", &made.key);
            told(app, &made, now)?;
            output::note(format_args!("Key {}. It is shown this once: keep it in a file of mode 0600.", made.key));
        }
        KeyAction::Rotate { id, grace, expires } => {
            let (made, had_expired) = keys::edit(records, |keys| {
                let had_expired = keys.keys.get(id).is_some_and(|key| key.is_expired(now));
                Ok((keys.rotate(id, *grace, *expires, now)?, had_expired))
            })
            .await?;
            audit("key rotated", &made.key);
            told(app, &made, now)?;
            let old = if grace.is_zero() || had_expired {
                "The old secret no longer works.".to_owned()
            } else {
                format!("The old secret works for {} more.", show::span(*grace))
            };
            output::note(format_args!("Key {} has a new secret, shown this once. {old}", made.key));
        }
        KeyAction::Revoke { id } => {
            let key = keys::edit(records, |keys| keys.revoke(id)).await?;
            audit("key revoked", &key);
            let used = BTreeMap::new();
            app.answer(&listed(&key, &used, now), |out, _| writeln!(out, "Revoked: key {key}."))?;
        }
        KeyAction::List => {
            let all = keys::load(records).await?;
            // It decides nothing, so the list is shown all the same.
            let used = keys::last_used(records).await.unwrap_or_else(|e| {
                tracing::warn!("when the keys were last used cannot be told: {e}");
                BTreeMap::new()
            });
            list(app, &all, &used, now)?;
        }
    }
    Ok(Exit::Done)
}

fn wanted(new: &NewKey) -> keys::NewKey {
    let mut scope = Scope { read_only: new.read_only, ..Scope::default() };
    if !new.namespaces.is_empty() {
        scope.namespaces.clone_from(&new.namespaces);
    }
    keys::NewKey {
        name: new.name.clone(),
        user: new.user.clone(),
        device: new.device.clone(),
        scope,
        expires: new.expires,
    }
}

/// The proxy that serves the store logs the change as well, when it notices.
pub fn audit(what: &str, key: &Key) {
    tracing::info!(target: "memsync::audit", "{what}: {key}");
}

fn told(app: &App, made: &Made, now: Timestamp) -> anyhow::Result<()> {
    let used = BTreeMap::new();
    let shown = Shown { token: made.token.expose_secret(), key: listed(&made.key, &used, now) };
    app.answer(&shown, |out, shown| writeln!(out, "{}", shown.token))
}

fn listed<'a>(key: &'a Key, used: &BTreeMap<String, Timestamp>, now: Timestamp) -> Listed<'a> {
    Listed {
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

fn list(app: &App, all: &Keys, used: &BTreeMap<String, Timestamp>, now: Timestamp) -> anyhow::Result<()> {
    let mut listing = Listing { keys: all.keys.values().map(|key| listed(key, used, now)).collect() };
    listing.keys.sort_by_key(|key| (key.created, key.id));
    app.answer(&listing, |out, listing| {
        if listing.keys.is_empty() {
            return writeln!(out, "There are no keys. Make one with `memsync key create`.");
        }
        table(out, &listing.keys, now)
    })
}

fn table(out: &mut dyn Write, keys: &[Listed<'_>], now: Timestamp) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["id", "name", "user", "may", "created", "last used", "expires"]);
    for key in keys {
        let expires = match key.expires {
            Some(at) if key.expired => format!("expired {}", show::ago(now, at)),
            Some(at) => show::day(at),
            None => "never".to_owned(),
        };
        table.add_row([
            key.id.to_owned(),
            key.name.to_owned(),
            key.user.unwrap_or("–").to_owned(),
            show::name(&key.scope.to_string()),
            show::ago(now, key.created),
            key.last_used.map_or_else(|| "never".to_owned(), |at| show::ago(now, at)),
            expires,
        ]);
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    Ok(())
}
