//! Batches: the requests sent, and the checks of the answers.

use memsync::protocol::Precondition;
use memsync::protocol::batch::{self, AnswerHead, BatchWriter, RequestHead};
use memsync::remote::{BatchReply, BatchRequest, DeleteReply, PutReply, Remote};

use crate::remote_http::server::{Reply, Request, Server, Then, reply};
use crate::remote_http::*;

const ALL: &[&str] = &["honest-412", "batch"];

fn ask_put(content: &[u8]) -> BatchRequest {
    BatchRequest::Put { precondition: Precondition::New, version: 0, body: outgoing(content) }
}

fn ask_delete() -> BatchRequest {
    BatchRequest::Delete { md5: Md5::of(b"old"), version: 0 }
}

fn asked(request: &Request) -> Vec<(RequestHead, Bytes)> {
    batch::read(request.body.clone().into()).unwrap()
}

fn answers(of: &[(AnswerHead, &[u8])]) -> Reply {
    let mut writer = BatchWriter::default();
    for (head, content) in of {
        let head = AnswerHead { size: content.len() as u64, ..head.clone() };
        writer.push(&head, content).unwrap();
    }
    reply(200, &[&format!("content-type: {}", batch::CONTENT_TYPE)], &writer.finish())
}

fn head(path: &str, status: u16, content: Option<&[u8]>) -> AnswerHead {
    AnswerHead { path: path.into(), status, md5: content.map(Md5::of), ..AnswerHead::default() }
}

async fn ask(
    server: &Server,
    requests: Vec<(&str, BatchRequest)>,
) -> Result<Option<Vec<Option<BatchReply>>>, RemoteError> {
    let requests = requests.into_iter().map(|(name, ask)| (path(name), ask)).collect();
    remote(server).batch(requests).await
}

