//! Tells failures apart: which class of [`RemoteError`] an answer or a broken connection is.

use std::error::Error;
use std::io;
use std::time::Duration;

use http::header::{DATE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use rustls::CertificateError;
use serde::Deserialize;
use serde_json::Value;

use super::pinned::Another;
use crate::digest::Md5;
use crate::protocol::ErrorContext;
use crate::remote::RemoteError;

/// No proxy makes us wait longer than this.
const MAX_WAIT: Duration = Duration::from_secs(15 * 60);
/// Longest piece of a server's words that is passed on, characters.
const MAX_DETAIL: usize = 300;

/// What the body of an error answer tells. Other servers than a Memory Proxy put other things there, so
/// nothing is required.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) detail: Option<String>,
    pub(super) error_code: Option<String>,
    pub(super) context: ErrorContext,
}

impl Told {
    pub(super) fn parse(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Loose {
            #[serde(default)]
            detail: Value,
            #[serde(default)]
            error_code: Value,
            #[serde(default)]
            context: Value,
        }
        let Ok(loose) = serde_json::from_slice::<Loose>(body) else { return Self::default() };
        Self {
            detail: match loose.detail {
                Value::Null => None,
                Value::String(text) => Some(text),
                other => Some(other.to_string()),
            },
            error_code: loose.error_code.as_str().map(str::to_owned),
            context: serde_json::from_value(loose.context).unwrap_or_default(),
        }
    }
}

/// What a 412 says the server holds; `none`, no word and nonsense are all `None`.
pub(super) fn held(current_md5: Option<&str>) -> Option<Md5> {
    current_md5?.parse().ok()
}

/// The class of an answer that is none of those the request allows for.
pub(super) fn refusal(
    url: &str,
    status: StatusCode,
    headers: &HeaderMap,
    told: &Told,
    clean: impl Fn(&str) -> String,
) -> RemoteError {
    let url = url.to_owned();
    let code = status.as_u16();
    let detail = match &told.detail {
        Some(text) => clean(text),
        None => status.canonical_reason().unwrap_or("no reason given").to_owned(),
    };
    match code {
        401 | 403 => RemoteError::Auth { url, status: code },
        // Said on the way to the proxy, or of the way: nothing is known of the proxy itself.
        408 | 502 | 504 => RemoteError::Unreachable { url, why: format!("status {code}: {detail}") },
        413 => RemoteError::TooLarge { url, why: detail },
        429 => RemoteError::Throttled { url, status: code, after: retry_after(headers) },
        503 if headers.contains_key(RETRY_AFTER) => {
            RemoteError::Throttled { url, status: code, after: retry_after(headers) }
        }
        300..=399 => {
            let to = headers.get(LOCATION).map(|v| clean(&String::from_utf8_lossy(v.as_bytes())));
            let why = match to {
                Some(to) => format!("a redirect ({code}) to {to}; set proxy.url to where the proxy really is"),
                None => format!("status {code}"),
            };
            RemoteError::Protocol { url, why }
        }
        400..=499 => RemoteError::Refused { url, status: code, detail },
        // No room for this one; a smaller one may be taken.
        507 => RemoteError::Refused { url, status: code, detail },
        500..=599 => RemoteError::Server { url, status: code, detail },
        _ => RemoteError::Protocol { url, why: format!("status {code}") },
    }
}

/// `Retry-After` in either form (RFC 9110, 10.2.3), capped. A date counts from the server's own clock where it
/// tells that.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // Digits alone that do not fit mean a very long time.
        return Some(text.parse().map_or(MAX_WAIT, Duration::from_secs).min(MAX_WAIT));
    }
    let now = date(headers).unwrap_or_else(Timestamp::now);
    let wait = parse_date(text)?.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO).min(MAX_WAIT))
}

/// The server's clock when it answered.
pub(super) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    parse_date(headers.get(DATE)?.to_str().ok()?)
}

fn parse_date(text: &str) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(text).ok()
}

/// `text` on one line of at most 300 characters, with the token, should a server send it back, blotted out.
pub(super) fn clean(text: &str, token: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control()).collect();
    let plain = if token.is_empty() { plain } else { plain.replace(token, "[token]") };
    plain.chars().take(MAX_DETAIL).collect()
}

