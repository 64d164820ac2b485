//! The HTTP under the S3 client: bodies straight from a file, no redirects, and answers of which one odd header, or one
//! odd key of a listing, does not spoil the whole.

use std::future::Future;
use std::pin::Pin;
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

use super::listing::readable;
use super::spool::FileBody;
use crate::protocol::{install_provider, is_loopback};

/// How long a connection may take to be made, and an answer to stay without progress.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes a second below which a large upload is given up.
const SLOWEST: u64 = 32 * 1024;
/// An unused connection is closed after this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// What an answer without a date, or with one that is none, is taken to say.
const EPOCH: HeaderValue = HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT");

/// Makes the client that requests go through.
#[derive(Debug, Clone)]
pub struct Connector(Clients);

#[derive(Debug, Clone)]
struct Clients {
    requests: Client,
    /// For large uploads, of which no answer comes while they go.
    files: Client,
}

impl Connector {
    /// # Errors
    /// Says why no client can be made.
    pub fn new(endpoint: Option<&Url>) -> Result<Self, String> {
        install_provider();
        // Plain http needs no roots, and without a system bundle a client that wants them cannot be built.
        let plain = endpoint.is_some_and(|url| url.scheme() == "http");
        let base = |patient: bool| {
            let builder = Client::builder()
                .redirect(redirect::Policy::none())
                .referer(false)
                .connect_timeout(PATIENCE)
                .pool_idle_timeout(KEEP_ALIVE)
                .tcp_nodelay(true);
            let builder = if patient { builder } else { builder.read_timeout(PATIENCE) };
            let builder = if plain { builder.tls_certs_only([]) } else { builder };
            if endpoint.is_some_and(stays_here) { builder.no_proxy() } else { builder }
        };
        let client = |patient| base(patient).build().map_err(|e| e.to_string());
        Ok(Self(Clients { requests: client(false)?, files: client(true)? }))
    }
}

/// Whether what is sent to `url` stays on this machine.
pub fn stays_here(url: &Url) -> bool {
    is_loopback(url.host_str().unwrap_or_default())
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(self.0.clone())))
    }
}

#[derive(Debug)]
struct Service(Clients);

impl HttpService for Service {
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
            let mut answer = match request.extensions().get::<FileBody>().cloned() {
                None => self.0.requests.call(request).await?,
                Some(body) => self.send_file(request, &body).await?,
            };
            mend(answer.headers_mut());
            if is_listing && answer.status().is_success() { mend_listing(answer).await } else { Ok(answer) }
        })
    }
}

impl Service {
    /// Sends `request` with the file in the place of its own, empty body.
    async fn send_file(&self, request: HttpRequest, body: &FileBody) -> Result<HttpResponse, HttpError> {
        let unknown = |e: reqwest::Error| HttpError::new(HttpErrorKind::Unknown, e.without_url());
        let (parts, _) = request.into_parts();
        let url = parts.uri.to_string().parse::<Url>().map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let mut out = reqwest::Request::new(parts.method, url);
        *out.headers_mut() = parts.headers;
        out.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.size));
        *out.body_mut() = Some(reqwest::Body::wrap_stream(body.pieces()));
        *out.timeout_mut() = Some(PATIENCE + Duration::from_secs(body.size / SLOWEST));
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

/// Takes what the client cannot name out of a listing, and says so in the answer's extensions, which the listing gives.
async fn mend_listing(answer: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (mut parts, body) = answer.into_parts();
    let pieces = body.bytes_stream();
    let page: BytesMut = pieces
        .try_fold(BytesMut::new(), async |mut page, piece| {
            page.extend_from_slice(&piece);
            Ok(page)
        })
        .await?;
    let (page, left_out) = readable(page.freeze());
    parts.headers.remove(CONTENT_LENGTH);
    parts.extensions.insert(left_out);
    Ok(HttpResponse::from_parts(parts, page.into()))
}

/// Drops headers that are no text, and gives a date that can be read: one odd header must not make a blob of
/// another proxy unreadable.
fn mend(headers: &mut HeaderMap) {
    let odd: Vec<HeaderName> =
        headers.iter().filter(|(_, value)| value.to_str().is_err()).map(|(name, _)| name.clone()).collect();
    for name in odd {
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
    fn odd_headers_are_dropped_and_dates_mended() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-meta-name", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        headers.insert("x-amz-meta-version", HeaderValue::from_static("5"));
        mend(&mut headers);
        assert!(!headers.contains_key("x-amz-meta-name"));
        assert_eq!((&headers["x-amz-meta-version"], &headers[LAST_MODIFIED]), (&HeaderValue::from_static("5"), &EPOCH));
        let good = HeaderValue::from_static("Mon, 15 Jan 2024 10:30:00 GMT");
        headers.insert(LAST_MODIFIED, good.clone());
        mend(&mut headers);
        assert_eq!(headers[LAST_MODIFIED], good);
        headers.insert(LAST_MODIFIED, HeaderValue::from_static("yesterday"));
        mend(&mut headers);
        assert_eq!(headers[LAST_MODIFIED], EPOCH);
    }
}
