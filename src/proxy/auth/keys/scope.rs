//! The scope of a key: its namespaces, and whether it may write. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::path::{PathError, RelPath};

/// The kind of access that a request needs. `access_of_method` and `access_of_op` decide which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Read,
    Write,
}

/// Namespaces: all (`*`), those below a name (`team/*`), or one by its name. The empty name is the flat dialect's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NamespacePattern {
    All,
    /// Ends in `/`. `team/*` is every namespace below `team`, not `team` itself.
    Below(String),
    Exact(String),
}

impl NamespacePattern {
    pub fn covers(&self, ns: &str) -> bool {
        match self {
            Self::All => true,
            Self::Below(prefix) => ns.len() > prefix.len() && ns.starts_with(prefix.as_str()),
            Self::Exact(name) => ns == name,
        }
    }
}

/// The text is not a namespace pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} names no namespace: {why}; write a name, NAME/* for all below it, * for all, or \"\" for the flat one"
)]
pub struct NamespacePatternError {
    text: String,
    why: PathError,
}

impl FromStr for NamespacePattern {
    type Err = NamespacePatternError;

    fn from_str(text: &str) -> Result<Self, NamespacePatternError> {
        // A namespace has the same segments as a path.
        let checked = |name: &str| {
            RelPath::parse(name)
                .map(|_| name.to_owned())
                .map_err(|why| NamespacePatternError { text: text.to_owned(), why })
        };
        match text {
            "" => Ok(Self::Exact(String::new())),
            "*" => Ok(Self::All),
            _ => match text.strip_suffix("/*") {
                Some(name) => Ok(Self::Below(checked(name)? + "/")),
                None => Ok(Self::Exact(checked(text)?)),
            },
        }
    }
}

impl TryFrom<String> for NamespacePattern {
    type Error = NamespacePatternError;

    fn try_from(text: String) -> Result<Self, NamespacePatternError> {
        text.parse()
    }
}

impl From<NamespacePattern> for String {
    fn from(pattern: NamespacePattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for NamespacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Below(prefix) => write!(f, "{prefix}*"),
            Self::Exact(name) => f.write_str(name),
        }
    }
}

/// The placeholder for the user's name in a [`UserPattern`].
const USER_PLACEHOLDER: &str = "{user_id}";

/// Namespaces of a user, such as `users/{user_id}/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserPattern(String);

impl UserPattern {
    /// The namespaces of `user`. `None`: the name cannot be part of a namespace.
    pub(crate) fn for_user(&self, user: &str) -> Option<NamespacePattern> {
        let is_name = !user.contains(['/', '*', '{']) && RelPath::parse(user).is_ok();
        if is_name { self.0.replace(USER_PLACEHOLDER, user).parse().ok() } else { None }
    }
}

impl FromStr for UserPattern {
    type Err = NamespacePatternError;

    fn from_str(text: &str) -> Result<Self, NamespacePatternError> {
        text.replace(USER_PLACEHOLDER, "user").parse::<NamespacePattern>().map(|_| Self(text.to_owned()))
    }
}

/// The namespaces that a caller may use, and whether it may write there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyScope {
    pub namespaces: Vec<NamespacePattern>,
    /// Has no default: a document without it is refused.
    pub read_only: bool,
}

/// All namespaces, read and write.
impl Default for KeyScope {
    fn default() -> Self {
        Self { namespaces: vec![NamespacePattern::All], read_only: false }
    }
}

impl KeyScope {
    pub(crate) fn allows(&self, access: AccessKind) -> bool {
        match access {
            AccessKind::Read => true,
            AccessKind::Write => !self.read_only,
        }
    }

    pub fn covers(&self, ns: &str) -> bool {
        self.namespaces.iter().any(|pattern| pattern.covers(ns))
    }
}

/// As the log and `memsync key list` show it: `read-write team/*`.
impl fmt::Display for KeyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.read_only { "read-only" } else { "read-write" })?;
        for pattern in &self.namespaces {
            match pattern {
                NamespacePattern::Exact(name) if name.is_empty() => f.write_str(" \"\"")?,
                other => write!(f, " {other}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_covers_its_namespaces() {
        for (text, yes, no) in [
            ("*", vec!["", "a", "a/b"], vec![]),
            ("", vec![""], vec!["a", "*"]),
            ("team", vec!["team"], vec!["", "team/a", "teams", "Team"]),
            ("team/*", vec!["team/a", "team/a/b"], vec!["", "team", "team/", "teams/a", "x/team/a"]),
            ("a/b", vec!["a/b"], vec!["a", "a/b/c"]),
        ] {
            let pattern: NamespacePattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text);
            assert!(yes.iter().all(|ns| pattern.covers(ns)) && !no.iter().any(|ns| pattern.covers(ns)), "{text}");
        }
    }

    #[test]
    fn user_pattern_keeps_users_apart() {
        let of = |text: &str, user: &str| text.parse::<UserPattern>().unwrap().for_user(user).map(|p| p.to_string());
        assert_eq!(of("users/{user_id}/*", "u-1").as_deref(), Some("users/u-1/*"));
        assert_eq!(of("users/{user_id}", "u-1").as_deref(), Some("users/u-1"));
        assert_eq!(of("shared", "u-1").as_deref(), Some("shared"));
        for name in ["", ".", "..", "a/b", "*", "{user_id}", "a\nb"] {
            assert_eq!(of("users/{user_id}", name), None, "{name:?}");
        }
        assert!("users//{user_id}".parse::<UserPattern>().is_err() && "../*".parse::<UserPattern>().is_err());
    }

    #[test]
    fn pattern_that_is_no_namespace_is_refused() {
        for text in ["/", "/a", "a/", "a//b", "..", "a/../b", "/*", "a//*", "a\nb", ".memsync/*"] {
            let why = text.parse::<NamespacePattern>().unwrap_err();
            assert!(why.to_string().contains("names no namespace"), "{text}: {why}");
        }
    }

    #[test]
    fn scope_survives_display_and_json() {
        let scope = KeyScope { namespaces: vec!["".parse().unwrap(), "team/*".parse().unwrap()], read_only: true };
        assert_eq!(scope.to_string(), "read-only \"\" team/*");
        assert_eq!(KeyScope::default().to_string(), "read-write *");
        let text = serde_json::to_string(&scope).unwrap();
        assert_eq!(text, r#"{"namespaces":["","team/*"],"read_only":true}"#);
        assert_eq!(serde_json::from_str::<KeyScope>(&text).unwrap(), scope);
        for invalid in [r#"{"namespaces":["../x"],"read_only":true}"#, r#"{"namespaces":["team/*"]}"#] {
            assert!(serde_json::from_str::<KeyScope>(invalid).is_err(), "{invalid}");
        }
    }
}
