//! LeaseWorker and ReturnWorker: messages in, verbs of the desk, messages out.
//! They must never decide anything.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use scheduler_core::messages::Ask;
use scheduler_core::model::{FuncKey, StartKind};
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use crate::desk::{Desk, Told};
use crate::held::Held;
use crate::messages::{LeaseWorkerReq, LeaseWorkerResp, ReturnWorkerReq, ReturnWorkerResp};
use crate::refused::{Refused, Statuses};

/// As `NAME_LEN_MAX` in `domain/meta.py`.
const NAME_CHARS_MAX: usize = 253;

/// What both calls need.
pub(crate) struct Counter {
    pub(crate) desk: Arc<Desk>,
    pub(crate) statuses: Statuses,
    pub(crate) lease_ttl_ms: u64,
}

type Answering<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// Slots of a worker, after a start if need be; answers by the deadline.
pub(crate) struct LeaseWorker(pub(crate) Arc<Counter>);

impl UnaryService<LeaseWorkerReq> for LeaseWorker {
    type Response = LeaseWorkerResp;
    type Future = Answering<LeaseWorkerResp>;

    fn call(&mut self, request: Request<LeaseWorkerReq>) -> Self::Future {
        let counter = self.0.clone();
        Box::pin(async move {
            let answer = lease(&counter, request.into_inner()).await;
            answer.map_err(|why| counter.statuses.render(&why))
        })
    }
}

/// Ends a lease; `stale_lease` when it is not live.
pub(crate) struct ReturnWorker(pub(crate) Arc<Counter>);

impl UnaryService<ReturnWorkerReq> for ReturnWorker {
    type Response = ReturnWorkerResp;
    type Future = std::future::Ready<Result<Response<ReturnWorkerResp>, Status>>;

    fn call(&mut self, request: Request<ReturnWorkerReq>) -> Self::Future {
        let answer = give_back(&self.0.desk, &request.into_inner());
        std::future::ready(answer.map_err(|why| self.0.statuses.render(&why)))
    }
}

async fn lease(
    counter: &Counter,
    request: LeaseWorkerReq,
) -> Result<Response<LeaseWorkerResp>, Refused> {
    let desk = &counter.desk;
    desk.require_open()?;
    let key = key_of(&request)?;
    let begun = Instant::now();
    let request_id = request.request_id.clone();
    let held = match granted(desk, key.clone(), request).await {
        Ok(held) => held,
        Err(why) => {
            desk.tally.refused(&why.code);
            desk.tell_refused(request_id, key, why.clone());
            return Err(why);
        }
    };
    desk.require_lead()?; // the lead may have ended while the call waited
    let grant = &held.grant;
    let Some(place) = desk.place_of(&grant.pod_id) else {
        held.settle();
        desk.give_back(grant.lease.0, false);
        let why = format!("the address of pod {} is not known", grant.pod_id);
        return Err(Refused::new("unavailable", why));
    };
    let start = grant.start.name();
    desk.tally.granted(start, begun.elapsed().as_secs_f64());
    let message = LeaseWorkerResp {
        id: grant.pod_id.clone(),
        ipaddr: place.ip,
        keepalive: grant.start == StartKind::Warm,
        hostipaddr: place.ip,
        hostport: place.port.into(),
        lease_id: grant.lease.0.to_string(),
        epoch: desk.epoch(),
        slots: grant.slots,
        start: start.to_owned(),
        expires_ms: i64::try_from(counter.lease_ttl_ms).unwrap_or(i64::MAX),
        ..LeaseWorkerResp::default()
    };
    let mut response = Response::new(message);
    response.extensions_mut().insert(Sent(held));
    Ok(response)
}

/// Travels with an answer until its bytes leave; see `front::Reply`.
#[derive(Clone)]
pub(crate) struct Sent(pub(crate) Arc<Held>);

async fn granted(
    desk: &Arc<Desk>,
    key: FuncKey,
    request: LeaseWorkerReq,
) -> Result<Arc<Held>, Refused> {
    if !desk.knows(&key, request.fprevision) {
        let learned = desk.learn(key.clone()).await;
        learned.unwrap_or_else(|_| Err(Refused::stopping()))?;
    }
    let ask = Ask {
        key,
        gateway: request.gateway_id,
        consumer: request.consumer_tenant,
        request_id: request.request_id,
        slots: request.slots,
        deadline_ms: 0,
    };
    match desk.lease(ask, request.deadline_ms.into()) {
        Told::Granted(held) => Ok(held),
        Told::Refused(why) => Err(why),
        Told::Wait(waiting) => waiting.answered().await,
    }
}

fn give_back(
    desk: &Arc<Desk>,
    request: &ReturnWorkerReq,
) -> Result<Response<ReturnWorkerResp>, Refused> {
    desk.require_open()?;
    if !desk.give_back(lease_id(&request.lease_id)?, !request.failworker) {
        let (lease, pod) = (&request.lease_id, &request.id);
        let why = format!("lease {lease} of pod {pod} is not live");
        return Err(Refused::new("stale_lease", why));
    }
    Ok(Response::new(ReturnWorkerResp::default()))
}

fn key_of(request: &LeaseWorkerReq) -> Result<FuncKey, Refused> {
    Ok(FuncKey {
        tenant: name(&request.tenant, "tenant")?,
        namespace: name(&request.namespace, "namespace")?,
        name: name(&request.funcname, "funcname")?,
    })
}

/// `text` when it is a legal object name; the rules of `domain/meta.py`.
fn name(text: &str, field: &str) -> Result<String, Refused> {
    let inner = |char: u8| char.is_ascii_alphanumeric() || b"._-".contains(&char);
    let why = match text.as_bytes() {
        [] => "must not be empty".to_owned(),
        bytes if bytes.len() > NAME_CHARS_MAX => {
            format!("longer than {NAME_CHARS_MAX} characters")
        }
        [first, rest @ ..] if first.is_ascii_alphanumeric() && rest.iter().all(|c| inner(*c)) => {
            return Ok(text.to_owned());
        }
        _ => format!(
            "{text:?} is not a legal name; it must start with a letter or digit and contain only \
             letters, digits, '.', '_' and '-'"
        ),
    };
    Err(Refused::new("bad_request", format!("{field}: {why}")))
}

fn lease_id(text: &str) -> Result<u64, Refused> {
    let digits = !text.is_empty() && text.len() <= 19 && text.bytes().all(|c| c.is_ascii_digit());
    match text.parse() {
        Ok(id) if digits => Ok(id),
        _ => {
            let why = format!("lease_id: expected a decimal number, got {text:?}");
            Err(Refused::new("bad_request", why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_judged() {
        for good in ["a", "9", "a.b_c-D", &"x".repeat(NAME_CHARS_MAX)] {
            assert_eq!(name(good, "tenant").expect("legal"), good);
        }
        for bad in ["", ".a", "-", "a/b", "a b", "ä", &"x".repeat(254)] {
            let why = name(bad, "tenant").expect_err("not legal");
            assert!(why.message.starts_with("tenant: "), "{}", why.message);
        }
        assert_eq!(lease_id("18").expect("a number"), 18);
        for bad in ["", "x", "-1", "+1", "1.0", "12345678901234567890"] {
            assert_eq!(lease_id(bad).expect_err("none").code, "bad_request");
        }
    }
}
