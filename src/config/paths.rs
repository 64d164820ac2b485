//! Paths with their symlinks resolved, and paths quoted for a shell.

use std::path::{Path, PathBuf};

/// Resolves the symlinks of the longest part of `path` that exists, so that two names of one folder compare equal.
pub(crate) fn resolve_links(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(resolved) = std::fs::canonicalize(ancestor) {
            return match path.strip_prefix(ancestor) {
                // Joining an empty path would add a trailing `/`.
                Ok(rest) if rest.as_os_str().is_empty() => resolved,
                Ok(rest) => resolved.join(rest),
                Err(_) => path.to_owned(),
            };
        }
    }
    path.to_owned()
}

/// `path`, quoted for a shell if it needs quotes.
pub(crate) fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@%:,".contains(&b)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolve_links_follows_the_part_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        std::fs::create_dir(home.join("real")).unwrap();
        std::os::unix::fs::symlink("real", home.join("link")).unwrap();
        let shown = |path: &Path| path.to_str().unwrap().strip_prefix(home.to_str().unwrap()).unwrap().to_owned();
        assert_eq!(shown(&resolve_links(&home.join("link"))), "/real");
        assert_eq!(shown(&resolve_links(&home.join("link/new/deep"))), "/real/new/deep");
        assert_eq!(shown(&resolve_links(&home.join("new"))), "/new");
    }
}
