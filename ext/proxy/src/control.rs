//! Requests that are not inference calls, on their way to the control server.
//! Must never take part in what happens to calls.

use std::io;

use crate::call::{Failure, open};
use crate::client::Client;
use crate::deliver::{After, Answered, Whose, answer};
use crate::exchange::{self, Miss, Patience, Upload};
use crate::framing::RequestHead;
use crate::headers::{self, Outgoing, Sent};
use crate::plane::Core;
use crate::pump::{Coding, Pump};
use crate::reply::Reject;

/// Hands a request that is not an inference call to the control server, unchanged.
pub(crate) async fn serve(
    core: &Core,
    client: &mut Client,
    head: RequestHead,
    request_id: &str,
    keep_alive: bool,
) -> Result<After, Failure> {
    let unavailable = |error: io::Error| {
        let message = format!("the control server does not answer: {error}");
        Failure::Reject(Reject::new(503, "unavailable", message).retry_after(1000))
    };
    let (mut line, connect) = open(core, &core.control).await.map_err(unavailable)?;
    if !client.want_body().await {
        return Err(Failure::Gone);
    }
    let outgoing = Outgoing {
        target: head.target(),
        request_id,
        sent: Sent::AsItCame,
        host: &"gateway",
        upgrade: None,
    };
    let text = headers::write_request(&head, &outgoing);
    let limit = core.config.body_bytes_max;
    let coding = Coding::of_upload(&head.framer);
    let mut upload = Upload::new(Pump::new(text, coding, limit), limit);
    let patience = Patience {
        first_byte: core.config.control_idle_timeout,
        idle: core.config.idle_timeout,
    };
    let to_head = head.method() == "HEAD";
    let answer_head = match exchange::ask(client, &mut line, &mut upload, patience, to_head).await {
        Ok(answer_head) => answer_head,
        Err(Miss::Gone) => return Err(Failure::Gone),
        Err(Miss::Rejected(error)) => return Err(error.into()),
        Err(Miss::Late) => return Err(unavailable(io::ErrorKind::TimedOut.into())),
        Err(Miss::Worker(error)) => return Err(unavailable(error)),
    };
    let answered = Answered {
        head: answer_head,
        line,
        upload,
        home: core.control.clone(),
        connect,
    };
    Ok(answer(
        core,
        client,
        &head,
        Whose::Control(request_id),
        answered,
        keep_alive,
    )
    .await)
}
