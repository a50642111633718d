//! The front door: which request is answered here, by a worker, or by the control server.
//! Must never read a body further than its route needs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::account::{self, Account};
use crate::auth::Caller;
use crate::call::{self, Body, Call, Failure};
use crate::client::Client;
use crate::control;
use crate::deliver::After;
use crate::dispatch::Function;
use crate::framing::{Refusal, RequestHead};
use crate::headers::{new_request_id, request_id};
use crate::openai::{Found, ModelScan, splice};
use crate::plane::Core;
use crate::progress;
use crate::reply::{ErrorShape, Frame, Reject, reject, text};
use crate::route::{is_name, split_call};

/// Answers a request whose head was refused; the connection ends with it.
pub(crate) async fn refuse(core: &Core, client: &mut Client, refusal: Refusal) {
    core.stats.requests.fetch_add(1, Ordering::Relaxed);
    let code = if refusal.status == 400 {
        "bad_request"
    } else {
        "request_refused"
    };
    let error = Reject::new(refusal.status, code, refusal.message);
    let frame = Frame {
        request_id: &new_request_id(),
        close: true,
        to_head: false,
    };
    // Whether the client still hears it or not, the connection is closed now.
    let _ = client
        .send(&reject(&error, ErrorShape::Platform, frame))
        .await;
}

/// Answers one request of a client connection.
pub(crate) async fn handle(
    core: &Core,
    client: &mut Client,
    head: RequestHead,
    may_keep: bool,
) -> After {
    core.stats.requests.fetch_add(1, Ordering::Relaxed);
    let keep_alive = head.keep_alive && may_keep;
    let to_head = head.method() == "HEAD";
    let id = request_id(&head);
    let shape = shape_of(&head);
    let failure = match respond(core, client, head, &id, keep_alive).await {
        Ok(after) => return after,
        Err(failure) => failure,
    };
    let Failure::Reject(error) = failure else {
        return After::Cut;
    };
    if client.begun.is_some() {
        // Its status was sent long ago: the error is an event now.
        return match progress::fail(client, &error, shape, &id).await {
            true if keep_alive && client.skip_body() => After::KeepAlive,
            true => After::Close,
            false => After::Cut,
        };
    }
    // The rest of such an upload is not worth reading.
    let close = !keep_alive || matches!(error.status, 400 | 413) || !client.skip_body();
    let frame = Frame {
        request_id: &id,
        close,
        to_head,
    };
    finish(client, &reject(&error, shape, frame), close).await
}

/// Sends a whole answer.
async fn finish(client: &mut Client, answer: &[u8], close: bool) -> After {
    match client.send(answer).await {
        true if close => After::Close,
        true => After::KeepAlive,
        false => After::Cut,
    }
}

fn is_openai(head: &RequestHead, path: &str) -> bool {
    path.starts_with("/v1/") && path != "/v1/models" && head.method() == "POST"
}

fn shape_of(head: &RequestHead) -> ErrorShape {
    if is_openai(head, head.path_and_query().0) {
        ErrorShape::OpenAi
    } else {
        ErrorShape::Platform
    }
}

async fn respond(
    core: &Core,
    client: &mut Client,
    head: RequestHead,
    id: &str,
    keep_alive: bool,
) -> Result<After, Failure> {
    let limit = core.config.body_bytes_max;
    if head.declared_length().is_some_and(|size| size > limit) {
        return Err(Reject::body_too_large(limit).into());
    }
    let (path, _) = head.path_and_query();
    match path {
        _ if path.starts_with("/funccall/") && path.len() > 10 => {
            let call = path_call(core, client, head, id, keep_alive).await?;
            call::serve(core, client, call).await
        }
        "/" | "/healthz" if head.is_read() => health(client, &head, id, "ok\n", keep_alive).await,
        "/readyz" if head.is_read() => {
            core.check_ready()?;
            health(client, &head, id, "ready\n", keep_alive).await
        }
        // Boxed, because each would make the state of every path call larger.
        "/funccall" | "/funccall/" => Box::pin(json_call(core, client, head, id, keep_alive)).await,
        _ if is_openai(&head, path) => {
            Box::pin(openai_call(core, client, head, id, keep_alive)).await
        }
        _ => Box::pin(control::serve(core, client, head, id, keep_alive)).await,
    }
}

