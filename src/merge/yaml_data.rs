//! YAML as data, for the checks of a merge. Anchors and aliases stay names, so no text expands.

use std::borrow::Cow;
use std::collections::HashSet;

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::data::{DataContent, DataValue, MAX_DEPTH};
use super::driver::MergeDriver;
use super::outcome::{ConflictReason, Merged};

const UNPARSABLE: ConflictReason = ConflictReason::Unparsable(MergeDriver::Yaml);

/// Parses the documents of a text, as a map with their numbers. A key that is there twice is an error.
pub(super) fn parse_yaml(text: &str) -> Merged<DataValue<'_>> {
    let mut builder = YamlBuilder { text, open: Vec::new(), documents: Vec::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|_| UNPARSABLE)?;
        builder.add(event, &span)?;
    }
    Ok(DataValue::new(DataContent::Map(builder.documents)))
}

/// A list or a map that is not complete yet.
enum OpenValue<'t> {
    List(Vec<DataValue<'t>>),
    Map { members: Vec<(Cow<'t, str>, DataValue<'t>)>, keys: HashSet<Cow<'t, str>>, key: Option<Cow<'t, str>> },
}

struct YamlBuilder<'t> {
    text: &'t str,
    open: Vec<OpenValue<'t>>,
    documents: Vec<(Cow<'t, str>, DataValue<'t>)>,
}

impl<'t> YamlBuilder<'t> {
    fn add(&mut self, event: Event<'t>, span: &Span) -> Merged<()> {
        if self.open.len() > MAX_DEPTH {
            return Err(ConflictReason::TooDeep);
        }
        match event {
            Event::SequenceStart(..) => self.open.push(OpenValue::List(Vec::new())),
            Event::MappingStart(..) => {
                self.open.push(OpenValue::Map { members: Vec::new(), keys: HashSet::new(), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let value = match self.open.pop() {
                    Some(OpenValue::List(elements)) => DataContent::List(elements),
                    Some(OpenValue::Map { members, .. }) => DataContent::Map(members),
                    None => return Err(UNPARSABLE),
                };
                self.place(DataValue::new(value))?;
            }
            Event::Scalar(text, style, _, tag) => self.place(DataValue::scalar(scalar(text, style, tag.is_some())))?,
            Event::Alias(_) => {
                let name = span.slice(self.text).unwrap_or("*").trim();
                self.place(DataValue::scalar(Cow::Borrowed(name)))?;
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd => {}
            _ => return Err(UNPARSABLE),
        }
        Ok(())
    }

    /// Puts a complete value where it belongs.
    fn place(&mut self, value: DataValue<'t>) -> Merged<()> {
        match self.open.last_mut() {
            None => {
                let number = self.documents.len().to_string();
                self.documents.push((Cow::Owned(number), value));
            }
            Some(OpenValue::List(elements)) => elements.push(value),
            Some(OpenValue::Map { members, keys, key }) => match key.take() {
                Some(name) => members.push((name, value)),
                None => {
                    let name = value.into_key();
                    if !keys.insert(name.clone()) {
                        return Err(ConflictReason::KeyTwice(name.into_owned()));
                    }
                    *key = Some(name);
                }
            },
        }
        Ok(())
    }
}

/// A quoted text such as `"1"` differs from the number.
fn scalar(text: Cow<'_, str>, style: ScalarStyle, is_tagged: bool) -> Cow<'_, str> {
    let is_special = |text: &str| text.is_empty() || text.starts_with(|c: char| !c.is_alphabetic()) || text.len() < 6;
    match style {
        ScalarStyle::Plain if !is_tagged => text,
        _ if is_tagged => Cow::Owned(format!("!{text}")),
        _ if is_special(&text) => Cow::Owned(format!("\"{text}")),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn double_keys_and_broken_texts_are_refused() {
        assert_eq!(parse_yaml("a: 1\na: 2"), Err(ConflictReason::KeyTwice("a".to_owned())));
        assert_eq!(parse_yaml("a:\n  b: 1\n  b: 2"), Err(ConflictReason::KeyTwice("b".to_owned())));
        for text in ["a: [1", "a: b: c", "a: *unknown"] {
            assert_eq!(parse_yaml(text), Err(UNPARSABLE), "{text}");
        }
        assert_eq!(parse_yaml(&["[".repeat(200), "]".repeat(200)].concat()).unwrap_err(), ConflictReason::TooDeep);
    }

    #[test]
    fn spelling_of_a_number_counts() {
        assert_ne!(parse_yaml("a: 1"), parse_yaml("a: \"1\""));
        assert_eq!(parse_yaml("a: some words"), parse_yaml("a: \"some words\""));
        assert_eq!(parse_yaml("a: 1\nb: 2"), parse_yaml("{a: 1, b: 2}"));
    }
}
