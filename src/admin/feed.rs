//! The dashboard's server-sent events on one connection, until the viewer leaves or reads too slowly.
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::answer::AdminState;
use super::board::{Board, Viewer};
use crate::tls::ClientStream;

/// Longest time for writing one event.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// Serves one viewer. `head` is the head of the answer.
pub(super) async fn serve(
    socket: &mut ClientStream,
    head: &[u8],
    mut viewer: Viewer<'_>,
    board: &Board,
    state: &AdminState,
) {
    let (mut reader, mut writer) = tokio::io::split(socket);
    // A viewer sends nothing any more; what can be read is its end.
    let mut byte = [0; 1];
    tokio::select! {
        _broken = tell(&mut writer, head, &mut viewer, board, state) => {}
        _left = reader.read(&mut byte) => {}
    }
}

/// All there is, then every tick. Who missed one gets all there is again.
async fn tell<W: AsyncWrite + Unpin>(
    writer: &mut W,
    head: &[u8],
    viewer: &mut Viewer<'_>,
    board: &Board,
    state: &AdminState,
) -> io::Result<Infallible> {
    timeout(WRITE_TIME, send(writer, head)).await??;
    let mut is_behind = true;
    let mut seen = 0;
    loop {
        if is_behind {
            let (number, whole) = board.whole(state);
            seen = number;
            timeout(WRITE_TIME, send(writer, whole.as_bytes())).await??;
        }
        let tick = viewer.next().await?;
        is_behind = tick.number != seen + 1;
        if !is_behind {
            seen = tick.number;
            timeout(WRITE_TIME, send(writer, tick.event.as_bytes())).await??;
        }
    }
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}
