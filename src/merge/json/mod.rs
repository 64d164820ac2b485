//! JSON, by key. The merge works on spans of the three texts, so untouched bytes stay as they are written.

mod elements;
mod layout;
mod tree;
mod value;

use super::data;
use super::driver::MergeDriver;
use super::outcome::{ConflictReason, Merged};
use super::threeway::ThreeWay;
use layout::LayoutChoice;
pub(crate) use tree::JsonNode;
use value::{JsonVersions, merge_value};

/// Merges three JSON texts.
pub(super) fn merge(texts: &ThreeWay<&str>) -> Merged<String> {
    let trees = texts.try_map(|text| JsonNode::parse(text))?;
    let layout = LayoutChoice::of(texts);
    let versions = JsonVersions { base: Some(&trees.base), local: &trees.local, remote: &trees.remote };
    let merged = merge_value(versions, "", &layout)?;
    // Blank lines around the document.
    let heads = ThreeWay {
        base: &texts.base[..trees.base.start],
        local: &texts.local[..trees.local.start],
        remote: &texts.remote[..trees.remote.start],
    };
    let tails = ThreeWay {
        base: &texts.base[trees.base.end()..],
        local: &texts.local[trees.local.end()..],
        remote: &texts.remote[trees.remote.end()..],
    };
    let merged = format!("{}{merged}{}", layout.choose(heads), layout.choose(tails));
    let result = JsonNode::parse(&merged).map_err(|_| ConflictReason::Broken(MergeDriver::Json))?;
    data::check_data(&trees, &result)?;
    Ok(merged)
}
