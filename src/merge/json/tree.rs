//! A JSON text as a tree of spans.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use jsonc_parser::ast::{ObjectPropName, Value};
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use crate::merge::data::{DataTree, DataView, MAX_DEPTH, hash_of};
use crate::merge::driver::MergeDriver;
use crate::merge::outcome::{ConflictReason, Merged};

/// A value with its text.
#[derive(Debug)]
pub(crate) struct JsonNode<'t> {
    pub(super) start: usize,
    pub(crate) text: &'t str,
    pub(super) content: JsonContent<'t>,
    /// Equal for values that mean the same, however they are written.
    pub(super) meaning: u64,
}

#[derive(Debug)]
pub(crate) enum JsonContent<'t> {
    Object(Vec<JsonMember<'t>>),
    Array(Vec<JsonNode<'t>>),
    /// A string without its escapes.
    Text(Cow<'t, str>),
    /// A number as it is written, `true`, `false` or `null`.
    Word,
}

#[derive(Debug)]
pub(crate) struct JsonMember<'t> {
    pub(super) start: usize,
    pub(super) key: Cow<'t, str>,
    /// The key as it is written.
    pub(super) name: &'t str,
    /// The colon with the blank text around it.
    pub(super) colon: &'t str,
    pub(super) value: JsonNode<'t>,
}

const STRICT: ParseOptions = ParseOptions {
    allow_comments: false,
    allow_loose_object_property_names: false,
    allow_trailing_commas: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

impl<'t> JsonNode<'t> {
    /// Parses strict JSON. A key that is there twice is an error.
    pub(crate) fn parse(text: &'t str) -> Merged<Self> {
        let unparsable = ConflictReason::Unparsable(MergeDriver::Json);
        let parsed = parse_to_ast(text, &CollectOptions::default(), &STRICT).map_err(|_| unparsable.clone())?;
        Self::from_ast(text, parsed.value.ok_or(unparsable)?, 0)
    }

    fn from_ast(text: &'t str, value: Value<'t>, depth: usize) -> Merged<Self> {
        if depth > MAX_DEPTH {
            return Err(ConflictReason::TooDeep);
        }
        let (start, end) = (value.start(), value.end());
        let own = &text[start..end];
        let content = match value {
            Value::Object(object) => {
                let mut members = Vec::with_capacity(object.properties.len());
                for property in object.properties {
                    let (start, name_end) = (property.name.start(), property.name.end());
                    let ObjectPropName::String(key) = property.name else {
                        return Err(ConflictReason::Unparsable(MergeDriver::Json));
                    };
                    let value = Self::from_ast(text, property.value, depth + 1)?;
                    let (name, colon) = (&text[start..name_end], &text[name_end..value.start]);
                    members.push(JsonMember { start, key: key.value, name, colon, value });
                }
                refuse_double_keys(&members)?;
                JsonContent::Object(members)
            }
            Value::Array(array) => {
                let mut elements = Vec::with_capacity(array.elements.len());
                for element in array.elements {
                    elements.push(Self::from_ast(text, element, depth + 1)?);
                }
                JsonContent::Array(elements)
            }
            Value::StringLit(string) => JsonContent::Text(string.value),
            Value::NumberLit(_) | Value::BooleanLit(_) | Value::NullKeyword(_) => JsonContent::Word,
        };
        let meaning = meaning_of(own, &content);
        Ok(Self { start, text: own, content, meaning })
    }

    pub(super) fn end(&self) -> usize {
        self.start + self.text.len()
    }

    pub(super) fn means(&self, other: &Self) -> bool {
        self.meaning == other.meaning
    }

    /// A string or a number, as an element is known by it. Texts and words differ.
    pub(crate) fn scalar(&self) -> Option<(bool, &str)> {
        match &self.content {
            JsonContent::Text(text) => Some((true, text)),
            JsonContent::Word => Some((false, self.text)),
            JsonContent::Object(_) | JsonContent::Array(_) => None,
        }
    }

    /// The member of an object.
    pub(crate) fn member(&self, key: &str) -> Option<&Self> {
        let JsonContent::Object(members) = &self.content else { return None };
        members.iter().find(|member| member.key == key).map(|member| &member.value)
    }
}

impl DataTree for JsonNode<'_> {
    fn view(&self) -> DataView<'_, Self> {
        match &self.content {
            JsonContent::Object(members) => DataView::Map(members.iter().map(|m| (m.key.as_ref(), &m.value)).collect()),
            JsonContent::Array(elements) => DataView::List(elements),
            JsonContent::Text(text) => DataView::Scalar(Cow::Borrowed(text)),
            JsonContent::Word => DataView::Scalar(Cow::Borrowed(self.text)),
        }
    }

    fn member(&self, key: &str) -> Option<&Self> {
        JsonNode::member(self, key)
    }

    fn meaning(&self) -> u64 {
        self.meaning
    }
}

/// Objects with more members get a set to find a key that is there twice.
const MAX_PAIRWISE_KEYS: usize = 12;

fn refuse_double_keys(members: &[JsonMember<'_>]) -> Merged<()> {
    let mut keys = HashSet::new();
    let twice = if members.len() <= MAX_PAIRWISE_KEYS {
        let is_known = |(at, member): &(usize, &JsonMember<'_>)| members[..*at].iter().any(|m| m.key == member.key);
        members.iter().enumerate().find(is_known).map(|(_, member)| member)
    } else {
        members.iter().find(|member| !keys.insert(&member.key))
    };
    match twice {
        Some(member) => Err(ConflictReason::KeyTwice(member.key.to_string())),
        None => Ok(()),
    }
}

fn meaning_of(text: &str, content: &JsonContent<'_>) -> u64 {
    match content {
        // The order of keys means nothing.
        JsonContent::Object(members) => members
            .iter()
            .fold(1, |sum: u64, member| sum.wrapping_add(hash_of((member.key.as_ref(), member.value.meaning)))),
        JsonContent::Array(elements) => {
            let mut hasher = DefaultHasher::new();
            2u8.hash(&mut hasher);
            elements.iter().for_each(|element| element.meaning.hash(&mut hasher));
            hasher.finish()
        }
        JsonContent::Text(text) => hash_of((3u8, text.as_ref())),
        JsonContent::Word => hash_of((4u8, text)),
    }
}
