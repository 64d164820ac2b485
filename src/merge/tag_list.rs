//! Lists of tags and other plain words in front matter and YAML, in one line (`[a, b]`) or with one element in each line.
//! Tags are a set. Other lists are one only if both sides just add to them.

use std::collections::HashSet;

use super::merged_line::MergedLine;
use super::order::merge_order;
use super::threeway::ThreeWay;

/// Keys whose lists are sets: the order means nothing, and elements may be removed.
const SET_KEYS: &[&str] = &["tags", "tag", "aliases", "keywords", "categories", "cssclasses"];

/// A list of plain words as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct WordList<'t> {
    form: WordListForm<'t>,
    words: Vec<&'t str>,
}

/// The text around the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WordListForm<'t> {
    /// Everything before the first word, between two words, and behind the last one.
    OneLine { head: &'t str, separator: &'static str, tail: &'t str },
    /// The line of the key, and the indentation with the dash.
    Lines { key: &'t str, dash: &'t str },
    /// A key without a value: the list is empty.
    Empty,
}

/// Merges the list of `key`. `None` if a text is no such list, or if an element was not only added.
pub(super) fn merge<'t>(key: &str, bodies: &ThreeWay<&[&'t str]>) -> Option<Vec<MergedLine<'t>>> {
    let base = if bodies.base.is_empty() {
        WordList { form: WordListForm::Empty, words: Vec::new() }
    } else {
        WordList::parse(bodies.base)?
    };
    let (local, remote) = (WordList::parse(bodies.local)?, WordList::parse(bodies.remote)?);
    let form = match (local.form, remote.form) {
        (WordListForm::Empty, form) | (form, WordListForm::Empty) => form,
        (one, other) if one == other => one,
        _ => return None,
    };
    let words = ThreeWay { base: base.words, local: local.words, remote: remote.words };
    let order = merge_order(&words);
    let is_set = SET_KEYS.contains(&key);
    let only_added = [&words.local, &words.remote].into_iter().all(|side| {
        let side: HashSet<&str> = side.iter().copied().collect();
        words.base.iter().all(|word| side.contains(word))
    });
    (is_set || (only_added && order.is_agreed)).then(|| form.write(&order.keys)).flatten()
}

impl<'t> WordList<'t> {
    fn parse(body: &[&'t str]) -> Option<Self> {
        let (first, rest) = body.split_first()?;
        let (_, value) = first.split_once(':')?;
        let list = if let Some(open) = first.find('[') {
            if !rest.is_empty() || !first[..open].trim_end().ends_with(':') {
                return None;
            }
            Self::parse_one_line(first, open)?
        } else if value.trim().is_empty() {
            Self::parse_lines(first, rest)?
        } else {
            return None;
        };
        let distinct: HashSet<&str> = list.words.iter().map(|word| word.trim_matches(['"', '\''])).collect();
        let is_plain = |word: &&str| !word.is_empty() && !word.contains(['[', ']', '{', '}', '#', '&', '*', ',']);
        (distinct.len() == list.words.len() && list.words.iter().all(is_plain)).then_some(list)
    }

    fn parse_one_line(line: &'t str, open: usize) -> Option<Self> {
        let close = line.rfind(']').filter(|close| line[*close + 1..].trim().is_empty() && *close > open)?;
        let inner = &line[open + 1..close];
        let words: Vec<&str> = inner.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
        let pad = inner.len() - inner.trim_start().len();
        let end_pad = inner.len() - inner.trim_end().len();
        let separator = if inner.contains(", ") || words.len() < 2 { ", " } else { "," };
        // A list that is written in another way is left to the user.
        if words.join(separator) != inner.trim() {
            return None;
        }
        let tail = if words.is_empty() { close } else { close - end_pad };
        let head = if words.is_empty() { &line[..=open] } else { &line[..open + 1 + pad] };
        Some(Self { form: WordListForm::OneLine { head, separator, tail: &line[tail..] }, words })
    }

    fn parse_lines(key: &'t str, rest: &[&'t str]) -> Option<Self> {
        let mut dash = None;
        let mut words = Vec::with_capacity(rest.len());
        for line in rest {
            let at = line.find("- ").filter(|at| line[..*at].trim().is_empty())?;
            let own = &line[..at + 2];
            if *dash.get_or_insert(own) != own {
                return None;
            }
            let word = line[at + 2..].trim();
            // A mapping is no word.
            if word.contains(": ") || word.ends_with(':') || word != &line[at + 2..] {
                return None;
            }
            words.push(word);
        }
        let form = dash.map_or(WordListForm::Empty, |dash| WordListForm::Lines { key, dash });
        Some(Self { form, words })
    }
}

