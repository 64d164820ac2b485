//! [`PathProblem`]: why a path is not synced, and whether a person must help.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sync::SkipReason;

/// The effect of a problem on its path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemEffect {
    /// The path is out of scope. The folder is in sync without it.
    #[default]
    LeftOut,
    /// The path cannot be synced until a person helps.
    Blocked,
    /// The path failed and is retried automatically.
    Retried,
}

impl ProblemEffect {
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
    /// The cause, and what to do.
    pub why: String,
    pub effect: ProblemEffect,
}

impl PathProblem {
    pub fn new(effect: ProblemEffect, why: impl Into<String>) -> Self {
        Self { why: why.into(), effect }
    }

    /// `None`: the reason is no problem.
    pub fn of(why: &SkipReason) -> Option<Self> {
        ProblemEffect::of(why).map(|effect| Self::new(effect, why.to_string()))
    }
}

impl fmt::Display for PathProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}
