//! Options of a store on S3.

use std::path::PathBuf;

use secrecy::SecretString;

use super::super::{Retention, WallClock, system_clock};

/// The form of an ETag in a condition: S3 wants the quotes, some stores do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EtagQuotes {
    #[default]
    Keep,
    Strip,
}

/// The bucket and the credentials.
#[derive(Clone)]
pub struct S3Options {
    pub bucket: String,
    /// The folder of all keys, without slashes at its ends.
    pub prefix: String,
    /// `None`: Amazon's endpoint in `region`.
    pub endpoint: Option<String>,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    pub session_token: Option<SecretString>,
    pub etag_quotes: EtagQuotes,
    /// Allows plain http to other machines.
    pub allow_http: bool,
    /// The directory for bodies that are too large for memory. Created when it is needed.
    pub spool: PathBuf,
    pub retention: Retention,
    pub clock: WallClock,
}

impl S3Options {
    /// Options with these credentials, and defaults for the rest.
    pub fn new(bucket: &str, access_key_id: &str, secret_access_key: SecretString, spool: PathBuf) -> Self {
        Self {
            bucket: bucket.to_owned(),
            prefix: "memory".to_owned(),
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: access_key_id.to_owned(),
            secret_access_key,
            session_token: None,
            etag_quotes: EtagQuotes::default(),
            allow_http: false,
            spool,
            retention: Retention::default(),
            clock: system_clock(),
        }
    }
}
