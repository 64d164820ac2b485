//! JSON, by key. The merge works on spans of the three texts, so untouched bytes stay as they are written.

mod canvas;
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
    canvas::check_edges(&trees, &result)?;
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(base: &str, local: &str, remote: &str) -> Merged<String> {
        let result = merge(&ThreeWay { base, local, remote });
        assert_eq!(result, merge(&ThreeWay { base, local: remote, remote: local }));
        result
    }

    #[test]
    fn untouched_bytes_stay_as_they_are_written() {
        let base = r#"{ "a" : 1.50,  "b":"\u00e9", "c":[1,  2], "d": {}}"#;
        let local = r#"{ "a" : 1.50,  "b":"\u00e9", "c":[1,  2,3], "d": {}}"#;
        let remote = r#"{ "a" : 1.5,  "b":"\u00e9", "c":[1,  2], "d": {}, "e": 1e3}"#;
        let expected = r#"{ "a" : 1.5,  "b":"\u00e9", "c":[1,  2,3], "d": {}, "e": 1e3}"#;
        assert_eq!(merged(base, local, remote).unwrap(), expected);
    }

    #[test]
    fn first_members_are_added_and_removed() {
        assert_eq!(merged("{}", r#"{"a": 1}"#, r#"{"b": 2}"#).unwrap(), r#"{"a": 1, "b": 2}"#);
        assert_eq!(merged("{}", "{\n  \"a\": 1\n}", "{\n  \"b\": 2\n}").unwrap(), "{\n  \"a\": 1,\n  \"b\": 2\n}");
        assert_eq!(merged(r#"{"a":1,"b":1}"#, r#"{"b":1}"#, r#"{"a":1,"b":2}"#).unwrap(), r#"{"b":2}"#);
        assert_eq!(merged(r#"{"a":1,"b":1}"#, r#"{"b":1}"#, r#"{"a":1}"#).unwrap(), "{}");
    }

    #[test]
    fn texts_that_mean_the_same_are_no_change() {
        assert_eq!(
            merged(r#"{"a":"é","b":1}"#, r#"{"a":"\u00e9","b":1}"#, r#"{"a":"é","b":2}"#).unwrap(),
            r#"{"a":"\u00e9","b":2}"#
        );
        assert_eq!(merged(r#"{"a":1}"#, r#"{"a":1.0}"#, r#"{"a":2}"#), Err(ConflictReason::SameKey("a".to_owned())));
    }

    #[test]
    fn doubled_keys_and_comments_are_refused() {
        let result = merged(r#"{"a":1}"#, r#"{"a":1,"a":2}"#, r#"{"a":1,"b":2}"#);
        assert_eq!(result, Err(ConflictReason::KeyTwice("a".to_owned())));
        let unparsable = Err(ConflictReason::Unparsable(MergeDriver::Json));
        for broken in
            ["{\"a\":1,}", "{\"a\":1} // why", "{a:1}", "{\"a\":01}", "{\"a\":1", "", "{'a':1}", "1 2", "{\"a\":+1}"]
        {
            assert_eq!(merged(r#"{"a":1}"#, broken, r#"{"a":3}"#), unparsable, "{broken}");
        }
    }

    #[test]
    fn elements_without_identities_are_one_value() {
        assert!(merged("[1]", "[1,2]", "[1,3]").is_err());
        assert!(merged(r#"[{"a":1}]"#, r#"[{"a":1},{"a":2}]"#, r#"[{"a":1},{"a":3}]"#).is_err());
        assert!(merged(r#"["a","b"]"#, r#"["a"]"#, r#"["a","b","c"]"#).is_err(), "a text was removed");
    }

    #[test]
    fn arrow_to_a_removed_box_is_a_conflict() {
        let drawing = |boxes: &str, arrows: &str| format!(r#"{{"nodes":[{boxes}],"edges":[{arrows}]}}"#);
        let (a, b) = (r#"{"id":"a"}"#, r#"{"id":"b"}"#);
        let arrow = |id: &str| format!(r#"{{"id":"{id}","fromNode":"a","toNode":"b"}}"#);
        let base = drawing(&format!("{a},{b}"), "");
        let with_arrow = drawing(&format!("{a},{b}"), &arrow("1"));
        assert_eq!(merged(&base, &drawing(a, ""), &with_arrow), Err(ConflictReason::RemovedAndChanged("b".to_owned())));
        let both = drawing(&format!("{a},{b}"), &[arrow("1"), arrow("2")].join(","));
        assert_eq!(merged(&base, &drawing(&format!("{a},{b}"), &arrow("2")), &with_arrow).unwrap(), both);
    }

    #[test]
    fn value_moved_to_two_keys_is_a_conflict() {
        assert_eq!(merged(r#"{"a":5}"#, r#"{"b":5}"#, r#"{"c":5}"#), Err(ConflictReason::MovedApart));
        assert_eq!(
            merged(r#"{"a":{"k":5},"x":{}}"#, r#"{"x":{"k":5}}"#, r#"{"b":{"k":5},"x":{}}"#),
            Err(ConflictReason::MovedApart)
        );
        assert_eq!(merged(r#"{"a":5}"#, r#"{"b":5}"#, r#"{"b":5,"c":6}"#).unwrap(), r#"{"b":5,"c":6}"#);
        let changed = merged(r#"{"a":true}"#, r#"{"a":false,"b":true}"#, r#"{"a":false,"c":true}"#);
        assert_eq!(changed.unwrap(), r#"{"a":false,"b":true,"c":true}"#, "a value that both changed has not moved");
    }

    #[test]
    fn nested_lists_of_objects_are_merged() {
        let base = r#"{"n":[{"id":1,"l":[{"id":"x","v":1},{"id":"y","v":1}]}]}"#;
        let local = base.replace(r#""x","v":1"#, r#""x","v":2"#);
        let remote = base.replace(r#""y","v":1"#, r#""y","v":3"#);
        let expected = local.replace(r#""y","v":1"#, r#""y","v":3"#);
        assert_eq!(merged(base, &local, &remote).unwrap(), expected);
    }
}
