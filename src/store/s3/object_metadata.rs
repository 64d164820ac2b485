//! User metadata of an object. The names are those of other proxies; names with `memsync-` are only memsync's.

use std::collections::BTreeMap;

use object_store::{Attribute, AttributeValue, Attributes};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::digest::Md5;

const CONTENT_MD5: &str = "content-md5";
const IS_DELETED: &str = "is-deleted";
const VERSION: &str = "version";
const WRITE_ID: &str = "memsync-write";
const OWN_PREFIX: &str = "memsync-";

/// The readable metadata of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ObjectMetadata {
    pub(super) md5: Option<Md5>,
    pub(super) is_deleted: bool,
    pub(super) version: Option<u64>,
    /// The random id of a write by memsync.
    pub(super) write: Option<String>,
    pub(super) content_type: Option<String>,
    /// Further metadata of memsync, decoded, by its name after `memsync-`.
    pub(super) ours: BTreeMap<String, String>,
}

impl ObjectMetadata {
    /// When the path expires: milliseconds since the epoch.
    pub(super) fn expires(&self) -> Option<u64> {
        self.ours.get("expires").and_then(|at| at.parse().ok())
    }

    pub(super) fn read(attributes: &Attributes) -> Self {
        let mut metadata = Self::default();
        for (attribute, value) in attributes {
            match attribute {
                Attribute::ContentType => metadata.content_type = Some(value.to_string()),
                Attribute::Metadata(name) => metadata.set(&name.to_ascii_lowercase(), value.trim()),
                _ => {}
            }
        }
        metadata
    }

    fn set(&mut self, name: &str, value: &str) {
        match name {
            CONTENT_MD5 => self.md5 = value.trim_matches('"').to_ascii_lowercase().parse().ok(),
            IS_DELETED => self.is_deleted = value.eq_ignore_ascii_case("true"),
            VERSION => self.version = value.parse().ok(),
            WRITE_ID => self.write = Some(value.to_owned()),
            _ => {
                if let Some(name) = name.strip_prefix(OWN_PREFIX) {
                    self.ours.insert(name.to_owned(), decode(value));
                }
            }
        }
    }

    pub(super) fn to_attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        let mut set = |name: String, value: String| {
            attributes.insert(Attribute::Metadata(name.into()), AttributeValue::from(value));
        };
        if let Some(md5) = self.md5 {
            set(CONTENT_MD5.to_owned(), md5.to_string());
        }
        set(IS_DELETED.to_owned(), self.is_deleted.to_string());
        if let Some(version) = self.version {
            set(VERSION.to_owned(), version.to_string());
        }
        if let Some(write) = &self.write {
            set(WRITE_ID.to_owned(), write.clone());
        }
        for (name, value) in &self.ours {
            set(format!("{OWN_PREFIX}{name}"), encode(value));
        }
        if let Some(content_type) = self.content_type.as_ref().filter(|t| http::HeaderValue::from_str(t).is_ok()) {
            attributes.insert(Attribute::ContentType, AttributeValue::from(content_type.clone()));
        }
        attributes
    }
}

/// Escapes everything but printable ASCII, and `%`. A header would lose spaces at its ends, so they are escaped, too.
fn encode(text: &str) -> String {
    const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
    let mut out = utf8_percent_encode(text, ESCAPED).to_string();
    if out.starts_with(' ') {
        out.replace_range(..1, "%20");
    }
    if out.ends_with(' ') {
        out.replace_range(out.len() - 1.., "%20");
    }
    out
}

/// Decodes [`encode`]. An invalid escape stays as it is.
fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_survives_the_attributes() {
        let metadata = ObjectMetadata {
            md5: Some(Md5::of(b"a")),
            is_deleted: true,
            version: Some(1_700_000_000_123),
            write: Some("w1".to_owned()),
            content_type: Some("text/markdown; charset=utf-8".to_owned()),
            ours: [("device", "büro 7"), ("odd", " 100%é "), ("empty", "")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        let attributes = metadata.to_attributes();
        assert_eq!(ObjectMetadata::read(&attributes), metadata);
        let text = |name: &'static str| attributes.get(&Attribute::Metadata(name.into())).map_or("", |v| v.as_ref());
        assert_eq!(text("is-deleted"), "true");
        assert_eq!(text("content-md5"), "0cc175b9c0f1b6a831c399e269772661");
        assert_eq!(text("memsync-device"), "b%C3%BCro 7");
        assert!(attributes.iter().all(|(_, value)| value.is_ascii()));
    }

    #[test]
    fn invalid_metadata_is_ignored() {
        let mut attributes = Attributes::new();
        for (name, value) in
            [("Content-MD5", "\"0CC175B9C0F1B6A831C399E269772661\""), ("Is-Deleted", "True"), ("version", "soon")]
        {
            attributes.insert(Attribute::Metadata(name.into()), value.into());
        }
        let metadata = ObjectMetadata::read(&attributes);
        assert_eq!((metadata.md5, metadata.is_deleted, metadata.version), (Some(Md5::of(b"a")), true, None));
        attributes.insert(Attribute::Metadata("Content-MD5".into()), "1B2M2Y8AsgTpgAmY7PhCfg==".into());
        assert_eq!(ObjectMetadata::read(&attributes).md5, None, "base64 is the form of another header");
        assert_eq!(ObjectMetadata::read(&Attributes::new()), ObjectMetadata::default());
    }
}
