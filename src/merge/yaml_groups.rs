//! Flat YAML as groups of lines, one for each key in the first column.

use super::key_groups::{GroupedLines, KeyGroup};
use super::note_line::is_blank;

/// The groups of flat YAML: keys in the first column. `None` for any other text.
pub(super) fn yaml_groups<'a, 't>(lines: &'a [&'t str]) -> Option<GroupedLines<'a, 't>> {
    let mut groups: Vec<KeyGroup<'a, 't>> = Vec::new();
    let (mut body_start, mut body_end) = (0, 0);
    for (at, line) in lines.iter().enumerate() {
        if is_blank(line) || line.starts_with('#') {
            continue;
        }
        let continues = line.starts_with([' ', '\t']) || line.starts_with("- ") || *line == "-";
        if continues {
            // Comments and blank lines inside of a value belong to it.
            let group = groups.last_mut()?;
            group.body = &lines[body_start..=at];
        } else {
            let key = yaml_key(line)?;
            body_start = at;
            groups.push(KeyGroup { key, lead: &lines[body_end..at], body: &lines[at..=at] });
        }
        body_end = at + 1;
    }
    Some(GroupedLines { groups, tail: &lines[body_end..] })
}

/// The plain key at the head of a line.
fn yaml_key(line: &str) -> Option<&str> {
    let key = line.split_once(": ").map(|(key, _)| key).or_else(|| line.trim_end().strip_suffix(':'))?;
    let is_plain = !key.is_empty()
        && !key.starts_with(|c: char| "{}[]&*!|>%@`\"'?,-#".contains(c))
        && !key.contains([':', '#', '{', '['])
        && key.trim_end() == key;
    is_plain.then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(text: &str) -> Option<Vec<(String, String, String)>> {
        let lines: Vec<&str> = text.split('\n').collect();
        let grouped = yaml_groups(&lines)?;
        let group = |g: &KeyGroup<'_, '_>| (g.key.to_owned(), g.lead.join("/"), g.body.join("/"));
        Some(grouped.groups.iter().map(group).collect())
    }

    #[test]
    fn keys_own_their_comments_and_values() {
        let found = groups("# by hand\na: 1\n\nb:\n  - x\n\n  - y\nc: |\n  text\n# end").unwrap();
        let expected = [("a", "# by hand", "a: 1"), ("b", "", "b:/  - x//  - y"), ("c", "", "c: |/  text")];
        assert_eq!(found, expected.map(|(key, lead, body)| (key.to_owned(), lead.to_owned(), body.to_owned())));
    }

    #[test]
    fn other_yaml_is_not_flat() {
        for text in ["- a\n- b", "{a: 1}", "a: 1\nwords", "\"a\": 1", "  a: 1", "? a"] {
            assert_eq!(groups(text), None, "{text}");
        }
    }
}
