//! The routes as one table, and the way of a request through it: authentication, one route, one line in the log.

use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Request};
use hyper::body::Incoming;

use super::auth::bearer_token;
use super::auth::caller::{Caller, access_of_method};
use super::auth::keys::hash_of;
use super::context::{RequestContext, ServerState};
use super::encoding::accepted_coding;
use super::error::ApiError;
use super::listen::peer::{Peer, Port};
use super::response::{HttpResponse, content_length, set_header};
use crate::protocol::{X_MEMSYNC_HISTORY, X_REQUEST_ID};
use crate::store::Store;

mod batch;
mod blob;
mod conditions;
mod events;
mod index;
mod names;
mod versions;
mod write;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Health,
    Metrics,
    Sync,
    Events,
    Batch,
    Blob,
    Versions,
}

/// The names in an address, besides the root of its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddressForm {
    /// `{root}`
    Plain,
    /// `{root}` for the flat namespace, or `{root}/{namespace}`
    Namespace,
    /// `{root}/{path}` for the flat namespace, or `/{namespace}{root}/{path}`
    Path,
}

/// A row of the table.
struct RouteRow {
    endpoint: Endpoint,
    /// In metrics.
    name: &'static str,
    root: &'static str,
    form: AddressForm,
    /// As in `Allow`.
    methods: &'static str,
}

const READ: &str = "GET, HEAD";

/// All routes. The first row that matches counts, and addresses that begin with a root go before those that contain it.
const ROUTES: [RouteRow; 7] = [
    row(Endpoint::Health, "health", "/health", AddressForm::Plain, READ),
    row(Endpoint::Metrics, "metrics", "/metrics", AddressForm::Plain, READ),
    row(Endpoint::Sync, "sync", "/sync", AddressForm::Namespace, READ),
    row(Endpoint::Events, "events", "/events", AddressForm::Namespace, READ),
    row(Endpoint::Batch, "batch", "/batch", AddressForm::Namespace, "POST"),
    row(Endpoint::Blob, "blob", "/blob/", AddressForm::Path, "GET, HEAD, PUT, DELETE"),
    row(Endpoint::Versions, "versions", "/versions/", AddressForm::Path, READ),
];

const fn row(
    endpoint: Endpoint,
    name: &'static str,
    root: &'static str,
    form: AddressForm,
    methods: &'static str,
) -> RouteRow {
    RouteRow { endpoint, name, root, form, methods }
}

/// A route and the names in its address, still encoded.
struct MatchedRoute<'a> {
    row: &'static RouteRow,
    namespace: &'a str,
    path: &'a str,
}

fn find_route(address: &str) -> Option<MatchedRoute<'_>> {
    let at_root = ROUTES.iter().find_map(|row| {
        let rest = address.strip_prefix(row.root)?;
        let (namespace, path) = match row.form {
            AddressForm::Plain | AddressForm::Namespace if rest.is_empty() => ("", ""),
            AddressForm::Plain => return None,
            AddressForm::Namespace => (rest.strip_prefix('/').filter(|ns| !ns.is_empty())?, ""),
            AddressForm::Path => ("", rest),
        };
        Some(MatchedRoute { row, namespace, path })
    });
    at_root.or_else(|| find_namespaced(address))
}

/// `/{namespace}/blob/{path}`. Both names may contain slashes, plain or as `%2F`: the last plain `/blob/` separates them,
/// or the last `/versions/` if there is none.
fn find_namespaced(address: &str) -> Option<MatchedRoute<'_>> {
    let address = address.strip_prefix('/')?;
    let mut with_path = ROUTES.iter().filter(|row| row.form == AddressForm::Path);
    let (row, (namespace, path)) = with_path.find_map(|row| Some((row, address.rsplit_once(row.root)?)))?;
    (!namespace.is_empty()).then_some(MatchedRoute { row, namespace, path })
}