async fn health(
    client: &mut Client,
    head: &RequestHead,
    id: &str,
    body: &str,
    keep_alive: bool,
) -> Result<After, Failure> {
    let close = !keep_alive || !client.skip_body();
    let frame = Frame {
        request_id: id,
        close,
        to_head: head.method() == "HEAD",
    };
    Ok(finish(client, &text(body, frame), close).await)
}

/// `* /funccall/{tenant}/{namespace}/{function}/{path...}`
async fn path_call(
    core: &Core,
    client: &mut Client,
    mut head: RequestHead,
    id: &str,
    keep_alive: bool,
) -> Result<Call, Failure> {
    let caller = identify(core, client, &mut head, id).await?;
    let (path, query) = head.path_and_query();
    let Some(split) = split_call(path) else {
        let message = format!("there is nothing at {path}");
        return Err(Reject::new(404, "not_found", message).into());
    };
    let (key, rest) = split?;
    let function = enter(core, &caller, &key, &head, id)?;
    let slash = if rest.is_empty() { "/" } else { "" };
    let target = match query {
        Some(query) => format!("{slash}{rest}?{query}"),
        None => [slash, rest].concat(),
    };
    let account = open_account(core, function, id, &head, &caller, &target)?;
    Ok(Call {
        target,
        account,
        body: Body::Unread,
        head,
        keep_alive,
    })
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
    client: &mut Client,
    mut head: RequestHead,
    id: &str,
    keep_alive: bool,
) -> Result<After, Failure> {
    let caller = identify(core, client, &mut head, id).await?;
    if head.method() != "POST" {
        let message = "POST a JSON body to /funccall";
        return Err(Reject::new(405, "method_not_allowed", message).into());
    }
    let body = read_whole(core, client).await?;
    let form: CallForm<'_> = serde_json::from_slice(&body)
        .map_err(|error| Reject::bad_request(format!("the body of /funccall: {error}")))?;
    for name in [&form.tenant, &form.namespace, &form.funcname] {
        if !is_name(name) {
            let message = format!("`{name}` is not a name: expected [A-Za-z0-9][A-Za-z0-9._-]*");
            return Err(Reject::bad_request(message).into());
        }
    }
    let key = format!("{}/{}/{}", form.tenant, form.namespace, form.funcname);
    let function = enter(core, &caller, &key, &head, id)?;
    // Manifests write their sample query's path without the slash; so may callers.
    let path = form.path.as_deref().unwrap_or("funccall");
    let target = format!("/{}", path.strip_prefix('/').unwrap_or(path));
    if !target
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        let message = format!("the path to the worker: `{path}` is not visible ASCII");
        return Err(Reject::bad_request(message).into());
    }
    let account = open_account(core, function, id, &head, &caller, &target)?;
    let call = Call {
        target,
        body: Body::Json(form.payload.get().as_bytes().to_vec()),
        account,
        head,
        keep_alive,
    };
    drop(body);
    call::serve(core, client, call).await
}

/// `POST /v1/...`: the function is named by the request's `model`.
async fn openai_call(
    core: &Core,
    client: &mut Client,
    mut head: RequestHead,
    id: &str,
    keep_alive: bool,
) -> Result<After, Failure> {
    let caller = identify(core, client, &mut head, id).await?;
    let (mut begun, name, at) = read_model(core, client).await?;
    let found = core.routes.find_model(&name, &core.config.default_tenant);
    // A model that may not be called looks like one that does not exist.
    let found = match found {
        Some(function) => match enter(core, &caller, &function.key, &head, id) {
            Err(error) if error.status == 403 => None,
            entered => Some(entered?),
        },
        None => {
            if matches!(caller, Caller::Anonymous) {
                enter(core, &caller, &name, &head, id)?;
            }
            None
        }
    };
    let Some(function) = found else {
        core.check_synced()?;
        let message = format!("The model `{name}` does not exist or you do not have access to it.");
        return Err(Reject::new(404, "model_not_found", message).into());
    };
    if let Some(served) = &function.definition().served_model {
        begun = splice(begun, &at, served);
    }
    let call = Call {
        target: head.target().to_owned(),
        body: Body::Begun(begun),
        account: open_account(core, function, id, &head, &caller, head.target())?,
        head,
        keep_alive,
    };
    call::serve(core, client, call).await
}

