//! A caller that is fast enough to load a scheduler: leases and returns, at a fixed rate or one
//! after the other. It must never count a pair that failed; it ends with the first one.
//!
//! `pairs ADDRESS SECONDS RATE IN_FLIGHT`: with RATE 0 so many loops call at once; otherwise so
//! many pairs a second are begun, whatever became of those before, and the time of each counts
//! from when it was due.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use scheduler_server::messages::{
    LeaseWorkerReq, LeaseWorkerResp, ReturnWorkerReq, ReturnWorkerResp,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Sender = SendRequest<Full<Bytes>>;

async fn call<T: Message + Default>(
    sender: &mut Sender,
    method: &str,
    message: &impl Message,
) -> Outcome<T> {
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len())?);
    message.encode(&mut body)?;
    let request = Request::post(format!("http://scheduler/na.SchedulerService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body.freeze()))?;
    let answer = sender.send_request(request).await?;
    let refusal = answer.headers().get("grpc-status").cloned();
    let body = answer.into_body().collect().await?.to_bytes();
    match body.get(5..) {
        Some(message) => Ok(T::decode(message)?),
        None => Err(format!("{method} was refused, status {refusal:?}").into()),
    }
}

async fn pair(mut sender: Sender, begun: Instant) -> Outcome<Duration> {
    let ask = LeaseWorkerReq {
        tenant: "t".into(),
        namespace: "n".into(),
        funcname: "f".into(),
        fprevision: 1,
        gateway_id: 1,
        slots: 1,
        deadline_ms: 20_000,
        ..LeaseWorkerReq::default()
    };
    let lease: LeaseWorkerResp = call(&mut sender, "LeaseWorker", &ask).await?;
    let back = ReturnWorkerReq {
        lease_id: lease.lease_id,
        id: lease.id,
        ..ReturnWorkerReq::default()
    };
    let _: ReturnWorkerResp = call(&mut sender, "ReturnWorker", &back).await?;
    Ok(begun.elapsed())
}

async fn in_loops(sender: Sender, until: Instant, loops: usize) -> Outcome<Vec<Duration>> {
    let tasks = (0..loops).map(|_| {
        let sender = sender.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < until {
                took.push(pair(sender.clone(), Instant::now()).await?);
            }
            Outcome::Ok(took)
        })
    });
    let mut took = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        took.extend(task.await??);
    }
    Ok(took)
}

async fn at_rate(sender: Sender, until: Instant, rate: f64) -> Outcome<Vec<Duration>> {
    let (begun, mut tasks) = (Instant::now(), Vec::new());
    for number in 0_u32.. {
        let due = begun + Duration::from_secs_f64(f64::from(number) / rate);
        if due >= until {
            break;
        }
        sleep_until(due).await;
        tasks.push(tokio::spawn(pair(sender.clone(), due)));
    }
    let mut took = Vec::new();
    for task in tasks {
        took.push(task.await??);
    }
    Ok(took)
}

#[allow(clippy::print_stdout)] // the result
#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [address, seconds, rate, loops] = given.as_slice() else {
        return Err("usage: pairs ADDRESS SECONDS RATE IN_FLIGHT".into());
    };
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let until = Instant::now() + Duration::from_secs_f64(seconds.parse()?);
    let rate: f64 = rate.parse()?;
    let mut took = if rate > 0.0 {
        at_rate(sender, until, rate).await?
    } else {
        in_loops(sender, until, loops.parse()?).await?
    };
    took.sort();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{{\"pairs\": {}, \"p50_ms\": {:.2}, \"p99_ms\": {:.2}}}",
        took.len(),
        at(0.5),
        at(0.99)
    );
    Ok(())
}
