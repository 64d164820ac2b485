//! The text form of [`Precondition`], as `Content-MD5` and batch frames carry it.

use std::fmt;
use std::str::FromStr;

use crate::digest::NotMd5;
pub use crate::sync::Precondition;

impl fmt::Display for Precondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Holds(md5) => md5.fmt(f),
        }
    }
}

impl FromStr for Precondition {
    type Err = NotMd5;
    fn from_str(s: &str) -> Result<Self, NotMd5> {
        if s == "new" { Ok(Self::New) } else { s.parse().map(Self::Holds) }
    }
}
