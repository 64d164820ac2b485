//! Formats sizes, times, names, colours and tables for people.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::path::visible;

pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(crate) const BUSY: Style = AnsiColor::Yellow.on_default().bold();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const BOLD: Style = Style::new().bold();

/// `text` in a style. The output removes the escape codes where it is no terminal.
pub(crate) fn painted(style: Style, text: &str) -> String {
    format!("{}{text}{}", style.render(), style.render_reset())
}

/// A number of bytes in the unit that fits: `12 B`, `3.4 kB`, `120 MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // f64 is exact enough for the three digits shown.
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A length of time in its largest unit: `12 s`, `5 min`, `3 h`, `2 days`.
pub(crate) fn span(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min", s / 60),
        s @ 3600..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// How long `at` is before `now`: `12 s ago`. A time in the future is `just now`: the clock was set back.
pub(crate) fn ago(now: Timestamp, at: Timestamp) -> String {
    match Duration::try_from(now.duration_since(at)) {
        Ok(past) if past.as_secs() >= 1 => format!("{} ago", span(past)),
        _ => "just now".to_owned(),
    }
}

/// A moment on this machine's clock.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A day on this machine's clock.
pub(crate) fn day(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d").to_string()
}

/// `n file` or `n files`.
pub(crate) fn count(n: usize, one: &str) -> String {
    let many = match one.strip_suffix('y') {
        _ if n == 1 => one.to_owned(),
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ => format!("{one}s"),
    };
    format!("{n} {many}")
}

/// `text` with control characters and direction marks escaped.
pub(crate) fn printable(text: &str) -> String {
    visible(text)
}

/// One line of a text with control characters and direction marks escaped, but tabs as they are.
pub(crate) fn text_line(line: &str) -> String {
    line.split('\t').map(visible).collect::<Vec<_>>().join("\t")
}

/// The content as a text. `None` for other content.
pub(crate) fn text_of(content: &[u8]) -> Option<&str> {
    str::from_utf8(content).ok().filter(|text| !text.contains('\0'))
}

/// A path with control characters and direction marks escaped.
pub(crate) fn path(path: &Path) -> String {
    visible(&path.display().to_string())
}

/// A table without borders.
pub(crate) fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

pub(crate) fn write_table(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_has_the_unit_that_fits() {
        for (bytes, want) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (34_567, "35 kB"),
            (9_949, "9.9 kB"),
            (9_951, "10 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (64 << 20, "67 MB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn ago_counts_from_now() {
        let now: Timestamp = "2026-01-03T00:00:00Z".parse().unwrap();
        for (at, want) in [
            ("2026-01-03T00:00:00Z", "just now"),
            ("2026-01-03T01:00:00Z", "just now"),
            ("2026-01-02T23:59:48Z", "12 s ago"),
            ("2026-01-02T23:55:00Z", "5 min ago"),
            ("2026-01-02T00:00:00Z", "24 h ago"),
            ("2026-01-01T00:00:00Z", "2 days ago"),
        ] {
            assert_eq!(ago(now, at.parse().unwrap()), want);
        }
    }

    #[test]
    fn printable_escapes_control_characters() {
        assert_eq!(printable("a\u{1b}[2J\u{202e}b"), "a\\u{1b}[2J\\u{202e}b");
    }

    #[test]
    fn count_forms_plurals() {
        assert_eq!(
            [count(1, "copy"), count(2, "copy"), count(0, "file"), count(0, "key"), count(2, "day")],
            ["1 copy", "2 copies", "0 files", "0 keys", "2 days"]
        );
    }
}
