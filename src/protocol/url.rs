//! Percent coding of paths and device names.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Every byte but the unreserved ones of RFC 3986 and `/`.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The path, percent-encoded per segment, as a URL holds it.
pub fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, RESERVED).to_string()
}

/// Decodes the percent-encoded name of a device. `None`: the name is no UTF-8, or has control characters, which could
/// steer a terminal.
pub fn decode_name(raw: &str) -> Option<String> {
    let name = percent_decode_str(raw).decode_utf8().ok()?;
    (!name.chars().any(char::is_control)).then(|| name.into_owned())
}
