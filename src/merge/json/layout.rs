//! The layout of JSON: blank text and commas. The side that changed it wins, for each place by itself.

use super::tree::{JsonContent, JsonNode};
use crate::merge::threeway::ThreeWay;

/// Whose layout counts where both sides changed it. The choice depends on the texts only.
pub(super) struct LayoutChoice {
    prefers_local: bool,
    /// A space stands behind colons and commas.
    is_spaced: bool,
}

impl LayoutChoice {
    pub(super) fn of(texts: &ThreeWay<&str>) -> Self {
        let is_spaced = [texts.local, texts.remote].iter().any(|text| text.contains("\": ") || text.contains(", "));
        Self { prefers_local: texts.local >= texts.remote, is_spaced }
    }

    pub(super) fn choose<T: PartialEq + Copy>(&self, parts: ThreeWay<T>) -> T {
        parts.resolve().copied().unwrap_or(if self.prefers_local { parts.local } else { parts.remote })
    }

    /// The part of the side that has one, or the choice of both.
    fn choose_known<'t>(&self, parts: ThreeWay<Option<&'t str>>) -> Option<&'t str> {
        match (parts.local, parts.remote) {
            (Some(_), Some(_)) => self.choose(parts),
            (known, None) | (None, known) => known,
        }
    }

    /// Writes an object or array with these parts.
    pub(super) fn write(&self, nodes: &ThreeWay<&JsonNode<'_>>, parts: &[LaidOutPart<'_>]) -> String {
        let spans = nodes.map(|node| JsonSpans::of(node));
        let open = self.choose_known(spans.map(|span| span.open)).unwrap_or_default();
        let close = self.choose_known(spans.map(|span| span.close)).unwrap_or_default();
        let usual = spans.map(|span| span.usual_lead);
        let lead = self.choose_known(usual).map_or_else(|| self.default_lead(open), str::to_owned);
        let brackets = nodes.local.text.as_bytes();
        let mut out = String::with_capacity(nodes.local.text.len().max(nodes.remote.text.len()));
        out.push(char::from(brackets[0]));
        for (at, part) in parts.iter().enumerate() {
            if at == 0 {
                out.push_str(open);
            } else {
                out.push_str(self.lead_of(part, &usual).unwrap_or(&lead));
            }
            out.push_str(&part.text);
        }
        if !parts.is_empty() {
            out.push_str(close);
        }
        out.push(char::from(brackets[brackets.len() - 1]));
        out
    }

    /// The own lead of a part, unless it is the usual one of its side.
    fn lead_of<'t>(&self, part: &LaidOutPart<'t>, usual: &ThreeWay<Option<&str>>) -> Option<&'t str> {
        let lead = self.choose_known(part.leads)?;
        let is_usual = [(part.leads.local, usual.local), (part.leads.remote, usual.remote)]
            .iter()
            .any(|(own, usual)| *own == Some(lead) && own == usual);
        (!is_usual).then_some(lead)
    }

    fn default_lead(&self, open: &str) -> String {
        if open.contains('\n') {
            format!(",{open}")
        } else if self.is_spaced {
            ", ".to_owned()
        } else {
            ",".to_owned()
        }
    }
}

/// A member or an element of the result.
pub(super) struct LaidOutPart<'t> {
    /// The text with the comma before the part, in each version where the part is there and is not the first one.
    pub(super) leads: ThreeWay<Option<&'t str>>,
    pub(super) text: String,
}

/// The blank text inside the brackets of one version. Empty brackets have none.
struct JsonSpans<'t> {
    open: Option<&'t str>,
    close: Option<&'t str>,
    /// Between the first two parts.
    usual_lead: Option<&'t str>,
}

impl<'t> JsonSpans<'t> {
    fn of(node: &JsonNode<'t>) -> Self {
        let ranges = part_ranges(node);
        let inside = |from: usize, to: usize| &node.text[from - node.start..to - node.start];
        let first = ranges.first().map(|(start, _)| inside(node.start + 1, *start));
        let last = ranges.last().map(|(_, end)| inside(*end, node.end() - 1));
        let usual_lead = ranges.get(1).map(|(start, _)| inside(ranges[0].1, *start));
        Self { open: first, close: last, usual_lead }
    }
}

/// The starts and ends of the members or elements.
fn part_ranges(node: &JsonNode<'_>) -> Vec<(usize, usize)> {
    match &node.content {
        JsonContent::Object(members) => members.iter().map(|m| (m.start, m.value.end())).collect(),
        JsonContent::Array(elements) => elements.iter().map(|e| (e.start, e.end())).collect(),
        JsonContent::Text(_) | JsonContent::Word => Vec::new(),
    }
}

/// The text before each part, with the comma. `None` for the first part.
pub(super) fn leads<'t>(node: &JsonNode<'t>) -> Vec<Option<&'t str>> {
    let ranges = part_ranges(node);
    let between = |pair: &[(usize, usize)]| Some(&node.text[pair[0].1 - node.start..pair[1].0 - node.start]);
    let first = ranges.first().map(|_| None);
    first.into_iter().chain(ranges.windows(2).map(between)).collect()
}
