//! User metadata of an object. The names are those of other proxies; names with `memsync-` are only memsync's.

use object_store::{Attribute, AttributeValue, Attributes};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::super::{BlobMeta, IndexEntry};
use crate::digest::Md5;

const CONTENT_MD5: &str = "content-md5";
const IS_DELETED: &str = "is-deleted";
const VERSION: &str = "version";
const WRITE_ID: &str = "memsync-write";
const DEVICE: &str = "memsync-device";
const KEY: &str = "memsync-key";
const EXPIRES: &str = "memsync-expires";
const FREE: &str = "memsync-meta";

/// The readable metadata of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ObjectMetadata {
    pub(super) md5: Option<Md5>,
    pub(super) is_deleted: bool,
    pub(super) version: Option<u64>,
    /// The random id of a write by memsync.
    pub(super) write: Option<String>,
    pub(super) meta: BlobMeta,
}

impl ObjectMetadata {
    /// The metadata of a blob, without the id of a write.
    pub(super) fn new(entry: &IndexEntry, meta: BlobMeta) -> Self {
        let IndexEntry { md5, is_deleted, version, .. } = *entry;
        Self { md5: Some(md5), is_deleted, version: Some(version), write: None, meta }
    }

    pub(super) fn with_write(self, id: &str) -> Self {
        Self { write: Some(id.to_owned()), ..self }
    }

    pub(super) fn read(attributes: &Attributes) -> Self {
        let mut metadata = Self::default();
        for (attribute, value) in attributes {
            match attribute {
                Attribute::ContentType => metadata.meta.content_type = Some(value.to_string()),
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
            DEVICE => self.meta.device = Some(decode(value)),
            KEY => self.meta.key = Some(decode(value)),
            EXPIRES => self.meta.expires = decode(value).parse().ok(),
            FREE => self.meta.free = serde_json::from_str(&decode(value)).unwrap_or_default(),
            _ => {}
        }
    }

    pub(super) fn to_attributes(&self) -> Attributes {
        let BlobMeta { content_type, device, key, expires, free } = &self.meta;
        // One value, because not every name can be the name of a header. Texts always serialize.
        let free = (!free.is_empty()).then(|| encode(&serde_json::to_string(free).unwrap_or_default()));
        let mut attributes = Attributes::new();
        for (name, value) in [
            (CONTENT_MD5, self.md5.map(|md5| md5.to_string())),
            (IS_DELETED, Some(self.is_deleted.to_string())),
            (VERSION, self.version.map(|version| version.to_string())),
            (WRITE_ID, self.write.clone()),
            (DEVICE, device.as_deref().map(encode)),
            (KEY, key.as_deref().map(encode)),
            (EXPIRES, expires.map(|at| at.to_string())),
            (FREE, free),
        ] {
            if let Some(value) = value {
                attributes.insert(Attribute::Metadata(name.into()), AttributeValue::from(value));
            }
        }
        if let Some(content_type) = content_type.clone().filter(|t| http::HeaderValue::from_str(t).is_ok()) {
            attributes.insert(Attribute::ContentType, AttributeValue::from(content_type));
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
            meta: BlobMeta {
                content_type: Some("text/markdown; charset=utf-8".to_owned()),
                device: Some("büro 7".to_owned()),
                key: Some(" 100%é ".to_owned()),
                expires: Some(5),
                free: [("empty", ""), ("odd", " 100%é\"")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            },
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
