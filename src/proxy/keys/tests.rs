use super::*;
use crate::store::Store;
use crate::testing::MemoryStore;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn noon() -> Timestamp {
    at("2026-01-01T12:00:00Z")
}

fn hash(made: &Made) -> blake3::Hash {
    hash_of(made.token.expose_secret().as_bytes())
}

/// Until when a token is taken, in seconds from noon; `Some(None)` for ever.
fn taken(keys: &Keys, made: &Made, after: u64) -> Option<Option<i64>> {
    let now = later(noon(), Duration::from_secs(after));
    let (_, taken) = keys.find(&made.key.id, hash(made), now)?;
    Some(taken.until.map(|until| until.duration_since(noon()).as_secs()))
}

#[test]
fn a_key_is_random_and_only_its_hash_is_kept() {
    let mut keys = Keys::default();
    let [one, two] = [(); 2].map(|()| keys.create_key(&NewKey::default(), noon()).unwrap());
    assert_ne!(one.token.expose_secret(), two.token.expose_secret());
    let token = one.token.expose_secret();
    assert_eq!(id_in(token.as_bytes()), Some(one.key.id.as_str()));
    let secret = token.rsplit('_').next().unwrap();
    assert_eq!(secret.len(), 64, "256 bits");
    let written = String::from_utf8(keys.write().unwrap().to_vec()).unwrap();
    assert!(!written.contains(secret) && written.contains(&one.key.id), "{written}");
    assert_eq!(taken(&keys, &one, 0), Some(None));
    assert!(keys.find(&one.key.id, hash(&two), noon()).is_none(), "another key's secret");
    assert!(keys.find("0000000000", hash(&one), noon()).is_none());
}