impl<'t> WordListForm<'t> {
    fn write(self, words: &[&'t str]) -> Option<Vec<MergedLine<'t>>> {
        match self {
            Self::OneLine { head, separator, tail } => {
                Some(vec![MergedLine::List(format!("{head}{}{tail}", words.join(separator)))])
            }
            // Without an element the key alone remains, which is no list any more.
            Self::Lines { .. } if words.is_empty() => None,
            Self::Lines { key, dash } => {
                let elements = words.iter().map(|word| MergedLine::List(format!("{dash}{word}")));
                Some(std::iter::once(MergedLine::Kept(key)).chain(elements).collect())
            }
            Self::Empty => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(key: &str, base: &str, local: &str, remote: &str) -> Option<String> {
        let lines = |text: &'static str| text.split('/').collect::<Vec<_>>();
        let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
        let bodies = [base, local, remote].map(|text| lines(leak(text)));
        let bodies = ThreeWay { base: &bodies[0][..], local: &bodies[1], remote: &bodies[2] };
        let swapped = ThreeWay { base: bodies.base, local: bodies.remote, remote: bodies.local };
        let result = merge(key, &bodies);
        assert_eq!(result, merge(key, &swapped));
        result.map(|lines| lines.iter().map(MergedLine::text).collect::<Vec<_>>().join("/"))
    }

    #[test]
    fn tags_are_a_set_in_both_forms() {
        assert_eq!(merged("tags", "tags: [a, b]", "tags: [a]", "tags: [a, b, c]").unwrap(), "tags: [a, c]");
        assert_eq!(merged("tags", "tags: [ a ]", "tags: [ a, c ]", "tags: [ a, b ]").unwrap(), "tags: [ a, b, c ]");
        assert_eq!(merged("tags", "tags: []", "tags: [b]", "tags: [a]").unwrap(), "tags: [a, b]");
        let lines = merged("tags", "tags:/  - a/  - b", "tags:/  - a", "tags:/  - a/  - b/  - c");
        assert_eq!(lines.unwrap(), "tags:/  - a/  - c");
    }

    #[test]
    fn other_lists_only_grow() {
        assert_eq!(merged("steps", "steps: [a]", "steps: [a, b]", "steps: [a, c]").unwrap(), "steps: [a, b, c]");
        assert_eq!(merged("steps", "steps: [a, b]", "steps: [a]", "steps: [a, b, c]"), None);
        assert_eq!(merged("steps", "steps: [a, b]", "steps: [b, a]", "steps: [a, b, c]").unwrap(), "steps: [b, c, a]");
    }

    #[test]
    fn other_values_are_no_lists() {
        for (local, remote) in [
            ("tags: a", "tags: b"),
            ("tags: [a, [b]]", "tags: [a, c]"),
            ("tags: [a, b] # why", "tags: [a, c]"),
            ("tags: [a, a]", "tags: [a, c]"),
            ("tags: [a, b]", "tags:/  - a/  - c"),
            ("tags:/  - a: 1", "tags:/  - c"),
        ] {
            assert_eq!(merged("tags", "tags: [a]", local, remote), None, "{local} {remote}");
        }
    }
}
