//! The HTTP client below the S3 client. It sends bodies directly from a file, follows no redirects, and repairs answers with
//! an invalid header or an invalid key in a listing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::TryStreamExt;
use http::Method;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use reqwest::{Client, Url, redirect};

use super::super::body::BodyFile;
use super::listing::without_unnamable_keys;
use crate::protocol::{install_provider, is_loopback};

/// Timeout for a connection, and for an answer without progress.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A slower upload of a large body fails. Bytes a second.
const MIN_UPLOAD_RATE: u64 = 32 * 1024;
/// An unused connection is closed after this time.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Replaces a missing or invalid date.
const EPOCH: HeaderValue = HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT");

/// Makes the HTTP client of the S3 client.
#[derive(Debug, Clone)]
pub(super) struct S3Connector(HttpClients);

#[derive(Debug, Clone)]
struct HttpClients {
    requests: Client,
    /// For large uploads, without a read timeout: the answer comes only at their end.
    files: Client,
}

impl S3Connector {
    pub(super) fn new(endpoint: Option<&Url>) -> Result<Self, String> {
        install_provider();
        // Plain http needs no root certificates, and a client that wants them cannot be built without a system bundle.
        let plain = endpoint.is_some_and(|url| url.scheme() == "http");
        let base = |has_read_timeout: bool| {
            let builder = Client::builder()
                .redirect(redirect::Policy::none())
                .referer(false)
                .connect_timeout(IDLE_TIMEOUT)
                .pool_idle_timeout(KEEP_ALIVE)
                .tcp_nodelay(true);
            let builder = if has_read_timeout { builder.read_timeout(IDLE_TIMEOUT) } else { builder };
            let builder = if plain { builder.tls_certs_only([]) } else { builder };
            if endpoint.is_some_and(is_local) { builder.no_proxy() } else { builder }
        };
        let client = |has_read_timeout| base(has_read_timeout).build().map_err(|e| e.to_string());
        Ok(Self(HttpClients { requests: client(true)?, files: client(false)? }))
    }
}

/// True if `url` is on this machine.
pub(super) fn is_local(url: &Url) -> bool {
    is_loopback(url.host_str().unwrap_or_default())
}

impl HttpConnector for S3Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(S3HttpService(self.0.clone())))
    }
}

#[derive(Debug)]
struct S3HttpService(HttpClients);

impl HttpService for S3HttpService {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let is_listing = is_listing(&request);
            let mut answer = match request.extensions().get::<Arc<BodyFile>>().cloned() {
                None => self.0.requests.call(request).await?,
                Some(body) => self.send_file(request, &body).await?,
            };
            repair_headers(answer.headers_mut());
            if is_listing && answer.status().is_success() { repair_listing(answer).await } else { Ok(answer) }
        })
    }
}

impl S3HttpService {
    /// Sends `request` with the file instead of its empty body.
    async fn send_file(&self, request: HttpRequest, body: &BodyFile) -> Result<HttpResponse, HttpError> {
        let unknown = |e: reqwest::Error| HttpError::new(HttpErrorKind::Unknown, e.without_url());
        let (parts, _) = request.into_parts();
        let url = parts.uri.to_string().parse::<Url>().map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let mut out = reqwest::Request::new(parts.method, url);
        *out.headers_mut() = parts.headers;
        out.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.size));
        *out.body_mut() = Some(reqwest::Body::wrap_stream(body.pieces()));
        *out.timeout_mut() = Some(IDLE_TIMEOUT + Duration::from_secs(body.size / MIN_UPLOAD_RATE));
        let answer: http::Response<reqwest::Body> = self.0.files.execute(out).await.map_err(unknown)?.into();
        let (parts, body) = answer.into_parts();
        let body = http_body_util::BodyExt::map_err(body, unknown);
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

fn is_listing(request: &HttpRequest) -> bool {
    let mut query = request.uri().query().unwrap_or_default().split('&');
    request.method() == Method::GET && query.any(|pair| pair.starts_with("list-type="))
}

/// Removes keys that the client cannot name from a listing, and puts them into the answer's extensions.
async fn repair_listing(answer: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (mut parts, body) = answer.into_parts();
    let pieces = body.bytes_stream();
    let page: BytesMut = pieces
        .try_fold(BytesMut::new(), async |mut page, piece| {
            page.extend_from_slice(&piece);
            Ok(page)
        })
        .await?;
    let (page, unnamable) = without_unnamable_keys(page.freeze());
    parts.headers.remove(CONTENT_LENGTH);
    parts.extensions.insert(unnamable);
    Ok(HttpResponse::from_parts(parts, page.into()))
}

/// Drops headers that are not text, and replaces an invalid date. Such a header would make another proxy's blob unreadable.
fn repair_headers(headers: &mut HeaderMap) {
    let invalid: Vec<HeaderName> =
        headers.iter().filter(|(_, value)| value.to_str().is_err()).map(|(name, _)| name.clone()).collect();
    for name in invalid {
        headers.remove(name);
    }
    let parser = jiff::fmt::rfc2822::DateTimeParser::new();
    let date = headers.get(LAST_MODIFIED).and_then(|value| value.to_str().ok());
    if date.is_none_or(|date| parser.parse_timestamp(date).is_err()) {
        headers.insert(LAST_MODIFIED, EPOCH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_headers_are_dropped_and_dates_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-meta-name", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        headers.insert("x-amz-meta-version", HeaderValue::from_static("5"));
        repair_headers(&mut headers);
        assert!(!headers.contains_key("x-amz-meta-name"));
        assert_eq!((&headers["x-amz-meta-version"], &headers[LAST_MODIFIED]), (&HeaderValue::from_static("5"), &EPOCH));
        let good = HeaderValue::from_static("Mon, 15 Jan 2024 10:30:00 GMT");
        headers.insert(LAST_MODIFIED, good.clone());
        repair_headers(&mut headers);
        assert_eq!(headers[LAST_MODIFIED], good);
        headers.insert(LAST_MODIFIED, HeaderValue::from_static("yesterday"));
        repair_headers(&mut headers);
        assert_eq!(headers[LAST_MODIFIED], EPOCH);
    }
}
