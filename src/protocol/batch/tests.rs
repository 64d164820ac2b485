use super::*;

fn put(path: &str, content: &[u8]) -> RequestHead {
    RequestHead {
        op: "put".into(),
        path: path.into(),
        precondition: Some("new".into()),
        size: content.len() as u64,
        ..RequestHead::default()
    }
}

fn three_frames() -> (Vec<(RequestHead, Bytes)>, Bytes) {
    let get = RequestHead { op: "get".into(), path: "ü/日本 \"x\".md".into(), ..RequestHead::default() };
    let frames =
        vec![(put("a", b"hello"), Bytes::from_static(b"hello")), (get, Bytes::new()), (put("b", b""), Bytes::new())];
    let mut writer = BatchWriter::default();
    for (head, content) in &frames {
        writer.push(head, content).unwrap();
    }
    (frames, writer.finish())
}

#[test]
fn frames_round_trip_through_body() {
    let (frames, body) = three_frames();
    assert_eq!(read::<RequestHead>(body.clone()).unwrap(), frames);
    assert_eq!(read::<RequestHead>(Bytes::new()).unwrap(), []);
    let first = r#"{"op":"put","path":"a","precondition":"new","size":5}"#;
    let length = u8::try_from(first.len()).unwrap();
    assert_eq!(body[..4], [0, 0, 0, length], "the length is big-endian");
    assert_eq!(&body[4..4 + first.len()], first.as_bytes());
    assert_eq!(&body[4 + first.len()..][..5], b"hello");
}

#[test]
fn read_rejects_batch_cut_within_frame() {
    let (frames, body) = three_frames();
    let mut writer = BatchWriter::default();
    let whole: Vec<usize> = frames
        .iter()
        .map(|(head, content)| {
            writer.push(head, content).unwrap();
            writer.bytes.len()
        })
        .collect();
    for cut in 1..body.len() {
        let result = read::<RequestHead>(body.slice(..cut));
        match whole.iter().position(|end| *end == cut) {
            // A cut between two frames cannot be seen here. The client counts the answers.
            Some(n) => assert_eq!(result.unwrap(), frames[..=n]),
            None => assert!(matches!(result, Err(BatchError::CutOff(_))), "{cut}: {result:?}"),
        }
    }
}

#[test]
fn read_rejects_hostile_lengths() {
    let frame = |length: u32, rest: &[u8]| Bytes::from([&length.to_be_bytes()[..], rest].concat());
    let refusal = |body| read::<RequestHead>(body).unwrap_err();
    assert_eq!(refusal(frame(u32::MAX, b"")), BatchError::LongHead { at: 0, length: u32::MAX.into() });
    assert_eq!(refusal(frame(8193, &[b' '; 8193])), BatchError::LongHead { at: 0, length: 8193 });
    assert_eq!(refusal(frame(8192, b"{}")), BatchError::CutOff(0));
    assert!(matches!(refusal(frame(0, b"")), BatchError::Head { at: 0, .. }));
    assert!(matches!(refusal(frame(4, b"[1]x")), BatchError::Head { at: 0, .. }));
    let deep = "[".repeat(8000);
    assert!(matches!(refusal(frame(8000, deep.as_bytes())), BatchError::Head { at: 0, .. }));
    for size in ["18446744073709551615", "6", "-1", "1e3", "18446744073709551616"] {
        let head = format!(r#"{{"op":"put","path":"a","size":{size}}}"#);
        let length = u32::try_from(head.len()).unwrap();
        let body = frame(length, &[head.as_bytes(), b"12345"].concat());
        assert!(matches!(refusal(body), BatchError::CutOff(0) | BatchError::Head { .. }), "{size}");
    }
}

#[test]
fn batch_limits_hold_for_writer_and_reader() {
    let get = RequestHead { op: "get".into(), path: "a".into(), ..RequestHead::default() };
    let mut writer = BatchWriter::default();
    for _ in 0..MAX_FRAMES {
        writer.push(&get, b"").unwrap();
    }
    assert_eq!(writer.push(&get, b""), Err(BatchError::TooMany));
    let full = writer.finish();
    assert_eq!(read::<RequestHead>(full.clone()).unwrap().len(), MAX_FRAMES);
    let one = full.slice(..full.len() / MAX_FRAMES);
    assert_eq!(read::<RequestHead>([full, one].concat().into()), Err(BatchError::TooMany));

    let half = vec![0; MAX_BYTES / 2];
    let mut writer = BatchWriter::default();
    writer.push(&put("a", &half), &half).unwrap();
    assert_eq!(writer.push(&put("b", &half), &half), Err(BatchError::TooLarge));
    assert_eq!(writer.push(&put("b", b"12"), b"1"), Err(BatchError::Size(1)));
    let long = RequestHead { path: "x".repeat(MAX_HEAD), ..RequestHead::default() };
    assert!(matches!(writer.push(&long, b""), Err(BatchError::LongHead { at: 1, .. })));
    assert!(writer.bytes.len() < MAX_BYTES, "refused frames leave nothing behind");
    assert_eq!(read::<RequestHead>(vec![0; MAX_BYTES + 1].into()), Err(BatchError::TooLarge));
    let worst = RequestHead { path: "\u{7f}\"".repeat(512), ..put("", b"") };
    assert!(serde_json::to_vec(&worst).unwrap().len() < MAX_HEAD, "the longest path fits");
}