/// Answers a request and logs it, without its headers, its query and its body.
pub(super) async fn respond<S: Store>(state: &ServerState<S>, peer: &Peer, request: Request<Incoming>) -> HttpResponse {
    let began = Instant::now();
    let (request, body) = request.into_parts();
    let id = request_id(&request.headers);
    let accepted = accepted_coding(&request.headers);
    let mut caller = None;
    let response = match dispatch(state, peer, (&request, body), &id, &mut caller).await {
        Ok(response) => response,
        Err(error) => {
            state.metrics.count_error(&error);
            error.into_response(&id)
        }
    };
    let mut response = state.encoder.encode(accepted, &request.method, response).await;
    let duration = began.elapsed();
    let row = find_route(request.uri.path()).map(|route| route.row);
    state.metrics.count_response(row.map_or("none", |row| row.name), response.status(), duration);
    let is_blob = row.is_some_and(|row| row.endpoint == Endpoint::Blob);
    if is_blob && !request.method.is_safe() && response.status().is_success() {
        state.metrics.count_writes(1);
    }
    set_header(response.headers_mut(), X_REQUEST_ID, &id);
    let caller = caller.as_deref();
    tracing::info!(
        target: "memsync::access",
        method = %request.method,
        path = request.uri.path(),
        status = response.status().as_u16(),
        bytes = content_length(response.headers()),
        client = %peer.ip,
        caller = caller.map(|caller: &Caller| caller.id.as_str()),
        user = caller.and_then(|caller| caller.user.as_deref()),
        ms = duration.as_secs_f64() * 1000.0,
        id,
    );
    response
}

/// The id that the client gave the request, if it is safe to repeat. Otherwise a random one.
fn request_id(headers: &HeaderMap) -> String {
    const MAX_BYTES: usize = 64;
    let is_safe = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let given = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok());
    match given.filter(|id| (1..=MAX_BYTES).contains(&id.len()) && id.bytes().all(is_safe)) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}", fastrand::u64(..)),
    }
}

/// Calls the route. `caller` is set for the log, even if the route fails.
async fn dispatch<S: Store>(
    state: &ServerState<S>,
    peer: &Peer,
    (request, body): (&Parts, Incoming),
    id: &str,
    caller: &mut Option<Arc<Caller>>,
) -> Result<HttpResponse, ApiError> {
    let is_read = matches!(request.method, Method::GET | Method::HEAD);
    let mut route = find_route(request.uri.path());
    let endpoint = route.as_ref().map(|route| route.row.endpoint);
    match peer.port {
        Port::Metrics if endpoint == Some(Endpoint::Metrics) && is_read => return Ok(metrics(state)),
        Port::Metrics => return Err(ApiError::NoSuchRoute),
        Port::Main if endpoint == Some(Endpoint::Metrics) && state.options.metrics_listener.is_some() => route = None,
        Port::Main => {}
    }
    if endpoint == Some(Endpoint::Health) {
        return if is_read { Ok(state.health.respond(id).await) } else { Err(ApiError::MethodNotAllowed(READ)) };
    }
    let admitted = caller.insert(authenticate(state, peer, &request.headers).await?).clone();
    let route = route.ok_or(ApiError::NoSuchRoute)?;
    if route.row.endpoint == Endpoint::Metrics {
        // The counts are about the proxy as a whole, so the scope of the key does not matter.
        return if is_read { Ok(metrics(state)) } else { Err(ApiError::MethodNotAllowed(READ)) };
    }
    let ctx = RequestContext { state, caller: admitted, namespace: names::namespace(route.namespace)?, id };
    ctx.caller.require(access_of_method(&request.method), ctx.ns())?;
    let mut response = call(&ctx, &route, request, body).await?;
    if !is_read
        && response.status().is_success()
        && let Some(point) = state.store.history_point(ctx.ns())
    {
        set_header(response.headers_mut(), HeaderName::from_static(X_MEMSYNC_HISTORY), &point.to_string());
    }
    Ok(response)
}

/// Calls the route of an admitted request.
async fn call<S: Store>(
    ctx: &RequestContext<'_, S>,
    route: &MatchedRoute<'_>,
    request: &Parts,
    body: Incoming,
) -> Result<HttpResponse, ApiError> {
    let is_allowed = route.row.methods.split(", ").any(|method| request.method == method);
    if !is_allowed && route.row.endpoint != Endpoint::Blob {
        return Err(ApiError::MethodNotAllowed(route.row.methods));
    }
    match route.row.endpoint {
        Endpoint::Health | Endpoint::Metrics => Err(ApiError::NoSuchRoute),
        Endpoint::Sync => index::get(ctx, request).await,
        Endpoint::Events => events::get(ctx, request).await,
        Endpoint::Batch => batch::post(ctx, request, body).await,
        Endpoint::Versions | Endpoint::Blob => {
            let path = names::blob_path(route.path)?;
            match request.method {
                _ if !is_allowed => Err(ApiError::MethodNotAllowed(route.row.methods)),
                Method::PUT | Method::DELETE => blob::write(ctx, path, request, body).await,
                _ if route.row.endpoint == Endpoint::Versions => versions::get(ctx, &path).await,
                _ => blob::get(ctx, &path, request).await,
            }
        }
    }
}

