//! The front door: which request is answered here, by a worker, or by the control server.
//! Must never read a body further than its route needs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::account::{self, Account};
use crate::auth::Caller;
use crate::call::{self, Call, Upload, declared_length};
use crate::dispatch::Function;
use crate::headers::request_id;
use crate::link::Link;
use crate::openai::{Found, ModelScan, splice};
use crate::plane::Core;
use crate::reply::{ErrorShape, Reject, Reply, X_REQUEST_ID, closing, reject, text};
use crate::route::{is_name, split_call};
use crate::tunnel;

/// Answers one request of a client connection.
pub(crate) async fn handle(
    core: Arc<Core>,
    link: Arc<Link>,
    request: Request<Incoming>,
) -> Response<Reply> {
    link.set_busy(true);
    core.stats.requests.fetch_add(1, Ordering::Relaxed);
    let response = respond(&core, &link, request).await;
    link.decide_upgrade(response.status() == StatusCode::SWITCHING_PROTOCOLS);
    response.map(|reply| reply.holding(link))
}

async fn respond(core: &Arc<Core>, link: &Link, mut request: Request<Incoming>) -> Response<Reply> {
    let client = link
        .wants_upgrade()
        .then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let id = request_id(&parts.headers);
    if let Some(refusal) = link.refusal() {
        let code = if refusal.status == 400 {
            "bad_request"
        } else {
            "request_refused"
        };
        let error = Reject::new(refusal.status, code, refusal.message);
        return closing(reject(&error, ErrorShape::Platform, &id));
    }
    let path = parts.uri.path();
    let openai = path.starts_with("/v1/") && path != "/v1/models" && parts.method == Method::POST;
    let shape = if openai {
        ErrorShape::OpenAi
    } else {
        ErrorShape::Platform
    };
    if declared_length(&parts.headers).is_some_and(|size| size > core.config.body_bytes_max) {
        let error = Reject::body_too_large(core.config.body_bytes_max);
        return closing(reject(&error, shape, &id));
    }
    let outcome = match path {
        "/" | "/healthz" if is_read(&parts.method) => {
            let mut response = text(StatusCode::OK, "ok\n");
            response.headers_mut().insert(X_REQUEST_ID.clone(), id);
            return response;
        }
        "/readyz" if is_read(&parts.method) => core.readiness(&id),
        "/funccall" | "/funccall/" => json_call(core, link, parts, body, &id).await,
        _ if path.starts_with("/funccall/") => {
            path_call(core, link, parts, body, client, &id).await
        }
        _ if openai => openai_call(core, link, parts, body, &id).await,
        _ => call::control(core, parts, body, &id).await,
    };
    match outcome {
        Ok(response) => response,
        Err(error) => {
            let response = reject(&error, shape, &id);
            // The rest of such an upload is not worth reading.
            if matches!(error.status, 400 | 413) {
                closing(response)
            } else {
                response
            }
        }
    }
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// `* /funccall/{tenant}/{namespace}/{function}/{path...}`
async fn path_call(
    core: &Arc<Core>,
    link: &Link,
    mut parts: Parts,
    body: Incoming,
    client: Option<OnUpgrade>,
    id: &HeaderValue,
) -> Result<Response<Reply>, Reject> {
    let caller = identify(core, &mut parts, id).await?;
    let path = parts.uri.path();
    let Some(split) = split_call(path) else {
        return Err(Reject::new(
            404,
            "not_found",
            format!("there is nothing at {path}"),
        ));
    };
    let (key, rest) = split?;
    let function = enter(core, &caller, &key, &parts.method, id)?;
    let slash = if rest.is_empty() { "/" } else { "" };
    let target = match parts.uri.query() {
        Some(query) => format!("{slash}{rest}?{query}"),
        None => format!("{slash}{rest}"),
    };
    let upload = Upload::Stream {
        first: VecDeque::new(),
        rest: body,
    };
    let account = open_account(core, function, id, &parts.method, &caller);
    let protocol = parts.headers.get(UPGRADE).cloned();
    let call = Call {
        uri: worker_uri(&target)?,
        method: parts.method,
        headers: parts.headers,
        upload,
        account,
    };
    match (client, protocol) {
        (Some(client), Some(protocol)) => tunnel::serve(core, link, call, client, protocol).await,
        _ => call::serve(core, link, call).await,
    }
}

#[derive(Deserialize)]
struct CallForm<'a> {
    tenant: String,
    namespace: String,
    funcname: String,
    #[serde(borrow)]
    payload: &'a RawValue,
    path: Option<String>,
}

/// `POST /funccall` with the function and the payload in a JSON body.
async fn json_call(
    core: &Core,
    link: &Link,
    mut parts: Parts,
    body: Incoming,
    id: &HeaderValue,
) -> Result<Response<Reply>, Reject> {
    let caller = identify(core, &mut parts, id).await?;
    if parts.method != Method::POST {
        return Err(Reject::new(
            405,
            "method_not_allowed",
            "POST a JSON body to /funccall",
        ));
    }
    let body = read_whole(core, body).await?;
    let form: CallForm<'_> = serde_json::from_slice(&body)
        .map_err(|error| Reject::bad_request(format!("the body of /funccall: {error}")))?;
    for name in [&form.tenant, &form.namespace, &form.funcname] {
        if !is_name(name) {
            let message = format!("`{name}` is not a name: expected [A-Za-z0-9][A-Za-z0-9._-]*");
            return Err(Reject::bad_request(message));
        }
    }
    let key = format!("{}/{}/{}", form.tenant, form.namespace, form.funcname);
    let function = enter(core, &caller, &key, &parts.method, id)?;
    // Manifests write their sample query's path without the slash; so may callers.
    let path = form.path.as_deref().unwrap_or("funccall");
    let path = format!("/{}", path.strip_prefix('/').unwrap_or(path));
    let payload = body.slice_ref(form.payload.get().as_bytes());
    let mut headers = parts.headers;
    set_length(&mut headers, payload.len());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let call = Call {
        uri: worker_uri(&path)?,
        method: Method::POST,
        headers,
        upload: Upload::Whole(payload),
        account: open_account(core, function, id, &Method::POST, &caller),
    };
    call::serve(core, link, call).await
}

