//! The changes that a sync makes durable, and the tree that a power cut leaves.

use std::io;

use bytes::Bytes;
use fastrand::Rng;

use super::{Body, Change, Content, Edit, Ino, ROOT, Tree};

impl Tree {
    /// Makes the changes of names that `wanted` picks durable, with all changes that they need.
    fn settle(&mut self, wanted: impl Fn(&Change) -> bool) {
        let mut picked: Vec<bool> = self.journal.iter().map(wanted).collect();
        for (later, change) in self.journal.iter().enumerate().rev() {
            let (before, rest) = picked.split_at_mut(later);
            if rest[0] {
                for (picked, earlier) in before.iter_mut().zip(&self.journal) {
                    *picked = *picked || change.builds_on(earlier);
                }
            }
        }
        let journal = std::mem::take(&mut self.journal);
        for (change, picked) in journal.into_iter().zip(picked) {
            if picked {
                self.make_durable(change);
            } else {
                self.journal.push(change);
            }
        }
    }

    fn make_durable(&mut self, change: Change) {
        for Edit { dir, name, to } in change.edits {
            if let Some(names) = self.names_mut(dir) {
                match to {
                    Some(ino) => names.durable.insert(name, ino),
                    None => names.durable.remove(&name),
                };
            }
        }
    }

    /// `fsync` of a folder: the changes of its names.
    pub(in crate::testing::sim_disk) fn sync_dir(&mut self, dir: Ino) -> io::Result<()> {
        self.names(dir)?;
        self.settle(|change| change.touches(dir));
        Ok(())
    }

    pub(in crate::testing::sim_disk) fn sync_all(&mut self) {
        self.settle(|_| true);
        for ino in 1..=self.inodes.len() as Ino {
            self.sync_content(ino);
        }
    }

    /// Makes the changes at `path` and of its parent folders durable.
    pub(in crate::testing::sim_disk) fn settle_path(&mut self, path: &str) {
        let mut dir = ROOT;
        let mut spots: Vec<(Ino, &str)> = Vec::new();
        let mut inodes = Vec::new();
        for name in path.split('/') {
            spots.push((dir, name));
            let Some(ino) = self.names(dir).ok().and_then(|names| names.now.get(name).copied()) else { break };
            inodes.push(ino);
            dir = ino;
        }
        self.settle(|change| {
            change.moved.iter().any(|ino| inodes.contains(ino))
                || change.edits.iter().any(|e| spots.contains(&(e.dir, &*e.name)))
        });
    }

    /// The state after a power cut now: the durable names and a random prefix of the later changes. Unsynced content is
    /// at any state between the durable one and the last one.
    pub(in crate::testing::sim_disk) fn power_cut(&mut self, rng: &mut Rng) {
        let kept = rng.usize(0..=self.journal.len());
        for change in std::mem::take(&mut self.journal).into_iter().take(kept) {
            self.make_durable(change);
        }
        for inode in &mut self.inodes {
            match &mut inode.body {
                Body::Dir(names) => names.now.clone_from(&names.durable),
                Body::File(content) if content.dirty => {
                    if let Some(saved) = content.power_cut(rng) {
                        (inode.mtime_ns, inode.ctime_ns) = saved;
                    }
                }
                _ => {}
            }
        }
    }
}

impl Content {
    /// Sets the times of the older content if that content survives.
    fn power_cut(&mut self, rng: &mut Rng) -> Option<(i64, i64)> {
        self.dirty = false;
        let older = self.durable.as_ref().map_or(&b""[..], |saved| &saved.bytes);
        // An append never loses content that was synced before.
        let shortest = if self.now.starts_with(older) { older.len() } else { 0 };
        let mut times = None;
        self.now = match rng.u8(0..4) {
            0 => match &self.durable {
                Some(saved) => {
                    times = Some((saved.mtime_ns, saved.ctime_ns));
                    saved.bytes.clone()
                }
                None => Bytes::new(),
            },
            1 => self.now.slice(..shortest),
            2 => self.now.slice(..rng.usize(shortest..=self.now.len())),
            _ => self.now.clone(),
        };
        if let Some(saved) = &mut self.durable {
            saved.bytes = self.now.clone();
        }
        times
    }
}
