//! A call that becomes a tunnel, such as a WebSocket: bytes go both ways until one side ends it.
//! Must never open the tunnel before the worker has agreed to it.

use tokio::io::AsyncWriteExt;

use crate::account::{Account, Outcome};
use crate::client::Client;
use crate::deliver::{After, Answered, tell};

/// Tells the client that the worker agreed and moves bytes until both sides have ended; the
/// account holds its slot as long.
pub(crate) async fn join(client: &mut Client, mut account: Account, answered: Answered) -> After {
    let Answered {
        head,
        line,
        connect,
        ..
    } = answered;
    let (mut worker, after_head) = line.wire.into_parts();
    let mut text = tell(&head, &mut account, connect, false, false);
    text.extend_from_slice(&after_head);
    if !client.send(&text).await {
        account.close(Outcome::ClientGone);
        return After::Cut;
    }
    let early = client.wire.unread().to_vec();
    client.wire.consume(early.len());
    if worker.write_all(&early).await.is_err() {
        account.close(Outcome::WorkerBroke);
        return After::Cut;
    }
    drop((text, early, head));
    let copied = tokio::io::copy_bidirectional(&mut client.wire.socket, &mut worker).await;
    // How a tunnel ends is between its two sides; only the size is known when it ends well.
    account.bytes_out = copied.map_or(0, |(_, out)| out);
    account.close(Outcome::Complete);
    After::Cut
}
