use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret;

use super::document::later;
use super::records::record_use;
use super::*;
use crate::store::{KEYS_RECORD, RecordStore};
use crate::testing::MemoryStore;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn noon() -> Timestamp {
    at("2026-01-01T12:00:00Z")
}

fn hash(made: &IssuedKey) -> blake3::Hash {
    hash_of(made.token.expose_secret().as_bytes())
}

/// Until when a token is valid, in seconds from noon. `Some(None)`: without an end.
fn validity(keys: &Keys, made: &IssuedKey, after: u64) -> Option<Option<i64>> {
    let now = later(noon(), Duration::from_secs(after));
    let (_, validity) = keys.find(&made.key.id, hash(made), now)?;
    Some(validity.until.map(|until| until.duration_since(noon()).as_secs()))
}

#[test]
fn document_has_only_the_hash_of_a_key() {
    let mut keys = Keys::default();
    let [one, two] = [(); 2].map(|()| keys.create_key(&KeySpec::default(), noon()).unwrap());
    assert_ne!(one.token.expose_secret(), two.token.expose_secret());
    let token = one.token.expose_secret();
    assert_eq!(id_in(token.as_bytes()), Some(one.key.id.as_str()));
    let secret = token.rsplit('_').next().unwrap();
    assert_eq!(secret.len(), 64, "256 bits");
    let written = String::from_utf8(keys.to_json().unwrap().to_vec()).unwrap();
    assert!(!written.contains(secret) && written.contains(&one.key.id), "{written}");
    assert_eq!(validity(&keys, &one, 0), Some(None));
    assert!(keys.find(&one.key.id, hash(&two), noon()).is_none(), "another key's secret");
    assert!(keys.find("0000000000", hash(&one), noon()).is_none());
}

#[test]
fn token_of_another_form_has_no_key_id() {
    let digits = "0".repeat(64);
    assert_eq!(id_in(format!("mk_0123456789_{digits}").as_bytes()), Some("0123456789"));
    for token in [
        format!("mk_012345678_{digits}"),
        format!("mk_0123456789_{digits}0"),
        format!("mk_0123456789{digits}"),
        format!("xk_0123456789_{digits}"),
        format!("mk_012345678g_{digits}"),
        "mk_".to_owned(),
        String::new(),
    ] {
        assert_eq!(id_in(token.as_bytes()), None, "{token}");
    }
    assert_eq!(id_in(b"mk_0123456789_\xff"), None);
}

#[test]
fn key_stops_working_at_its_expiry() {
    let mut keys = Keys::default();
    let new = KeySpec { expires: Some(Duration::from_secs(60)), ..KeySpec::default() };
    let made = keys.create_key(&new, noon()).unwrap();
    assert_eq!((validity(&keys, &made, 59), validity(&keys, &made, 60)), (Some(Some(60)), None));
    assert!(!made.key.is_expired(noon()) && made.key.is_expired(at("2026-01-01T12:01:00Z")));
    let new = KeySpec { expires: Some(Duration::MAX), ..KeySpec::default() };
    assert!(keys.create_key(&new, noon()).unwrap().key.expires.is_some(), "the latest time there is");
}

#[test]
fn old_secret_works_during_the_grace_period() {
    let mut keys = Keys::default();
    let first = keys.create_key(&KeySpec::default(), noon()).unwrap();
    let id = first.key.id.clone();
    let second = keys.rotate(&id, Duration::from_secs(60), None, noon()).unwrap();
    assert_eq!(second.key.id, id);
    assert_eq!((validity(&keys, &first, 59), validity(&keys, &first, 60)), (Some(Some(60)), None));
    assert_eq!(validity(&keys, &second, 61), Some(None));

    let third = keys.rotate(&id, Duration::from_secs(60), None, noon()).unwrap();
    assert_eq!(validity(&keys, &first, 0), None, "only one old secret has a grace period");
    assert_eq!((validity(&keys, &second, 0), validity(&keys, &third, 0)), (Some(Some(60)), Some(None)));
    let fourth = keys.rotate(&id, Duration::ZERO, None, noon()).unwrap();
    assert_eq!((validity(&keys, &third, 0), validity(&keys, &fourth, 0)), (None, Some(None)));
    assert!(matches!(keys.rotate("absent", Duration::ZERO, None, noon()), Err(KeysError::NoSuchKey(_))));

    // The grace period ends with the key.
    let new = KeySpec { expires: Some(Duration::from_secs(30)), ..KeySpec::default() };
    let made = keys.create_key(&new, noon()).unwrap();
    keys.rotate(&made.key.id, Duration::from_secs(60), None, noon()).unwrap();
    assert_eq!((validity(&keys, &made, 0), validity(&keys, &made, 30)), (Some(Some(30)), None));
}

