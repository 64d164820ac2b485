//! The part of Rust's syntax that the checker needs.

/// The module of the crate that a file below `src` belongs to.
pub(crate) fn top_module(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// `text` without comments, the contents of literals, and items under `#[cfg(test)]`.
pub(crate) fn code_of(text: &str) -> String {
    without_tests(&blanked(text))
}

/// Replaces comments and the contents of literals by spaces. Lines and lengths (in characters) stay.
fn blanked(text: &str) -> String {
    let source: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < source.len() {
        let rest = &source[at..];
        let length = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => quoted(rest, '"'),
            ['r', ..] if !source[..at].last().is_some_and(|c| c.is_alphanumeric() || *c == '_') => raw_string(rest),
            ['\'', '\\', ..] => quoted(rest, '\''),
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if length == 0 {
            out.push(source[at]);
            at += 1;
        } else {
            out.extend(rest[..length].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at += length;
        }
    }
    out
}

/// The length of the comment that begins here. Comments nest.
fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the literal that begins here and ends with `end`.
fn quoted(rest: &[char], end: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != end {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of the raw string that begins here, or 0.
fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = &rest[hashes + 2..];
    let end = body.windows(close.len()).position(|w| w == close).unwrap_or(body.len());
    (hashes + 2 + end + close.len()).min(rest.len())
}

/// Removes each item under `#[cfg(test)]`, up to the end of its block or its `;`.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        out.push_str(before);
        let mut depth = 0;
        let end = after.char_indices().find(|(_, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(c, '}' | ';')
        });
        rest = end.map_or("", |(at, _)| &after[at + 1..]);
    }
    out + rest
}

/// Every path in `code` that begins with `crate`, `super`, `std` or another crate's name. Use trees are expanded, and
/// paths from the crate's root begin with `crate::`.
pub(crate) fn paths_of(code: &str, file: &str, modules: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let bytes = code.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    for (at, _) in code.match_indices("::") {
        let start = bytes[..at].iter().rposition(|b| !word(*b)).map_or(0, |p| p + 1);
        // Skip the middle of a path.
        if start < at && !code[..start].ends_with("::") {
            spell(&code[at + 2..], &code[start..at], &mut found);
        }
    }
    // The root is `super` in a module's top file, and `super::super` in a file one level below.
    let depth = file.trim_end_matches("/mod.rs").matches('/').count() + 1;
    let root = "super::".repeat(depth);
    for path in &mut found {
        if let Some(rest) = path.strip_prefix(&root).map(str::to_owned)
            && modules.contains(&rest.split("::").next().unwrap_or_default())
        {
            *path = format!("crate::{rest}");
        }
    }
    found
}

/// Adds the paths in `tree`, the text after `prefix::`.
pub(crate) fn spell(tree: &str, prefix: &str, found: &mut Vec<String>) {
    let tree = tree.trim_start();
    if let Some(group) = tree.strip_prefix('{') {
        for part in members(group) {
            spell(part, prefix, found);
        }
        return;
    }
    let length = tree.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(tree.len());
    let (name, rest) = tree.split_at(length);
    let path = if name == "self" || name.is_empty() { prefix.to_owned() } else { format!("{prefix}::{name}") };
    match rest.strip_prefix("::") {
        Some(rest) => spell(rest, &path, found),
        None => found.push(path),
    }
}

/// The members of a group, up to its closing brace.
pub(crate) fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                out.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.retain(|part| !part.trim().is_empty());
    out
}
