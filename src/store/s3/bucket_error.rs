//! Errors of the S3 client: their code, their message, and whether a retry can succeed.

use std::error::Error as _;

use object_store::Error;

use super::super::StoreError;

/// Converts an error of the client.
pub(super) fn failed(e: &Error) -> StoreError {
    if is_permanent(e) { StoreError::S3Denied(message_of(e)) } else { StoreError::S3(message_of(e)) }
}

/// True if a retry cannot succeed: the store denies the request or does not support it.
fn is_permanent(e: &Error) -> bool {
    let kinds =
        matches!(e, Error::PermissionDenied { .. } | Error::Unauthenticated { .. } | Error::NotImplemented { .. });
    kinds
        || error_code(&e.to_string())
            .is_some_and(|code| ["AccessDenied", "NotImplemented", "MethodNotAllowed"].contains(&code))
}

/// True if S3 refuses the request itself. A request that was damaged on its way may succeed the next time.
pub(super) fn is_bad_request(text: &str) -> bool {
    // The client has the status only in its message.
    let damaged = ["BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"];
    text.contains("status code: 400") && error_code(text).is_some_and(|code| !damaged.contains(&code))
}

/// S3's error code, if the answer has one.
pub(super) fn error_code(text: &str) -> Option<&str> {
    element(text, "Code")
}

/// The text of the first element called `name`. The client's message has an XML body among other text.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(inner, _)| inner.trim())
}

/// The message of an error without its XML: S3's own message if there is one.
pub(super) fn message_of(e: &Error) -> String {
    let text = e.to_string();
    let mut message = match (error_code(&text), element(&text, "Message")) {
        (Some(code), Some(text)) if !text.is_empty() => format!("{text} ({code})"),
        (Some(code), _) => code.to_owned(),
        _ => text.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    let mut source = e.source();
    let mut deepest = None;
    while let Some(inner) = source {
        deepest = Some(inner.to_string());
        source = inner.source();
    }
    if let Some(deepest) = deepest.filter(|d| error_code(&text).is_none() && !message.contains(d.as_str())) {
        message = format!("{message}: {deepest}");
    }
    message.chars().take(600).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_has_the_message_of_the_store() {
        let source = "status 404: <Error><Code>NoSuchBucket</Code><Message>No such bucket</Message></Error>".into();
        let e = Error::Generic { store: "S3", source };
        assert_eq!(message_of(&e), "No such bucket (NoSuchBucket)");
        let source: Box<dyn std::error::Error + Send + Sync> = Box::new(std::io::Error::other("refused"));
        assert_eq!(message_of(&Error::Generic { store: "S3", source }), "Generic S3 error: refused");
    }
}
