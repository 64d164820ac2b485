//! Turns error answers and broken connections into [`RemoteError`].

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

use super::options::PinMismatch;
use crate::digest::Md5;
use crate::protocol::ErrorContext;
use crate::remote::RemoteError;

/// The longest wait that a proxy can ask for.
const MAX_WAIT: Duration = Duration::from_secs(15 * 60);
/// Longest text of a server that is passed on, characters.
const MAX_DETAIL: usize = 300;

/// The body of an error answer. Every field is optional, because other servers send other bodies.
#[derive(Debug, Default)]
pub(super) struct ErrorBody {
    pub(super) detail: Option<String>,
    pub(super) error_code: Option<String>,
    pub(super) context: ErrorContext,
}

impl ErrorBody {
    pub(super) fn parse(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct LooseBody {
            #[serde(default)]
            detail: Value,
            #[serde(default)]
            error_code: Value,
            #[serde(default)]
            context: Value,
        }
        let Ok(loose) = serde_json::from_slice::<LooseBody>(body) else { return Self::default() };
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

    /// The MD5 that the path holds, where a 412 gives it.
    pub(super) fn current_md5(&self) -> Option<Md5> {
        parse_held(self.context.current_md5.as_deref())
    }
}

/// The MD5 that a 412 says the path holds. `None` for `none`, for a missing field and for nonsense.
pub(super) fn parse_held(current_md5: Option<&str>) -> Option<Md5> {
    current_md5?.parse().ok()
}

/// The error for an answer with an unexpected status.
pub(super) fn refusal(
    url: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &ErrorBody,
    clean: impl Fn(&str) -> String,
) -> RemoteError {
    let url = url.to_owned();
    let code = status.as_u16();
    let detail = match &body.detail {
        Some(text) => clean(text),
        None => status.canonical_reason().unwrap_or("no reason given").to_owned(),
    };
    match code {
        401 | 403 => RemoteError::Auth { url, status: code },
        // A server on the way to the proxy answers like this. The proxy itself may not have seen the request.
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
        // The quota is full for this content. A smaller one may fit.
        507 => RemoteError::Refused { url, status: code, detail },
        500..=599 => RemoteError::Server { url, status: code, detail },
        _ => RemoteError::Protocol { url, why: format!("status {code}") },
    }
}

/// `Retry-After` in either form (RFC 9110, 10.2.3), capped. A date is compared with the server's `Date`, if there is one.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // Digits that do not fit mean a very long time.
        return Some(text.parse().map_or(MAX_WAIT, Duration::from_secs).min(MAX_WAIT));
    }
    let now = date(headers).unwrap_or_else(Timestamp::now);
    let wait = parse_date(text)?.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO).min(MAX_WAIT))
}

/// The server's clock (RFC 9110, section 6.6.1).
pub(super) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    parse_date(headers.get(DATE)?.to_str().ok()?)
}

fn parse_date(text: &str) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(text).ok()
}

/// `text` on one line of at most 300 characters. A token that a server sends back is replaced.
pub(super) fn clean(text: &str, token: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control()).collect();
    let plain = if token.is_empty() { plain } else { plain.replace(token, "[token]") };
    plain.chars().take(MAX_DETAIL).collect()
}

/// The reason why a request got no answer.
pub(super) enum TransportFailure {
    /// With the reason in words.
    Unreachable(String),
    /// Something answered, but not in HTTP.
    Protocol(String),
}

/// Finds the reason in reqwest's chain of errors.
pub(super) fn transport_failure(e: &reqwest::Error) -> TransportFailure {
    if e.is_dns() {
        return TransportFailure::Unreachable("its host name is not known; check proxy.url and the network".to_owned());
    }
    let mut deepest: &dyn Error = e;
    loop {
        if let Some(tls) = as_tls(deepest) {
            return TransportFailure::Unreachable(tls_reason(tls));
        }
        if let Some(io) = deepest.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => {
                    return TransportFailure::Unreachable("connection refused; is the proxy running?".to_owned());
                }
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                    return TransportFailure::Unreachable("the connection was cut off".to_owned());
                }
                _ => {}
            }
        }
        if let Some(hyper) = deepest.downcast_ref::<hyper::Error>() {
            if hyper.is_parse() {
                return TransportFailure::Protocol(format!("it does not speak HTTP: {hyper}"));
            }
            if hyper.is_incomplete_message() {
                return TransportFailure::Unreachable("the connection was cut off".to_owned());
            }
        }
        match deepest.source() {
            Some(source) => deepest = source,
            None => break,
        }
    }
    if e.is_timeout() {
        return TransportFailure::Unreachable("it did not answer in time".to_owned());
    }
    TransportFailure::Unreachable(deepest.to_string())
}

/// rustls wraps its error in one or more `io::Error`s, whose `source` skips it.
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
        ) => "its TLS certificate is not valid today; check the clock here, then ask the operator of the proxy"
            .to_owned(),
        rustls::Error::InvalidCertificate(CertificateError::Other(why)) if why.0.is::<PinMismatch>() => why.to_string(),
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
    fn retry_after_is_parsed_in_both_forms() {
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
    fn clean_removes_control_characters_and_token() {
        assert_eq!(clean("a\x1b[31m\nb\u{9b}c", "tok"), "a[31mbc");
        assert_eq!(clean("you sent to\0ken-1", "token-1"), "you sent [token]");
        assert_eq!(clean(&"ü".repeat(500), "t"), "ü".repeat(300));
    }

    #[test]
    fn error_body_tolerates_other_shapes() {
        let body = ErrorBody::parse(br#"{"detail":"no","error_code":null,"context":{"current_md5":"none"}}"#);
        assert_eq!(body.detail.as_deref(), Some("no"));
        assert_eq!(body.context.current_md5.as_deref(), Some("none"));
        assert_eq!(ErrorBody::parse(br#"{"detail":[{"msg":"bad"}]}"#).detail.as_deref(), Some(r#"[{"msg":"bad"}]"#));
        assert_eq!(ErrorBody::parse(br#"{"detail":"x","context":7}"#).detail.as_deref(), Some("x"));
        assert_eq!(ErrorBody::parse(b"<html>").detail, None);
    }
}
