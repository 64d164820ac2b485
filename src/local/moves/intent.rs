//! Intents: what a batch is going to displace, written down before it does.

use std::io;

use serde::{Deserialize, Serialize};

use crate::digest::Md5;
use crate::disk::{Disk, DiskFile};

use super::super::Folder;

pub(super) const INTENT_SUFFIX: &str = ".intent";

/// One line of an intent file.
#[derive(Serialize, Deserialize)]
pub(super) struct Intent {
    /// The name in `stage/`, or the place in history, at which the displaced file will stand.
    pub(super) slot: String,
    /// Of the incoming file that stands at `slot` before the exchange; 0: none does.
    pub(super) incoming_inode: u64,
    /// Where it comes from, as it is called on the disk.
    pub(super) at: String,
    /// What is expected to be displaced; `None`: whatever it is, it becomes a conflict copy.
    pub(super) expect: Option<Md5>,
    /// Whether it is put back where it came from when it is not what was expected.
    pub(super) put_back: bool,
}

impl<D: Disk> Folder<D> {
    pub(super) fn write_intents(&self, intents: &[Intent]) -> io::Result<String> {
        let name = format!("{}{INTENT_SUFFIX}", self.slot());
        let mut text = Vec::new();
        for intent in intents {
            serde_json::to_writer(&mut text, intent)?;
            text.push(b'\n');
        }
        self.disk.create(&name)?.write_all(&text)?;
        Ok(name)
    }

    pub(super) fn read_intents(&self, name: &str) -> io::Result<Vec<Intent>> {
        let mut file = self.disk.open(name)?;
        let (mut text, mut buf) = (Vec::new(), [0u8; 4096]);
        loop {
            let n = file.read(&mut buf)?;
            if n == 0 {
                break;
            }
            text.extend_from_slice(&buf[..n]);
        }
        // A torn intent was never durable, so that nothing had been displaced under it.
        Ok(text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}