/// `POST /v1/...`: the function is named by the request's `model`.
async fn openai_call(
    core: &Core,
    link: &Link,
    mut parts: Parts,
    mut body: Incoming,
    id: &HeaderValue,
) -> Result<Response<Reply>, Reject> {
    let caller = identify(core, &mut parts, id).await?;
    let (mut frames, name, at) = read_model(core, &mut body).await?;
    let found = core.routes.find_model(&name, &core.config.default_tenant);
    // A model that may not be called looks like one that does not exist.
    let found = match found {
        Some(function) => match enter(core, &caller, &function.key, &parts.method, id) {
            Err(error) if error.status == 403 => None,
            entered => Some(entered?),
        },
        None => {
            if matches!(caller, Caller::Anonymous) {
                enter(core, &caller, &name, &parts.method, id)?;
            }
            None
        }
    };
    let Some(function) = found else {
        core.check_synced()?;
        let message = format!("The model `{name}` does not exist or you do not have access to it.");
        return Err(Reject::new(404, "model_not_found", message));
    };
    let mut headers = parts.headers;
    if let Some(served) = &function.definition().served_model {
        let before: usize = frames.iter().map(Bytes::len).sum();
        frames = splice(frames, &at, served);
        let after: usize = frames.iter().map(Bytes::len).sum();
        if let Some(length) = declared_length(&headers) {
            set_length(
                &mut headers,
                (length as usize + after).saturating_sub(before),
            );
        }
    }
    let call = Call {
        uri: worker_uri(
            parts
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str()),
        )?,
        method: parts.method.clone(),
        headers,
        upload: Upload::Stream {
            first: frames,
            rest: body,
        },
        account: open_account(core, function, id, &parts.method, &caller),
    };
    call::serve(core, link, call).await
}

/// Reads until the model is known; what was read is returned with it.
async fn read_model(
    core: &Core,
    body: &mut Incoming,
) -> Result<(VecDeque<Bytes>, String, std::ops::Range<usize>), Reject> {
    let mut scan = ModelScan::new();
    let mut frames = VecDeque::new();
    let mut size = 0;
    while let Some(data) = next_data(body).await? {
        size += data.len() as u64;
        if size > core.config.body_bytes_max {
            return Err(Reject::body_too_large(core.config.body_bytes_max));
        }
        let found = scan.feed(&data);
        frames.push_back(data);
        match found {
            None => {}
            Some(Found::Model { name, at }) => return Ok((frames, name, at)),
            Some(Found::Absent) => break,
            Some(Found::Wrong(why)) => return Err(Reject::bad_request(why)),
        }
    }
    Err(Reject::bad_request("you must provide a `model` parameter"))
}

async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, Reject> {
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Reject::bad_request("the request body is malformed or was cut"))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn read_whole(core: &Core, mut body: Incoming) -> Result<Bytes, Reject> {
    let Some(first) = next_data(&mut body).await? else {
        return Ok(Bytes::new());
    };
    let Some(second) = next_data(&mut body).await? else {
        return Ok(first);
    };
    let mut whole = [first, second].concat();
    while let Some(data) = next_data(&mut body).await? {
        if (whole.len() + data.len()) as u64 > core.config.body_bytes_max {
            return Err(Reject::body_too_large(core.config.body_bytes_max));
        }
        whole.extend_from_slice(&data);
    }
    Ok(Bytes::from(whole))
}

/// Who calls; a refusal is recorded, since no account of a call will be.
async fn identify(core: &Core, parts: &mut Parts, id: &HeaderValue) -> Result<Caller, Reject> {
    let caller = core.auth.identify(&mut parts.headers, &core.hub.outbox);
    caller.await.inspect_err(|error| {
        let path = parts.uri.path();
        account::refused(&core.hub, id, &parts.method, path, "", error.status);
    })
}

/// The function of that key, if the caller may call it: whether it exists is nobody else's matter.
fn enter(
    core: &Core,
    caller: &Caller,
    key: &str,
    method: &Method,
    id: &HeaderValue,
) -> Result<Arc<Function>, Reject> {
    let found = core.routes.find(key);
    let public = || {
        let found = found.as_ref();
        found.is_some_and(|function| function.definition().public)
    };
    if let Err(error) = caller.may_call(key, public) {
        let principal = caller.principal().unwrap_or_default();
        account::refused(&core.hub, id, method, key, &principal, error.status);
        return Err(error);
    }
    match found {
        Some(function) => Ok(function),
        None => {
            core.check_synced()?;
            Err(Reject::function_not_found(key))
        }
    }
}

fn open_account(
    core: &Core,
    function: Arc<Function>,
    id: &HeaderValue,
    method: &Method,
    caller: &Caller,
) -> Account {
    let mut account = Account::open(function, id.clone(), method.clone(), core.hub.clone());
    account.principal = caller.principal();
    account
}

fn worker_uri(target: &str) -> Result<Uri, Reject> {
    Uri::try_from(target)
        .map_err(|error| Reject::bad_request(format!("the path to the worker: {error}")))
}

fn set_length(headers: &mut HeaderMap, length: usize) {
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
}
