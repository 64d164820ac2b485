//! The combinations of base, local, index and truth, and where each may end.

use std::collections::BTreeSet;

use bytes::Bytes;
use memsync::digest::Md5;
use memsync::sync::{Base, IndexTrust, LocalState, RemoteSide, SkipReason, decide};
use memsync::testing::TombstoneKind;

/// The contents of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum C {
    B,
    L,
    R,
}

impl C {
    const ALL: [Self; 3] = [Self::B, Self::L, Self::R];

    pub(crate) fn bytes(self) -> Bytes {
        Bytes::from(format!("the content {self:?}"))
    }

    pub(crate) fn md5(self) -> Md5 {
        Md5::of(&self.bytes())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Here {
    Absent,
    File(C),
    /// A file that cannot be read.
    Unreadable(C),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum There {
    Absent,
    Live(C),
    Tombstone(C),
}

impl There {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Absent];
        all.extend(C::ALL.map(Self::Live));
        all.extend(C::ALL.map(Self::Tombstone));
        all
    }

    fn remote(self) -> Option<RemoteSide> {
        match self {
            Self::Absent => None,
            Self::Live(c) => Some(RemoteSide::Live(c.md5())),
            Self::Tombstone(c) => Some(RemoteSide::Tombstone(c.md5())),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Was {
    Nothing,
    Seen(C),
    Synced,
    Detached,
}

impl Was {
    pub(crate) fn base(self) -> Option<Base> {
        match self {
            Self::Nothing => None,
            Self::Seen(c) => Some(Base::Seen(c.md5())),
            Self::Synced => Some(Base::Synced(C::B.md5())),
            Self::Detached => Some(Base::Detached(C::B.md5())),
        }
    }

    /// True if both sides agreed on `B`.
    fn is_content(self) -> bool {
        matches!(self, Self::Synced | Self::Detached)
    }
}

/// The kind of proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxy {
    Strong,
    /// A plain index. It may know tombstones or not, and show them or not.
    Plain(TombstoneKind, bool),
    /// A deployed namespaced proxy: a plain index, versions, and no sign of tombstones. Base holds this version, which
    /// may be 0 (unknown) or stale.
    Versions(u64),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub base: Was,
    pub local: Here,
    pub index: There,
    pub truth: There,
    pub proxy: Proxy,
    /// True if the first request of each step goes in a batch.
    pub batch: bool,
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut proxies = vec![Proxy::Strong, Proxy::Versions(0), Proxy::Versions(66)];
    for kind in [TombstoneKind::Absent, TombstoneKind::Exists] {
        proxies.extend([true, false].map(|honest| Proxy::Plain(kind, honest)));
    }
    let locals = [Here::Absent, Here::File(C::B), Here::File(C::L), Here::Unreadable(C::B), Here::Unreadable(C::L)];
    for base in [Was::Nothing, Was::Seen(C::L), Was::Seen(C::R), Was::Synced, Was::Detached] {
        for local in locals {
            for index in There::all() {
                for truth in There::all() {
                    for &proxy in &proxies {
                        // A strong index is always right.
                        if proxy != Proxy::Strong || index == truth {
                            cases.extend([false, true].map(|batch| Case { base, local, index, truth, proxy, batch }));
                        }
                    }
                }
            }
        }
    }
    cases
}

impl Case {
    pub(crate) fn row(&self) -> u8 {
        let local = match self.local {
            Here::Absent => None,
            Here::File(c) => Some(LocalState::File(c.md5())),
            Here::Unreadable(_) => Some(LocalState::Unknown(SkipReason::Unreadable("permission denied".into()))),
        };
        let trust = if self.proxy == Proxy::Strong { IndexTrust::Evidence } else { IndexTrust::Hints };
        decide(self.base.base(), local.as_ref(), self.index.remote(), trust).0
    }

    pub(crate) fn truthful(&self) -> bool {
        self.index == self.truth
    }

    /// The states of both sides that are right at the end, if the first cycle saw `index`.
    pub(crate) fn ends(&self, index: There) -> BTreeSet<Option<C>> {
        use There::{Absent, Live, Tombstone};
        let truthful = index == self.truth;
        let (Here::File(local) | Here::Unreadable(local)) = self.local else {
            return match (self.base, self.truth) {
                // Rows 9 and 10. If the index names other content, or the tombstone of this content, the file comes
                // back (rows 10, 11).
                (Was::Synced, Live(C::B)) if truthful || matches!(index, Absent | Tombstone(C::L | C::R)) => {
                    [None].into()
                }
                (Was::Synced, Live(C::B)) => [None, Some(C::B)].into(),
                (_, Live(c)) => [Some(c)].into(),
                _ => [None].into(),
            };
        };
        let synced = self.base.is_content() && local == C::B;
        if index == Live(local) && (synced || matches!(self.base, Was::Nothing)) {
            // Rows 5 and 12 trust the index, which names earlier content. The present content came later.
            return match self.truth {
                Live(c) => [Some(c)].into(),
                Tombstone(_) => [None].into(),
                Absent => [Some(local)].into(),
            };
        }
        let seen = matches!(self.base, Was::Seen(c) if c == local);
        match (self.base, self.truth) {
            // The server's edit: a conflict, or row 13. Our content is in a copy, or in history.
            (_, Live(c)) if !(self.base.is_content() && c == C::B) => [Some(c)].into(),
            (_, Live(_)) => [Some(local)].into(),
            // Rows 13 to 15: deleted there. Without proof row 15 has to offer the file again.
            (Was::Synced | Was::Detached, Tombstone(_)) if local == C::B => {
                if truthful || index != Absent {
                    [None].into()
                } else {
                    [None, Some(local)].into()
                }
            }
            (Was::Synced | Was::Detached, Absent) if local == C::B => {
                if matches!(index, Tombstone(_)) {
                    [None].into()
                } else {
                    [Some(local)].into()
                }
            }
            (Was::Synced | Was::Detached, _) => [Some(local)].into(),
            // Row 7: an own upload that another device deleted.
            (_, Tombstone(t)) if t == local && !seen => {
                if truthful {
                    [None].into()
                } else {
                    [None, Some(local)].into()
                }
            }
            (_, Absent | Tombstone(_)) => {
                if index == Tombstone(local) && !seen {
                    [None].into()
                } else {
                    [Some(local)].into()
                }
            }
        }
    }

    /// Content that must be in the folder at the end. History is not enough.
    pub(crate) fn owed(&self) -> BTreeSet<C> {
        let mut owed = BTreeSet::new();
        if let Here::File(c) | Here::Unreadable(c) = self.local {
            let synced = self.base.is_content() && c == C::B;
            let adopted = self.index == There::Live(c) && matches!(self.base, Was::Nothing);
            let deleted = [self.index, self.truth].contains(&There::Tombstone(c)) && !self.base.is_content();
            if !synced && !deleted && !adopted {
                owed.insert(c);
            }
        }
        let knows_it = match self.base {
            Was::Synced => true,
            // A file that is gone was not deleted.
            Was::Detached => self.local != Here::Absent,
            Was::Nothing | Was::Seen(_) => false,
        };
        if let There::Live(c) = self.truth
            && !(knows_it && c == C::B)
        {
            owed.insert(c);
        }
        owed
    }
}