fn metrics<S: Store>(state: &ServerState<S>) -> HttpResponse {
    state.metrics.to_response(state.store.index_traffic())
}

/// The caller of a request, within the limits on invalid tokens, connections and requests.
async fn authenticate<S: Store>(
    state: &ServerState<S>,
    peer: &Peer,
    headers: &HeaderMap,
) -> Result<Arc<Caller>, ApiError> {
    // A request without a token is no guess.
    let token = bearer_token(headers).ok_or(ApiError::Unauthorized { token_shown: false })?;
    let (rates, hash) = (&state.limits.rates, hash_of(token));
    if let Some(wait) = rates.blocked_for(peer.address, &hash) {
        return Err(ApiError::RateLimited(wait));
    }
    let attempt = rates.begin_attempt(peer.address);
    let caller = match state.auth.authenticate(token, hash).await {
        Err(error @ ApiError::Unauthorized { .. }) => {
            return Err(attempt.fail().map_or(error, ApiError::RateLimited));
        }
        authenticated => {
            attempt.settle();
            authenticated?
        }
    };
    if !peer.enter_as(&caller, &state.limits.callers, state.options.max_connections_per_caller) {
        return Err(ApiError::TooManyConnections);
    }
    peer.set_authenticated();
    // For each request: behind a reverse proxy one connection carries the tokens of many callers.
    rates.trust(peer.address, hash);
    match rates.check_request(&caller.id) {
        Some(wait) => Err(ApiError::RateLimited(wait)),
        None => Ok(caller),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(raw: &str) -> Option<(Endpoint, &str, &str)> {
        find_route(raw).map(|route| (route.row.endpoint, route.namespace, route.path))
    }

    #[test]
    fn last_blob_separates_namespace_and_path() {
        for (raw, ns, path) in [
            ("/blob/a", "", "a"),
            ("/blob/a/blob/b", "", "a/blob/b"),
            ("/n/blob/a", "n", "a"),
            ("/n/m/blob/a/b", "n/m", "a/b"),
            ("/n%2Fm/blob/a%2Fblob%2Fb", "n%2Fm", "a%2Fblob%2Fb"),
            ("/n/blob/a/blob/b", "n/blob/a", "b"),
            ("/n/blob/blob/b", "n/blob", "b"),
            ("/n/blob/a/blob", "n", "a/blob"),
            ("/n/blob/", "n", ""),
            ("/health/blob/a", "health", "a"),
            ("/blob%2Fx/blob/a", "blob%2Fx", "a"),
        ] {
            assert_eq!(find(raw), Some((Endpoint::Blob, ns, path)), "{raw}");
        }
        assert_eq!(find("/sync/n/blob/b"), Some((Endpoint::Sync, "n/blob/b", "")));
        assert_eq!(find("/versions/a/b"), Some((Endpoint::Versions, "", "a/b")));
        assert_eq!(find("/n/m/versions/a/b"), Some((Endpoint::Versions, "n/m", "a/b")));
        assert_eq!(find("/n/versions/blob/b"), Some((Endpoint::Blob, "n/versions", "b")));
        assert_eq!(find("/events/n/m"), Some((Endpoint::Events, "n/m", "")));
        assert_eq!(find("/batch"), Some((Endpoint::Batch, "", "")));
        assert_eq!(find("/batch/n/m"), Some((Endpoint::Batch, "n/m", "")));
        for nothing in ["//blob/a", "/n/blob", "/sync/", "/events/", "/batch/", "/n", "blob/a", "n/blob/a"] {
            assert_eq!(find(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn unsafe_request_id_is_replaced() {
        let id = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, http::HeaderValue::from_static(text));
            request_id(&headers)
        };
        for safe in ["a", "1f-2_b.C", "0123456789012345678901234567890123456789012345678901234567890123"] {
            assert_eq!(id(safe), safe);
        }
        for unsafe_one in
            ["", "a b", "a\"b", "a;b", "01234567890123456789012345678901234567890123456789012345678901234"]
        {
            assert!(
                id(unsafe_one).len() == 16 && id(unsafe_one).bytes().all(|b| b.is_ascii_hexdigit()),
                "{unsafe_one}"
            );
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