#[test]
fn expired_key_is_rotated_only_with_a_new_expiry() {
    let mut keys = Keys::default();
    let new = KeySpec { expires: Some(Duration::from_secs(60)), ..KeySpec::default() };
    let old = keys.create_key(&new, noon()).unwrap();
    let (id, late) = (old.key.id.clone(), at("2026-01-01T12:02:00Z"));
    let refused = keys.rotate(&id, Duration::from_secs(600), None, late);
    assert!(matches!(refused, Err(KeysError::Expired { .. })));
    let new = keys.rotate(&id, Duration::from_secs(600), Some(Duration::from_secs(600)), late).unwrap();
    assert_eq!((validity(&keys, &new, 121), validity(&keys, &new, 720)), (Some(Some(720)), None));
    assert_eq!(validity(&keys, &old, 121), None, "the expired secret stays invalid");
    // A key that has not expired gets a new expiry too, and both secrets work for the grace period.
    let newer = keys.rotate(&id, Duration::from_secs(60), Some(Duration::from_secs(9000)), late).unwrap();
    assert_eq!(
        (validity(&keys, &newer, 9000), validity(&keys, &new, 179), validity(&keys, &new, 180)),
        (Some(Some(9120)), Some(Some(180)), None)
    );
}

#[test]
fn removing_a_user_revokes_its_keys() {
    let mut keys = Keys::default();
    let of = |user: &str| KeySpec { user: Some(user.to_owned()), ..KeySpec::default() };
    assert!(matches!(keys.create_key(&of("ana"), noon()), Err(KeysError::NoSuchUser(_))));
    keys.create_user("ana", Some(10), noon()).unwrap();
    assert!(matches!(keys.create_user("ana", None, noon()), Err(KeysError::UserExists(_))));
    let made = keys.create_key(&of("ana"), noon()).unwrap();
    assert_eq!(made.key.name, "ana");
    let other = keys.create_key(&KeySpec::default(), noon()).unwrap();
    assert_eq!(other.key.name, other.key.id);
    assert_eq!(keys.quota("ana").map(|(limit, patterns)| (limit, patterns.len())), Some((10, 1)));
    assert!(keys.quota("bo").is_none());
    assert_eq!(keys.remove_user("ana").unwrap(), [made.key]);
    assert_eq!(keys.keys.keys().collect::<Vec<_>>(), [&other.key.id]);
    assert!(matches!(keys.remove_user("ana"), Err(KeysError::NoSuchUser(_))));
    assert!(matches!(keys.revoke("ana"), Err(KeysError::NoSuchKey(_))));
}

#[test]
fn names_with_other_characters_are_refused() {
    let mut keys = Keys::default();
    for name in ["", "a b", "a\nb", "é", "a/b", &"x".repeat(65)] {
        assert!(matches!(keys.create_user(name, None, noon()), Err(KeysError::BadName(_))), "{name:?}");
        let new = KeySpec { device: Some(name.to_owned()), ..KeySpec::default() };
        assert!(matches!(keys.create_key(&new, noon()), Err(KeysError::BadDevice(_))), "{name:?}");
    }
    keys.create_user("ana.b_c@example.org", None, noon()).unwrap();
    assert_eq!(keys.keys.len(), 0);
}