/// What became of a request that got no answer.
pub(super) enum Transport {
    /// With the reason, for people.
    Unreachable(String),
    /// Something answered, but not in HTTP.
    Protocol(String),
}

/// Finds the reason in reqwest's chain of errors.
pub(super) fn transport(e: &reqwest::Error) -> Transport {
    if e.is_dns() {
        return Transport::Unreachable("its host name is not known; check proxy.url and the network".to_owned());
    }
    let mut deepest: &dyn Error = e;
    loop {
        if let Some(tls) = as_tls(deepest) {
            return Transport::Unreachable(tls_reason(tls));
        }
        if let Some(io) = deepest.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => {
                    return Transport::Unreachable("connection refused; is the proxy running?".to_owned());
                }
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                    return Transport::Unreachable("the connection was cut off".to_owned());
                }
                _ => {}
            }
        }
        if let Some(hyper) = deepest.downcast_ref::<hyper::Error>() {
            if hyper.is_parse() {
                return Transport::Protocol(format!("it does not speak HTTP: {hyper}"));
            }
            if hyper.is_incomplete_message() {
                return Transport::Unreachable("the connection was cut off".to_owned());
            }
        }
        match deepest.source() {
            Some(source) => deepest = source,
            None => break,
        }
    }
    if e.is_timeout() {
        return Transport::Unreachable("it did not answer in time".to_owned());
    }
    Transport::Unreachable(deepest.to_string())
}

/// rustls hides its error inside one or more `io::Error`s, whose `source` passes over it.
fn as_tls<'a>(e: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    e.downcast_ref().or_else(|| as_tls(e.downcast_ref::<io::Error>()?.get_ref()?))
}

fn tls_reason(e: &rustls::Error) -> String {
    match e {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its TLS certificate comes from an authority that is not known here; \
             put that authority's certificate into proxy.ca_file"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its TLS certificate is for another name; check proxy.url".to_owned(),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "its TLS certificate is not valid today; check the clock here, then ask whoever runs the proxy".to_owned(),
        rustls::Error::InvalidCertificate(CertificateError::Other(why)) if why.0.is::<Another>() => why.to_string(),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS; should proxy.url be http://?".to_owned(),
        other => format!("TLS failed: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(retry: &str, date: Option<&str>) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(RETRY_AFTER, retry.parse().unwrap());
        if let Some(date) = date {
            map.insert(DATE, date.parse().unwrap());
        }
        map
    }

    #[test]
    fn retry_after_in_all_its_forms() {
        let now = Some("Wed, 21 Oct 2015 07:28:00 GMT");
        for (text, date, want) in [
            ("0", None, Some(0)),
            ("7", None, Some(7)),
            ("901", None, Some(900)),
            ("99999999999999999999999999", None, Some(900)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", now, Some(30)),
            ("Wed, 21 Oct 2015 09:28:30 GMT", now, Some(900)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", now, Some(0)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", None, Some(0)),
            ("soon", None, None),
            ("-1", None, None),
            ("", None, None),
        ] {
            assert_eq!(retry_after(&headers(text, date)), want.map(Duration::from_secs), "{text:?} {date:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn words_of_a_server_are_made_fit_to_show() {
        assert_eq!(clean("a\x1b[31m\nb\u{9b}c", "tok"), "a[31mbc");
        assert_eq!(clean("you sent to\0ken-1", "token-1"), "you sent [token]");
        assert_eq!(clean(&"ü".repeat(500), "t"), "ü".repeat(300));
    }

    #[test]
    fn error_bodies_of_all_kinds_are_read() {
        let told = Told::parse(br#"{"detail":"no","error_code":null,"context":{"current_md5":"none"}}"#);
        assert_eq!(told.detail.as_deref(), Some("no"));
        assert_eq!(told.context.current_md5.as_deref(), Some("none"));
        assert_eq!(Told::parse(br#"{"detail":[{"msg":"bad"}]}"#).detail.as_deref(), Some(r#"[{"msg":"bad"}]"#));
        assert_eq!(Told::parse(br#"{"detail":"x","context":7}"#).detail.as_deref(), Some("x"));
        assert_eq!(Told::parse(b"<html>").detail, None);
    }
}
