//! Moments in the past as people write them.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

/// Parses `2 hours ago`, `3d ago`, RFC 3339 such as `2026-11-20T10:00:00Z`, or a time of this machine such as
/// `2026-11-20 10:00`. The error is the reason.
pub(crate) fn parse_moment(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    let text = text.trim();
    let at = if let Ok(at) = text.parse::<Timestamp>() {
        at
    } else if let Ok(local) = text.parse::<DateTime>() {
        local.to_zoned(TimeZone::system()).map_err(|e| e.to_string())?.timestamp()
    } else {
        let span = text.parse::<Span>().map_err(|_| {
            format!("{text:?} is no time; write `2 hours ago`, `2026-11-20 10:00` or `2026-11-20T10:00:00Z`")
        })?;
        now.checked_add(span).map_err(|e| e.to_string())?.timestamp()
    };
    if at > now.timestamp() {
        return Err(format!("{text:?} is in the future; for a time in the past, write `ago` behind it"));
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moment_is_parsed_from_each_form() {
        let now: Zoned = "2026-11-20T12:00:00+00:00[UTC]".parse().unwrap();
        for (text, want) in [
            ("2 hours ago", "2026-11-20T10:00:00Z"),
            ("90s ago", "2026-11-20T11:58:30Z"),
            ("1 day ago", "2026-11-19T12:00:00Z"),
            ("2 weeks ago", "2026-11-06T12:00:00Z"),
            ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00Z"),
            ("2026-11-20T10:00:00+02:00", "2026-11-20T08:00:00Z"),
        ] {
            assert_eq!(parse_moment(text, &now).map(|at| at.to_string()), Ok(want.to_owned()), "{text}");
        }
        assert!(parse_moment("2026-11-18 10:00", &now).is_ok());
        assert!(parse_moment("2026-11-18", &now).is_ok());
        for (text, why) in
            [("2 hours", "future"), ("2027-01-01T00:00:00Z", "future"), ("soon", "is no time"), ("", "is no time")]
        {
            assert!(parse_moment(text, &now).unwrap_err().contains(why), "{text}");
        }
    }
}
