//! [`MergeMap`]: the files that are merged in another way than their names say.

use crate::local::pattern::PathPattern;
use crate::merge::{MergeDriver, MergeRules};
use crate::path::RelPath;

/// `[merge]`: patterns, each with the way to merge the files that it selects. The last pattern that selects a file decides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MergeMap(Vec<(PathPattern, MergeDriver)>);

impl MergeMap {
    /// Adds a pattern behind the others.
    pub fn push(&mut self, pattern: PathPattern, driver: MergeDriver) {
        self.0.push((pattern, driver));
    }

    /// The rules for a file. `None`: its versions are never merged.
    pub fn rules(&self, path: &RelPath) -> Option<MergeRules> {
        let name = path.as_str();
        let chosen = self.0.iter().rev().find(|(pattern, _)| pattern.selects(name));
        let rules = match chosen {
            Some((_, driver)) => MergeRules::with_driver(*driver, name),
            None => MergeRules::for_name(name),
        };
        (rules.driver != MergeDriver::Copy).then_some(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_pattern_that_selects_a_file_decides() {
        let mut map = MergeMap::default();
        for (pattern, driver) in
            [("*.md", MergeDriver::Text), ("private/", MergeDriver::Copy), ("private/shared.md", MergeDriver::Markdown)]
        {
            map.push(PathPattern::new(pattern).unwrap(), driver);
        }
        let driver = |path: &str| map.rules(&RelPath::parse(path).unwrap()).map(|rules| rules.driver);
        assert_eq!(driver("a.md"), Some(MergeDriver::Text));
        assert_eq!(driver("private/a.md"), None);
        assert_eq!(driver("private/shared.md"), Some(MergeDriver::Markdown));
        assert_eq!(driver("a.json"), Some(MergeDriver::Json));
    }
}
