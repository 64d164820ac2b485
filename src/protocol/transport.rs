//! Rules for every HTTP client of this crate: the hosts that plain http may reach, and the cryptography for TLS.

use std::net::IpAddr;
use std::sync::Once;

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
}
