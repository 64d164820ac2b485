//! Timestamps in texts: the values of stamp keys, and the times at the head of lines. No clock is read.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};

/// The keys that programs write at each save.
const STAMP_KEYS: &[&str] = &["updated", "updated_at", "modified", "last_modified", "lastSync", "date_modified"];

/// Times of different forms are comparable only if they are further apart than all time zones.
const MAX_ZONE_SECONDS: i64 = 48 * 60 * 60;

/// A time as it is written. Only times of one form can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WrittenTime {
    /// With an offset, or in UTC.
    Instant(Timestamp),
    Civil(DateTime),
    Day(Date),
    /// A time of a day that is not written.
    Clock(Time),
    /// Seconds, or another unit, since 1970.
    Number {
        digits: usize,
        value: u64,
    },
}

impl WrittenTime {
    /// The order of two times of one form.
    pub(super) fn is_later(self, other: Self) -> Option<bool> {
        (std::mem::discriminant(&self) == std::mem::discriminant(&other)).then(|| self > other)
    }

    fn seconds(self) -> Option<i64> {
        let civil = match self {
            Self::Instant(at) => return Some(at.as_second()),
            Self::Civil(at) => at,
            Self::Day(day) => day.at(0, 0, 0, 0),
            Self::Clock(_) | Self::Number { .. } => return None,
        };
        civil.in_tz("UTC").ok().map(|at| at.timestamp().as_second())
    }
}

pub(super) fn is_stamp_key(key: &str) -> bool {
    STAMP_KEYS.contains(&key)
}

/// The later of two written times. `None` unless both are times that can be compared. The texts may be in quotes.
pub(super) fn later<'a>(one: &'a str, other: &'a str) -> Option<&'a str> {
    let (a, b) = (stamp_time(one)?, stamp_time(other)?);
    if a == b {
        return Some(one.max(other));
    }
    match (a, b) {
        (WrittenTime::Number { digits: x, .. }, WrittenTime::Number { digits: y, .. }) if x != y => None,
        _ => match a.is_later(b) {
            Some(is_later) => Some(if is_later { one } else { other }),
            None => {
                let apart = a.seconds()? - b.seconds()?;
                (apart.abs() > MAX_ZONE_SECONDS).then_some(if apart > 0 { one } else { other })
            }
        },
    }
}

/// The time that the value of a stamp key is.
fn stamp_time(value: &str) -> Option<WrittenTime> {
    let text = value.trim();
    let unquoted = ['"', '\''].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q)).unwrap_or(text);
    if (9..=19).contains(&unquoted.len()) && unquoted.bytes().all(|b| b.is_ascii_digit()) {
        return Some(WrittenTime::Number { digits: unquoted.len(), value: unquoted.parse().ok()? });
    }
    date_or_time(unquoted)
}

/// The time at the head of a line, behind a list marker, a checkbox or a bracket.
pub(super) fn leading_time(line: &str) -> Option<WrittenTime> {
    let text = line.trim_start_matches(|c: char| c.is_whitespace() || "-*+>|".contains(c));
    let text = ["[ ] ", "[x] ", "[X] "].iter().find_map(|mark| text.strip_prefix(mark)).unwrap_or(text);
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || "[(*_`".contains(c));
    let end = |c: char| c.is_whitespace() || "])*_`,|".contains(c);
    let mut words = text.split(end).filter(|word| !word.is_empty());
    let first = words.next()?.trim_end_matches(':');
    let both = words.next().map(|second| format!("{first}T{}", second.trim_end_matches(':')));
    both.and_then(|both| date_or_time(&both)).or_else(|| date_or_time(first))
}

fn date_or_time(text: &str) -> Option<WrittenTime> {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    if bytes.len() > 40 || !text.is_ascii() {
        return None;
    }
    let is_clock = |at: usize| is_digit(at) && is_digit(at + 1) && bytes.get(at + 2) == Some(&b':') && is_digit(at + 3);
    if is_clock(0) && bytes.len() <= 15 {
        return text.parse().ok().map(WrittenTime::Clock);
    }
    let is_date = bytes.len() >= 10 && (0..4).all(is_digit) && bytes[4] == b'-' && bytes[7] == b'-';
    if !is_date {
        return None;
    }
    if bytes.len() == 10 {
        return text.parse().ok().map(WrittenTime::Day);
    }
    if !matches!(bytes[10], b'T' | b't' | b' ') || !is_clock(11) {
        return None;
    }
    let text = text.replacen(' ', "T", 1);
    let instant = text.parse().ok().map(WrittenTime::Instant);
    instant.or_else(|| text.parse().ok().map(WrittenTime::Civil))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_stamp_wins_in_each_form() {
        for (early, late) in [
            ("2026-11-02T08:00:00Z", "2026-11-02T09:30:00Z"),
            ("2026-11-02T08:00:00Z", "2026-11-02T07:30:00-04:00"),
            ("2026-11-02", "2026-11-03"),
            ("\"2026-11-02 08:00\"", "\"2026-11-02 08:01\""),
            ("1700000000", "1700000001"),
            ("2026-11-02", "2026-11-22T08:00:00Z"),
        ] {
            assert_eq!(later(early, late), Some(late));
            assert_eq!(later(late, early), Some(late));
        }
    }

    #[test]
    fn other_values_are_no_stamps() {
        for (one, other) in [
            ("soon", "2026-11-02"),
            ("2026-11-02", "2026-11-02T08:00:00Z"),
            ("1700000000", "1700000000000"),
            ("2026-13-02", "2026-11-02"),
            ("3", "4"),
            ("", ""),
        ] {
            assert_eq!(later(one, other), None, "{one} {other}");
        }
    }

    #[test]
    fn times_lead_lines_behind_their_marks() {
        for line in [
            "2026-11-20T10:00:00Z start",
            "[2026-11-20 10:00:00] start",
            "- 10:05 woke",
            "- [ ] 2026-11-20 call",
            "* **10:05** woke",
            "10:00: ping",
        ] {
            assert!(leading_time(line).is_some(), "{line}");
        }
        for line in ["call at 10:00", "- a", "", "10 apples", "2026 was", "1:2"] {
            assert_eq!(leading_time(line), None, "{line}");
        }
    }
}