#[test]
fn what_is_no_key_has_no_id() {
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
fn a_key_stops_when_it_expires() {
    let mut keys = Keys::default();
    let new = NewKey { expires: Some(Duration::from_secs(60)), ..NewKey::default() };
    let made = keys.create_key(&new, noon()).unwrap();
    assert_eq!((taken(&keys, &made, 59), taken(&keys, &made, 60)), (Some(Some(60)), None));
    assert!(!made.key.is_expired(noon()) && made.key.is_expired(at("2026-01-01T12:01:00Z")));
    let new = NewKey { expires: Some(Duration::MAX), ..NewKey::default() };
    assert!(keys.create_key(&new, noon()).unwrap().key.expires.is_some(), "as late as there is");
}

#[test]
fn a_rotated_key_works_with_both_secrets_for_a_while() {
    let mut keys = Keys::default();
    let first = keys.create_key(&NewKey::default(), noon()).unwrap();
    let id = first.key.id.clone();
    let second = keys.rotate(&id, Duration::from_secs(60), None, noon()).unwrap();
    assert_eq!(second.key.id, id);
    assert_eq!((taken(&keys, &first, 59), taken(&keys, &first, 60)), (Some(Some(60)), None));
    assert_eq!(taken(&keys, &second, 61), Some(None));

    let third = keys.rotate(&id, Duration::from_secs(60), None, noon()).unwrap();
    assert_eq!(taken(&keys, &first, 0), None, "the one before the last is gone at once");
    assert_eq!((taken(&keys, &second, 0), taken(&keys, &third, 0)), (Some(Some(60)), Some(None)));
    let fourth = keys.rotate(&id, Duration::ZERO, None, noon()).unwrap();
    assert_eq!((taken(&keys, &third, 0), taken(&keys, &fourth, 0)), (None, Some(None)));
    assert!(matches!(keys.rotate("nobody", Duration::ZERO, None, noon()), Err(KeysError::NoSuchKey(_))));

    // The expiry of the key goes before the grace.
    let new = NewKey { expires: Some(Duration::from_secs(30)), ..NewKey::default() };
    let made = keys.create_key(&new, noon()).unwrap();
    keys.rotate(&made.key.id, Duration::from_secs(60), None, noon()).unwrap();
    assert_eq!((taken(&keys, &made, 0), taken(&keys, &made, 30)), (Some(Some(30)), None));
}

#[test]
fn a_key_that_has_expired_is_rotated_only_to_work_again() {
    let mut keys = Keys::default();
    let new = NewKey { expires: Some(Duration::from_secs(60)), ..NewKey::default() };
    let old = keys.create_key(&new, noon()).unwrap();
    let (id, late) = (old.key.id.clone(), at("2026-01-01T12:02:00Z"));
    let refused = keys.rotate(&id, Duration::from_secs(600), None, late);
    assert!(matches!(refused, Err(KeysError::Expired { .. })));
    let new = keys.rotate(&id, Duration::from_secs(600), Some(Duration::from_secs(600)), late).unwrap();
    assert_eq!((taken(&keys, &new, 121), taken(&keys, &new, 720)), (Some(Some(720)), None));
    assert_eq!(taken(&keys, &old, 121), None, "its old secret stays useless");
    // One that has not expired gets another end in the same way, and both secrets work for the grace.
    let newer = keys.rotate(&id, Duration::from_secs(60), Some(Duration::from_secs(9000)), late).unwrap();
    assert_eq!(
        (taken(&keys, &newer, 9000), taken(&keys, &new, 179), taken(&keys, &new, 180)),
        (Some(Some(9120)), Some(Some(180)), None)
    );
}

#[test]
fn keys_belong_to_users_and_go_with_them() {
    let mut keys = Keys::default();
    let of = |user: &str| NewKey { user: Some(user.to_owned()), ..NewKey::default() };
    assert!(matches!(keys.create_key(&of("ana"), noon()), Err(KeysError::NoSuchUser(_))));
    keys.create_user("ana", Some(10), noon()).unwrap();
    assert!(matches!(keys.create_user("ana", None, noon()), Err(KeysError::UserExists(_))));
    let made = keys.create_key(&of("ana"), noon()).unwrap();
    assert_eq!(made.key.name, "ana");
    let other = keys.create_key(&NewKey::default(), noon()).unwrap();
    assert_eq!(other.key.name, other.key.id);
    assert_eq!(keys.quota("ana").map(|(limit, patterns)| (limit, patterns.len())), Some((10, 1)));
    assert!(keys.quota("bo").is_none());
    assert_eq!(keys.remove_user("ana").unwrap(), [made.key]);
    assert_eq!(keys.keys.keys().collect::<Vec<_>>(), [&other.key.id]);
    assert!(matches!(keys.remove_user("ana"), Err(KeysError::NoSuchUser(_))));
    assert!(matches!(keys.revoke("ana"), Err(KeysError::NoSuchKey(_))));
}

#[test]
fn names_are_plain() {
    let mut keys = Keys::default();
    for name in ["", "a b", "a\nb", "é", "a/b", &"x".repeat(65)] {
        assert!(matches!(keys.create_user(name, None, noon()), Err(KeysError::BadName(_))), "{name:?}");
        let new = NewKey { device: Some(name.to_owned()), ..NewKey::default() };
        assert!(matches!(keys.create_key(&new, noon()), Err(KeysError::BadDevice(_))), "{name:?}");
    }
    keys.create_user("ana.b_c@example.org", None, noon()).unwrap();
    assert_eq!(keys.keys.len(), 0);
}

#[test]
fn the_document_is_read_back_or_refused() {
    let mut keys = Keys::default();
    keys.create_user("ana", Some(7), noon()).unwrap();
    let new = NewKey {
        name: Some("backup".to_owned()),
        user: Some("ana".to_owned()),
        device: Some("desk".to_owned()),
        scope: Scope { namespaces: vec!["team/*".parse().unwrap()], read_only: true },
        expires: Some(Duration::from_secs(5)),
    };
    let made = keys.create_key(&new, noon()).unwrap();
    keys.rotate(&made.key.id, Duration::from_secs(5), None, noon()).unwrap();
    assert_eq!(Keys::parse(&keys.write().unwrap()).unwrap(), keys);
    assert_eq!(made.key.to_string(), format!("{} (backup of ana, read-only team/*)", made.key.id));

    assert!(matches!(Keys::parse(br#"{"format":2,"keys":"other"}"#), Err(KeysError::Newer { found: 2 })));
    for damaged in ["", "{}", "[]", r#"{"format":1,"keys":[{}]}"#, r#"{"format":1"#] {
        assert!(matches!(Keys::parse(damaged.as_bytes()), Err(KeysError::Damaged(_))), "{damaged}");
    }
}

#[test]
fn a_change_is_told_without_a_secret() {
    let before = Keys::default();
    let mut keys = Keys::default();
    keys.create_user("ana", None, noon()).unwrap();
    let made = keys.create_key(&NewKey::default(), noon()).unwrap();
    let told = |keys: &Keys, before: &Keys| -> Vec<_> {
        let changes = keys.changes_since(before);
        let secret = |change: &Change| format!("{change:?}").contains(hash(&made).to_hex().as_str());
        assert!(!changes.iter().any(secret), "{changes:?}");
        changes.into_iter().map(|change| change.what).collect()
    };
    assert_eq!(told(&keys, &before), ["user created", "key created"]);
    let mut rotated = keys.clone();
    rotated.rotate(&made.key.id, Duration::ZERO, None, noon()).unwrap();
    assert_eq!(told(&rotated, &keys), ["key rotated"]);
    assert_eq!(told(&before, &keys), ["user removed", "key revoked"]);
    assert_eq!(told(&keys, &keys), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_at_once_are_all_made() {
    let store = std::sync::Arc::new(MemoryStore::new());
    let makers = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(
            async move { edit(store.as_ref(), |keys| keys.create_key(&NewKey::default(), noon())).await.unwrap() },
        )
    });
    let made = futures::future::join_all(makers).await;
    let keys = load(store.as_ref()).await.unwrap();
    assert!(made.iter().all(|made| keys.keys.contains_key(&made.as_ref().unwrap().key.id)));
    assert_eq!(keys.keys.len(), 8);
}

#[tokio::test]
async fn a_change_that_is_refused_writes_nothing() {
    let store = MemoryStore::new();
    assert!(edit(&store, |keys| keys.revoke("nobody")).await.is_err());
    assert!(store.record(RECORD).await.unwrap().is_none());
}

#[tokio::test]
async fn the_last_use_is_the_latest_and_goes_with_the_key() {
    let store = MemoryStore::new();
    let make = async || edit(&store, |keys| keys.create_key(&NewKey::default(), noon())).await.unwrap().key.id;
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