#[tokio::test]
async fn proxy_without_batches_gets_no_batch() {
    let server = Server::start(&["honest-412"], |_| reply(500, &[], b"")).await;
    assert!(ask(&server, vec![("a", BatchRequest::Get)]).await.unwrap().is_none());
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn requests_go_alone_while_too_many_batches_are_in_flight() {
    let server = Server::start(ALL, |_| {
        reply(503, &["Retry-After: 5"], br#"{"detail":"no","error_code":"BUSY","context":null}"#)
    })
    .await;
    assert!(ask(&server, vec![("a", BatchRequest::Get)]).await.unwrap().is_none());
    assert_eq!(server.seen().len(), 1);
    // Any other reason to wait holds for single requests as well.
    let server = Server::start(ALL, |_| {
        reply(503, &["Retry-After: 5"], br#"{"detail":"no","error_code":"STORAGE_FAILED","context":null}"#)
    })
    .await;
    let e = ask(&server, vec![("a", BatchRequest::Get)]).await.err().unwrap();
    assert!(matches!(e, RemoteError::Throttled { status: 503, .. }), "{e}");
}

#[tokio::test]
async fn batch_answers_equal_single_answers() {
    let server = Server::start(ALL, |_| {
        let mut lost = head("lost", 412, None);
        (lost.current_md5, lost.is_deleted) = (Some(Md5::of(b"theirs").to_string()), Some(true));
        let mut moved = head("moved", 412, None);
        moved.current_md5 = Some("none".into());
        answers(&[
            (head("ü %2F", 200, Some(b"hello")), b"hello"),
            (head("gone", 404, Some(b"was")), b""),
            (head("new", 201, Some(b"mine")), b""),
            (lost, b""),
            (head("deleted", 204, None), b""),
            (head("absent", 404, None), b""),
            (moved, b""),
            (head("alone", 413, None), b""),
            (head("refused", 400, None), b""),
        ])
    })
    .await;
    let requests = vec![
        ("ü %2F", BatchRequest::Get),
        ("gone", BatchRequest::Get),
        ("new", ask_put(b"mine")),
        ("lost", ask_put(b"mine")),
        ("torn", BatchRequest::Put { precondition: Precondition::New, version: 0, body: failing(b"abcdef", 3) }),
        ("deleted", ask_delete()),
        ("absent", ask_delete()),
        ("moved", ask_delete()),
        ("alone", BatchRequest::Get),
        ("refused", ask_put(b"x")),
    ];
    let mut got = ask(&server, requests).await.unwrap().unwrap().into_iter();
    let mut next = || got.next().unwrap();
    match next() {
        Some(BatchReply::Got(GetReply::Found(blob))) => {
            assert_eq!((blob.md5, blob.size), (Md5::of(b"hello"), Some(5)));
            assert_eq!(read(blob).await.unwrap(), b"hello");
        }
        _ => panic!("a blob"),
    }
    assert!(matches!(next(), Some(BatchReply::Got(GetReply::Absent { tombstone: Some(t) })) if t == Md5::of(b"was")));
    assert!(matches!(next(), Some(BatchReply::Put(PutReply::Stored { version: 0 }))));
    let theirs = PutReply::Mismatch { current: Some(Md5::of(b"theirs")), is_deleted: Some(true), version: 0 };
    assert!(matches!(next(), Some(BatchReply::Put(put)) if put == theirs));
    assert!(next().is_none(), "what could not be read was not sent");
    assert!(matches!(next(), Some(BatchReply::Deleted(DeleteReply::Done))));
    assert!(matches!(next(), Some(BatchReply::Deleted(DeleteReply::Absent))));
    assert!(matches!(next(), Some(BatchReply::Deleted(DeleteReply::Mismatch { current: None }))));
    assert!(next().is_none() && next().is_none(), "refusals are asked for again, alone");

    let seen = server.seen();
    let request = &seen[0];
    assert_eq!((seen.len(), request.method.as_str(), request.target.as_str()), (1, "POST", "/batch"));
    assert_eq!(request.header("content-type"), Some(batch::CONTENT_TYPE));
    assert_eq!(request.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    let asked = asked(request);
    let names: Vec<_> = asked.iter().map(|(head, _)| (head.op.as_str(), head.path.as_str())).collect();
    assert_eq!(names[..3], [("get", "ü %2F"), ("get", "gone"), ("put", "new")]);
    assert_eq!(names[4..7], [("delete", "deleted"), ("delete", "absent"), ("delete", "moved")]);
    assert_eq!((asked[2].0.precondition.as_deref(), &asked[2].1[..]), (Some("new"), &b"mine"[..]));
    assert_eq!(asked[4].0.md5, Some(Md5::of(b"old").to_string()));
}

#[tokio::test]
async fn plain_proxy_proves_no_tombstone_in_a_batch() {
    let server = Server::start(&["batch"], |_| answers(&[(head("a", 404, Some(b"was")), b"")])).await;
    let got = ask(&server, vec![("a", BatchRequest::Get)]).await.unwrap().unwrap();
    assert!(matches!(got[0], Some(BatchReply::Got(GetReply::Absent { tombstone: None }))));
}

#[tokio::test]
async fn batch_without_a_readable_source_is_not_sent() {
    let server = Server::start(ALL, |_| reply(500, &[], b"")).await;
    let torn = || BatchRequest::Put { precondition: Precondition::New, version: 0, body: failing(b"abcdef", 3) };
    let got = ask(&server, vec![("a", torn()), ("b", torn())]).await.unwrap().unwrap();
    assert!(got.len() == 2 && got.iter().all(Option::is_none));
    assert_eq!(server.seen().len(), 0);
}

/// The results of a batch with `a` (get), `b` (put) and `c` (delete).
async fn answered_with(bytes: Reply) -> Result<Vec<Option<BatchReply>>, RemoteError> {
    let server = Server::start(ALL, move |_| bytes.clone()).await;
    let requests = vec![("a", BatchRequest::Get), ("b", ask_put(b"mine")), ("c", ask_delete())];
    ask(&server, requests).await.map(Option::unwrap)
}

#[tokio::test]
async fn inconsistent_batch_answers_are_lost_answers() {
    let a = (head("a", 200, Some(b"hello")), &b"hello"[..]);
    let b = (head("b", 201, Some(b"mine")), &b""[..]);
    let c = (head("c", 204, None), &b""[..]);
    assert!(answered_with(answers(&[a.clone(), b.clone(), c.clone()])).await.unwrap().iter().all(Option::is_some));
    let typed = [&format!("content-type: {}", batch::CONTENT_TYPE)[..]];
    for (what, bytes) in [
        ("another order", answers(&[b.clone(), a.clone(), c.clone()])),
        ("too few", answers(&[a.clone(), b.clone()])),
        ("none", answers(&[])),
        ("too many", answers(&[a.clone(), b.clone(), c.clone(), c.clone()])),
        ("another path", answers(&[(head("A", 200, Some(b"hello")), b"hello"), b.clone(), c.clone()])),
        ("junk", reply(200, &typed, b"junk")),
        ("JSON", reply(200, &["content-type: application/json"], b"[]")),
        ("no type", reply(200, &[], b"")),
        ("a head too long", reply(200, &typed, &[0xff; 64])),
        ("a redirect", reply(302, &["location: /x"], b"")),
    ] {
        let e = answered_with(bytes).await.err().unwrap_or_else(|| panic!("{what} was believed"));
        assert!(matches!(e, RemoteError::Protocol { .. }), "{what}: {e}");
        assert!(!e.ends_cycle() && !format!("{e} {e:?}").contains(TOKEN));
    }
    // An answer that does not fit its request is dropped, even if the batch as a whole fits.
    for (strange, at) in [
        ((head("a", 200, None), &b"hello"[..]), 0),
        ((head("a", 204, None), b""), 0),
        ((head("a", 412, None), b""), 0),
        ((head("b", 201, Some(b"other")), b""), 1),
        ((head("b", 201, None), b""), 1),
        ((head("b", 204, Some(b"mine")), b""), 1),
        ((head("b", 404, None), b""), 1),
        ((head("c", 500, None), b""), 2),
        ((head("c", 0, None), b""), 2),
    ] {
        let mut all = [a.clone(), b.clone(), c.clone()];
        all[at] = strange.clone();
        let got = answered_with(answers(&all)).await.unwrap();
        assert!(got[at].is_none() && got.iter().flatten().count() == 2, "{strange:?}");
    }
}

#[tokio::test]
async fn truncated_batch_answer_is_an_error() {
    let whole = || answers(&[(head("a", 200, Some(b"hello")), b"hello")]);
    for cut in [1, 5, 40, whole().bytes.len()] {
        let e = answered_with(whole().cut(cut).then(Then::Close)).await.err().unwrap();
        assert!(matches!(e, RemoteError::Unreachable { .. }) && e.ends_cycle(), "{cut}: {e}");
    }
    for (status, ends) in
        [(400, false), (404, false), (413, false), (500, false), (503, false), (401, true), (429, true)]
    {
        let e = answered_with(reply(status, &[], b"{}")).await.err().unwrap();
        assert_eq!(e.ends_cycle(), ends, "{status}: {e}");
    }
    let long = vec![0; batch::MAX_BYTES + 1];
    let typed = format!("content-type: {}", batch::CONTENT_TYPE);
    let e = answered_with(reply(200, &[&typed], &long)).await.err().unwrap();
    assert!(matches!(e, RemoteError::TooLarge { .. }) && !e.ends_cycle(), "{e}");
}