/// Reads until the model is known; what was read is returned with it.
async fn read_model(
    core: &Core,
    client: &mut Client,
) -> Result<(Vec<u8>, String, std::ops::Range<usize>), Failure> {
    let mut scan = ModelScan::new();
    let mut begun = Vec::new();
    while let Some(data) = next_data(core, client, begun.len()).await? {
        let found = scan.feed(&data);
        begun.extend_from_slice(&data);
        match found {
            None => {}
            Some(Found::Model { name, at }) => return Ok((begun, name, at)),
            Some(Found::Absent) => break,
            Some(Found::Wrong(why)) => return Err(Reject::bad_request(why).into()),
        }
    }
    Err(Reject::bad_request("you must provide a `model` parameter").into())
}

/// The next data of the body, of which `before` bytes were read.
async fn next_data(
    core: &Core,
    client: &mut Client,
    before: usize,
) -> Result<Option<Vec<u8>>, Failure> {
    let limit = core.config.body_bytes_max;
    match client.read_body().await {
        Ok(Some(data)) if (before + data.len()) as u64 > limit => {
            Err(Reject::body_too_large(limit).into())
        }
        Ok(data) => Ok(data),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(Reject::bad_request(format!("the request body: {error}")).into())
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(Reject::bad_request("the request body stalled").into())
        }
        Err(_) => Err(Failure::Gone),
    }
}

async fn read_whole(core: &Core, client: &mut Client) -> Result<Vec<u8>, Failure> {
    let mut whole = Vec::new();
    while let Some(data) = next_data(core, client, whole.len()).await? {
        if whole.is_empty() {
            whole = data;
        } else {
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole)
}

/// Who calls; a refusal is recorded, since no account of a call will be.
async fn identify(
    core: &Core,
    client: &mut Client,
    head: &mut RequestHead,
    id: &str,
) -> Result<Caller, Failure> {
    let identified = client.unless_gone(core.auth.identify(head, &core.hub.outbox));
    let caller = identified.await.ok_or(Failure::Gone)?;
    caller.map_err(|error| {
        let (path, _) = head.path_and_query();
        account::refused(&core.hub, id, head.method(), path, "", error.status);
        error.into()
    })
}

/// The function of that key, if the caller may call it: whether it exists is nobody else's matter.
fn enter(
    core: &Core,
    caller: &Caller,
    key: &str,
    head: &RequestHead,
    id: &str,
) -> Result<Arc<Function>, Reject> {
    let found = core.routes.find(key);
    let public = || {
        let found = found.as_ref();
        found.is_some_and(|function| function.definition().public)
    };
    if let Err(error) = caller.may_call(key, public) {
        let principal = caller.principal().unwrap_or_default();
        account::refused(&core.hub, id, head.method(), key, &principal, error.status);
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
    id: &str,
    head: &RequestHead,
    caller: &Caller,
    target: &str,
) -> Result<Account, Reject> {
    let permit = core.limits.admit(&function.key).inspect_err(|error| {
        let principal = caller.principal().unwrap_or_default();
        let (key, status) = (&function.key, error.status);
        account::refused(&core.hub, id, head.method(), key, &principal, status);
    })?;
    let mut account = Account::open(function, id.into(), head.method().into(), core.hub.clone());
    account.principal = caller.principal();
    account.permit = permit;
    account.metered = target.starts_with("/v1/");
    Ok(account)
}
