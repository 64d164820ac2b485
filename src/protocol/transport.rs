//! Rules for every HTTP client of this crate: the hosts that plain http may reach, the cryptography for TLS, and [`Pin`], the
//! fingerprint of the one certificate that an agent trusts.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Once;

const SCHEME: &str = "sha256:";

/// True if `host`, as a URL gives it, is this machine. Such requests may use plain http and need no HTTP proxy.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Installs the cryptography that rustls uses, once for the process.
pub fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that another part of the process has installed a provider. That one is fine.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

/// The SHA-256 of a certificate in DER, written `sha256:` and 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// The text is no [`Pin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a certificate's fingerprint is written sha256: and 64 hex digits")]
pub struct BadPin;

impl Pin {
    /// The pin of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, der).as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for Pin {
    type Err = BadPin;

    /// Accepts upper case, and the colons of `openssl x509 -fingerprint`.
    fn from_str(text: &str) -> Result<Self, BadPin> {
        let (scheme, hex) = text.trim().split_at_checked(SCHEME.len()).ok_or(BadPin)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(BadPin);
        }
        let digits: Option<Vec<u8>> =
            hex.chars().filter(|c| *c != ':').map(|c| u8::try_from(c.to_digit(16)?).ok()).collect();
        let digits: [u8; 64] = digits.and_then(|d| d.try_into().ok()).ok_or(BadPin)?;
        Ok(Self(std::array::from_fn(|at| digits[2 * at] << 4 | digits[2 * at + 1])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_loopback_accepts_only_this_machine() {
        // A URL gives hosts in lower case and addresses in full.
        for yes in ["127.0.0.1", "127.9.8.7", "[::1]", "::1", "localhost"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "128.0.0.1",
            "10.0.0.1",
            "minio",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "[::2]",
            "0.0.0.0",
            "[fe80::1]",
            "",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn pin_round_trips_through_text() {
        let pin = Pin::of(b"abc");
        // FIPS 180-2, appendix B.1.
        assert_eq!(pin.to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(pin.to_string().parse(), Ok(pin));
        let digits = pin.to_string()[7..].to_uppercase();
        let colons: Vec<_> = digits.as_bytes().chunks(2).map(|c| String::from_utf8_lossy(c)).collect();
        assert_eq!(format!("SHA256:{}", colons.join(":")).parse(), Ok(pin));
        for bad in ["", "sha256:", "sha256:ab", &digits, &format!("sha1:{digits}"), &format!("sha256:{digits}0"), "é"]
        {
            assert_eq!(bad.parse::<Pin>(), Err(BadPin), "{bad}");
        }
    }
}
