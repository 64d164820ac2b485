//! What every HTTP client of ours has to know before it sends anything: where plain http does no harm, and what encrypts.

use std::net::IpAddr;
use std::sync::Once;

/// Whether what is sent to `host`, as a URL gives it, stays on this machine: it may go in the clear, and past any proxy.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Names the cryptography that rustls is to use, once for the process.
pub fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that another part of the process has chosen already, which serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_and_nothing_else() {
        // In a URL a host is in lower case, and an address whole.
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
