//! TOML as tables of lines: the keys before the first header, and then one table for each header.

use super::key_groups::{GroupedLines, KeyGroup};
use super::note_line::is_blank;

/// A table with its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TomlTable<'a, 't> {
    /// The name in the header. Empty for the keys before the first header.
    pub(super) name: &'t str,
    /// Comments and blank lines before the header.
    pub(super) lead: &'a [&'t str],
    /// The line of the header. Empty before the first header.
    pub(super) header: &'a [&'t str],
    pub(super) keys: GroupedLines<'a, 't>,
}

/// The tables of a text. `None` if it has a list of tables, or a line that is neither key, header nor comment.
pub(super) fn toml_tables<'a, 't>(lines: &'a [&'t str]) -> Option<Vec<TomlTable<'a, 't>>> {
    let mut tables = vec![TomlTable { name: "", lead: &[], header: &[], keys: GroupedLines::default() }];
    let mut scanner = ValueScanner::default();
    // The line behind the last key, header or value.
    let (mut end, mut body_start) = (0, 0);
    for (at, line) in lines.iter().enumerate() {
        let table = tables.last_mut()?;
        if scanner.is_open() {
            scanner.read(line);
            table.keys.groups.last_mut()?.body = &lines[body_start..=at];
            end = at + 1;
            continue;
        }
        let text = line.trim();
        if is_blank(line) || text.starts_with('#') {
            continue;
        }
        if text.starts_with('[') {
            let name = text.split('#').next()?.trim().strip_prefix('[')?.strip_suffix(']')?;
            if name.starts_with('[') {
                return None;
            }
            let (lead, header) = (&lines[end..at], &lines[at..=at]);
            tables.push(TomlTable { name: name.trim(), lead, header, keys: GroupedLines::default() });
        } else {
            let (key, value) = line.split_once('=')?;
            scanner.read(value);
            body_start = at;
            table.keys.groups.push(KeyGroup { key: key.trim(), lead: &lines[end..at], body: &lines[at..=at] });
        }
        end = at + 1;
    }
    tables.last_mut()?.keys.tail = &lines[end..];
    Some(tables)
}

/// Finds the end of a value that may have several lines.
#[derive(Debug, Default)]
struct ValueScanner {
    depth: usize,
    /// The quotes that end the open text of several lines.
    quotes: Option<&'static str>,
}

impl ValueScanner {
    fn is_open(&self) -> bool {
        self.depth > 0 || self.quotes.is_some()
    }

    fn read(&mut self, line: &str) {
        let mut rest = line;
        while !rest.is_empty() {
            if let Some(quotes) = self.quotes {
                let Some(at) = end_of_text(rest, quotes) else { return };
                (rest, self.quotes) = (&rest[at..], None);
                continue;
            }
            let opening = ["\"\"\"", "'''"].into_iter().find(|quotes| rest.starts_with(quotes));
            if let Some(quotes) = opening {
                (rest, self.quotes) = (&rest[3..], Some(quotes));
                continue;
            }
            let first = rest.chars().next().unwrap_or_default();
            let mut length = first.len_utf8();
            match first {
                '#' => return,
                '"' => length += end_of_text(&rest[1..], "\"").unwrap_or(rest.len() - 1),
                '\'' => length += end_of_text(&rest[1..], "'").unwrap_or(rest.len() - 1),
                '[' | '{' => self.depth += 1,
                ']' | '}' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            rest = &rest[length..];
        }
    }
}

/// The place behind the quotes that end a text. A backslash escapes in texts with double quotes only.
fn end_of_text(text: &str, quotes: &str) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        let rest = text.get(at..)?;
        if rest.starts_with(quotes) {
            return Some(at + quotes.len());
        }
        let mut chars = rest.chars();
        let first = chars.next()?;
        at += first.len_utf8();
        if first == '\\' && quotes.starts_with('"') {
            at += chars.next().map_or(0, char::len_utf8);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(text: &str) -> Option<Vec<(String, Vec<String>)>> {
        let lines: Vec<&str> = text.split('\n').collect();
        let tables = toml_tables(&lines)?;
        let keys = |t: &TomlTable<'_, '_>| t.keys.groups.iter().map(|g| g.body.join("/")).collect();
        Some(tables.iter().map(|t| (t.name.to_owned(), keys(t))).collect())
    }

    #[test]
    fn values_of_several_lines_belong_to_their_keys() {
        let text = "a = [\n  1, # ]\n]\ns = \"\"\"\n[x]\n\"\"\"\n[t]\nb = 'x ['\nc = {d = \"\\\"[\"}";
        let expected = [
            (String::new(), vec!["a = [/  1, # ]/]".to_owned(), "s = \"\"\"/[x]/\"\"\"".to_owned()]),
            ("t".to_owned(), vec!["b = 'x ['".to_owned(), "c = {d = \"\\\"[\"}".to_owned()]),
        ];
        assert_eq!(tables(text).unwrap(), expected);
    }

    #[test]
    fn lists_of_tables_are_not_divided() {
        assert_eq!(tables("[[a]]\nb = 1"), None);
        assert_eq!(tables("words"), None);
    }
}
