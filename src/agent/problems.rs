//! [`PathProblem`]: why a path is not synced, and what that means for the folder.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sync::SkipReason;

/// What a problem means for its path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The path is out of scope. The folder is in sync without it.
    #[default]
    LeftOut,
    /// The path is to be synced, and a person has to help.
    Blocked,
    /// The path failed, and is tried again by itself.
    Retried,
}

impl Effect {
    /// `None`: the path has no problem.
    pub fn of(why: &SkipReason) -> Option<Self> {
        match why {
            SkipReason::Ignored
            | SkipReason::Changing
            | SkipReason::Unread
            | SkipReason::Vanished
            | SkipReason::InTransit => None,
            SkipReason::TooLarge(_)
            | SkipReason::NotAFile(_)
            | SkipReason::Mounted
            | SkipReason::OtherFolder
            | SkipReason::Name(_) => Some(Self::LeftOut),
            SkipReason::Unreadable(_) | SkipReason::Collides(_) | SkipReason::Ambiguous(_) | SkipReason::Clash(_) => {
                Some(Self::Blocked)
            }
            SkipReason::Quarantined(_) => Some(Self::Retried),
        }
    }
}

/// One path that is not synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathProblem {
    /// What is wrong, and what to do.
    pub why: String,
    pub effect: Effect,
}

impl PathProblem {
    pub fn new(effect: Effect, why: impl Into<String>) -> Self {
        Self { why: why.into(), effect }
    }

    /// `None`: nobody needs to hear of it.
    pub fn of(why: &SkipReason) -> Option<Self> {
        Effect::of(why).map(|effect| Self::new(effect, why.to_string()))
    }
}

impl fmt::Display for PathProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}
