//! Two texts in one, with their differences between markers, for an editor.

use super::diff::changed_lines;

const DIVIDER: &str = "=======";

/// A text with markers, and the markers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MarkedText {
    pub(crate) text: String,
    begin: String,
    end: String,
    /// Lines of a text that look like the divider, as a heading does.
    divider_lines: usize,
}

impl MarkedText {
    /// Both texts. `names`: the names of the texts, which the markers show.
    pub(crate) fn new(file: &str, copy: &str, names: [&str; 2]) -> Self {
        let (begin, end) = (format!("<<<<<<< {}", names[0]), format!(">>>>>>> {}", names[1]));
        let lines: Vec<&str> = file.split_inclusive('\n').collect();
        let (mut text, mut at) = (String::new(), 0);
        for change in changed_lines(file, copy) {
            let start = change.old_line - 1;
            text += &lines[at..start].concat();
            text += &format!("{begin}\n{}{DIVIDER}\n{}{end}\n", ended(&change.old), ended(&change.new));
            at = start + change.old.len();
        }
        text += &lines[at..].concat();
        let divider_lines = count_dividers(file).max(count_dividers(copy));
        Self { text, begin, end, divider_lines }
    }

    /// True if `edited` still has a marker.
    pub(crate) fn has_markers(&self, edited: &str) -> bool {
        let is_marker = |line: &str| line.starts_with(&self.begin) || line.starts_with(&self.end);
        edited.lines().any(is_marker) || count_dividers(edited) > self.divider_lines
    }
}

fn count_dividers(text: &str) -> usize {
    text.lines().filter(|line| line.trim_end() == DIVIDER).count()
}

/// The lines with a line end behind the last one.
fn ended(lines: &[&str]) -> String {
    let mut text = lines.concat();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_stand_between_markers() {
        let marked = MarkedText::new("# A\nmine\nend\n", "# A\nyours\nend\nmore", ["file", "copy"]);
        let expected =
            "# A\n<<<<<<< file\nmine\n=======\nyours\n>>>>>>> copy\nend\n<<<<<<< file\n=======\nmore\n>>>>>>> copy\n";
        assert_eq!(marked.text, expected);
        assert!(marked.has_markers(&marked.text));
        assert!(!marked.has_markers("# A\nmine and yours\nend\nmore\n"));
        for left in ["<<<<<<< file", "=======", ">>>>>>> copy"] {
            assert!(marked.has_markers(&format!("# A\n{left}\n")), "{left}");
        }
    }

    #[test]
    fn heading_that_looks_like_a_divider_may_stay() {
        let marked = MarkedText::new("Title\n=======\nmine\n", "Title\n=======\nyours\n", ["file", "copy"]);
        assert!(!marked.has_markers("Title\n=======\nboth\n"));
        assert!(marked.has_markers("Title\n=======\nboth\n=======\n"));
    }
}
