//! Batches as documented, encoded and decoded without the codec of the program.

use serde_json::Value;

pub(crate) const TYPE: &str = "application/vnd.memsync.batch";

/// The head of a frame, and its content.
pub(crate) type Frame = (Value, Vec<u8>);

pub(crate) fn frames(of: &[Frame]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, content) in of {
        let head = head.to_string();
        body.extend(u32::try_from(head.len()).unwrap().to_be_bytes());
        body.extend(head.as_bytes());
        body.extend(content);
    }
    body
}

pub(crate) fn parse(mut body: &[u8]) -> Vec<Frame> {
    let mut all = Vec::new();
    while let Some((length, rest)) = body.split_first_chunk::<4>() {
        let (json, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        let json: Value = serde_json::from_slice(json).unwrap();
        let (content, rest) = rest.split_at(json["size"].as_u64().unwrap_or(0) as usize);
        all.push((json, content.to_vec()));
        body = rest;
    }
    assert!(body.is_empty());
    all
}
