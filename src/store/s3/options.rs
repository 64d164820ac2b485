//! Where a store on S3 is, and how it is spoken to.

use std::path::PathBuf;

use secrecy::SecretString;

use super::super::{WallClock, system_clock};

/// How an ETag stands in a condition: S3 wants the quotes, some stores do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EtagQuotes {
    #[default]
    Keep,
    Strip,
}

/// Where the bucket is, and how to get in.
#[derive(Clone)]
pub struct S3Options {
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends.
    pub prefix: String,
    /// `None`: Amazon's own, in `region`.
    pub endpoint: Option<String>,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    pub session_token: Option<SecretString>,
    pub etag_quotes: EtagQuotes,
    /// Lets plain http leave this machine.
    pub allow_http: bool,
    /// Where bodies that are too large for memory wait; made when it is needed.
    pub spool: PathBuf,
    pub clock: WallClock,
}

impl S3Options {
    /// The options of `bucket` for these keys, all else as is usual.
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
            clock: system_clock(),
        }
    }
}