#[test]
fn document_survives_json_and_damage_is_found() {
    let mut keys = Keys::default();
    keys.create_user("ana", Some(7), noon()).unwrap();
    let new = KeySpec {
        name: Some("backup".to_owned()),
        user: Some("ana".to_owned()),
        device: Some("desk".to_owned()),
        scope: KeyScope { namespaces: vec!["team/*".parse().unwrap()], read_only: true },
        expires: Some(Duration::from_secs(5)),
    };
    let made = keys.create_key(&new, noon()).unwrap();
    keys.rotate(&made.key.id, Duration::from_secs(5), None, noon()).unwrap();
    assert_eq!(Keys::parse(&keys.to_json().unwrap()).unwrap(), keys);
    assert_eq!(made.key.to_string(), format!("{} (backup of ana, read-only team/*)", made.key.id));

    assert!(matches!(Keys::parse(br#"{"format":2,"keys":"other"}"#), Err(KeysError::Newer { found: 2 })));
    let without_access =
        String::from_utf8(keys.to_json().unwrap().to_vec()).unwrap().replace(r#""read_only":true,"#, "");
    for damaged in ["", "{}", "[]", r#"{"format":1,"keys":[{}]}"#, r#"{"format":1"#, r#"{"format":0}"#, &without_access]
    {
        assert!(matches!(Keys::parse(damaged.as_bytes()), Err(KeysError::Damaged(_))), "{damaged}");
    }
}

#[test]
fn logged_change_contains_no_secret() {
    let before = Keys::default();
    let mut keys = Keys::default();
    keys.create_user("ana", None, noon()).unwrap();
    let made = keys.create_key(&KeySpec::default(), noon()).unwrap();
    let actions = |keys: &Keys, before: &Keys| -> Vec<_> {
        let changes = keys.changes_since(before);
        assert!(!format!("{changes:?}").contains(hash(&made).to_hex().as_str()), "{changes:?}");
        changes.into_iter().map(|(action, _)| action).collect()
    };
    assert_eq!(actions(&keys, &before), ["user created", "key created"]);
    let mut rotated = keys.clone();
    rotated.rotate(&made.key.id, Duration::ZERO, None, noon()).unwrap();
    assert_eq!(actions(&rotated, &keys), ["key rotated"]);
    assert_eq!(actions(&before, &keys), ["user removed", "key revoked"]);
    assert_eq!(actions(&keys, &keys), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_edits_are_all_applied() {
    let store = std::sync::Arc::new(MemoryStore::new());
    let tasks = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(
            async move { edit(store.as_ref(), |keys| keys.create_key(&KeySpec::default(), noon())).await.unwrap() },
        )
    });
    let made = futures::future::join_all(tasks).await;
    let keys = load(store.as_ref()).await.unwrap();
    assert!(made.iter().all(|made| keys.keys.contains_key(&made.as_ref().unwrap().key.id)));
    assert_eq!(keys.keys.len(), 8);
}

#[tokio::test]
async fn failed_edit_writes_nothing() {
    let store = MemoryStore::new();
    assert!(edit(&store, |keys| keys.revoke("absent")).await.is_err());
    assert!(store.record(KEYS_RECORD).await.unwrap().is_none());
}

#[tokio::test]
async fn last_use_is_the_latest_until_the_key_is_revoked() {
    let store = MemoryStore::new();
    let make = async || edit(&store, |keys| keys.create_key(&KeySpec::default(), noon())).await.unwrap().key.id;
    let (one, two) = (make().await, make().await);
    let late = at("2026-01-02T00:00:00Z");
    record_use(&store, &one, late).await.unwrap();
    record_use(&store, &one, noon()).await.unwrap();
    record_use(&store, &two, noon()).await.unwrap();
    assert_eq!(last_used(&store).await.unwrap(), BTreeMap::from([(one.clone(), late), (two.clone(), noon())]));
    edit(&store, |keys| keys.revoke(&one)).await.unwrap();
    record_use(&store, &two, late).await.unwrap();
    assert_eq!(last_used(&store).await.unwrap(), BTreeMap::from([(two, late)]));
}
