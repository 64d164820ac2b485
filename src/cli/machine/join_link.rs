//! [`JoinLink`]: the proxy's address and the token in one line, with which another machine joins.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use crate::config::{TokenSource, parse_token};
use crate::protocol::{BadPin, Pin};

const SCHEME: &str = "memsync+";

/// `memsync+https://host[:port][/base][?namespace=NS&pin=sha256:…]#TOKEN`. Programs never send the part of a URL behind
/// the `#`.
#[derive(Debug, Clone)]
pub(crate) struct JoinLink {
    /// The proxy, without a trailing `/`.
    pub(crate) url: String,
    pub(crate) namespace: String,
    /// The certificate of the proxy, if no authority vouches for it.
    pub(crate) pin: Option<Pin>,
    pub(crate) token: SecretString,
}

/// The text is no link. The error never shows the text, which may hold a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no join link ({0}); copy the whole line, which looks like memsync+https://host:port#token")]
pub(crate) struct NotALink(String);

impl JoinLink {
    /// The link in full, the token in clear.
    pub(crate) fn reveal(&self) -> String {
        let mut link = format!("{SCHEME}{}", self.url);
        let namespace = Some(namespace_pair(&self.namespace)).filter(|_| !self.namespace.is_empty());
        let pin = self.pin.map(|pin| format!("pin={pin}"));
        for (pair, mark) in namespace.into_iter().chain(pin).zip(["?", "&"]) {
            link.push_str(&format!("{mark}{pair}"));
        }
        // A token is visible ASCII, so only the escape character itself needs escaping.
        format!("{link}#{}", self.token.expose_secret().replace('%', "%25"))
    }
}

/// The link without the token.
impl fmt::Display for JoinLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}#…", self.url)
    }
}

impl FromStr for JoinLink {
    type Err = NotALink;

    fn from_str(text: &str) -> Result<Self, NotALink> {
        let not = |why: &str| NotALink(why.to_owned());
        let rest = text.trim().strip_prefix(SCHEME).ok_or_else(|| not("it does not begin with memsync+"))?;
        let (address, token) = rest.split_once('#').ok_or_else(|| not("the #token at its end is missing"))?;
        let mut url = Url::parse(address).map_err(|e| not(&e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(not("it is neither http nor https"));
        }
        let value = |key: &str| url.query_pairs().find(|(k, _)| k == key).map(|(_, v)| v.into_owned());
        let namespace = value("namespace").unwrap_or_default();
        // A wrong pin is an error: ignoring it would accept any certificate.
        let pin: Option<Pin> =
            value("pin").map(|pin| pin.parse()).transpose().map_err(|e: BadPin| not(&e.to_string()))?;
        if pin.is_some() && url.scheme() != "https" {
            return Err(not("it pins a certificate, and http has none"));
        }
        url.set_query(None);
        let token = parse_token(&token.replace("%25", "%"), &TokenSource::Link).map_err(|e| not(&e.to_string()))?;
        Ok(Self { url: url.as_str().trim_end_matches('/').to_owned(), namespace, pin, token })
    }
}

fn namespace_pair(namespace: &str) -> String {
    Url::parse_with_params("http://x", [("namespace", namespace)])
        .ok()
        .and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_reads_back_as_written() {
        for (url, namespace, token) in [
            ("http://10.0.0.1:8484", "", "abc"),
            ("https://p.example/base", "team/notes & more", "a#b%25c?d"),
            ("http://[::1]:1", "ü", "x%y"),
        ] {
            for pin in [None, Some(Pin::of(b"x")).filter(|_| url.starts_with("https"))] {
                let link = JoinLink {
                    url: url.to_owned(),
                    namespace: namespace.to_owned(),
                    pin,
                    token: token.to_owned().into(),
                };
                let back: JoinLink = link.reveal().parse().unwrap();
                assert_eq!(
                    (back.url.as_str(), back.namespace.as_str(), back.pin, back.token.expose_secret()),
                    (url, namespace, pin, token)
                );
            }
        }
    }

    #[test]
    fn refusal_does_not_show_the_token() {
        for bad in [
            "",
            "https://h#s3cret",
            "memsync+https://h",
            "memsync+ftp://h#s3cret",
            "memsync+https://#s3cret",
            "memsync+https://h#s3 cret",
            "memsync+https://h#",
            "memsync+https://h?pin=sha256:12#s3cret",
            "memsync+https://h?pin=#s3cret",
            &format!("memsync+http://h?pin={}#s3cret", Pin::of(b"x")),
        ] {
            let error = bad.parse::<JoinLink>().unwrap_err().to_string();
            assert!(!error.contains("s3"), "{bad}: {error}");
        }
        let link: JoinLink = "memsync+https://h#s3cret\n".parse().unwrap();
        assert!(!format!("{link} {link:?}").contains("s3cret"));
    }
}
