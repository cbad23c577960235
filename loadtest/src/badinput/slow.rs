//! Clients that are slow on purpose: a thousand heads that never end, bodies that drip, and a length that promises more than comes.
//!
//! Each socket gets one byte a second, which keeps a timer that counts from the last byte from ever firing; only an absolute deadline helps.

use super::exchange::{Transcript, listen};
use super::{Sweep, Want};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, spawn_local};

const DRIP: Duration = Duration::from_secs(1);
/// On top of the gate's own deadline.
const MARGIN: Duration = Duration::from_secs(5);

/// All slow cases at once, so that the sweep lasts as long as the longest of them.
pub(super) async fn slow(sweep: &mut Sweep<'_>) -> io::Result<()> {
    let args = sweep.args;
    let (head_time, body_time) =
        (Duration::from_secs(args.head_secs) + MARGIN, Duration::from_secs(args.body_secs) + MARGIN);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nX-Slow: ";
    let body = |length: usize| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{{\"model\":\"{}\",\"x\":\"",
            args.model
        )
    };
    let start = |first: &str, drips: bool, patience| spawn_local(drip(args.target, first.to_owned(), drips, patience));
    let heads: Vec<_> = (0..args.slow_sockets).map(|_| start(head, true, head_time)).collect();
    let silent = start("", false, head_time);
    let half = start(head, false, head_time);
    let posts: Vec<_> = (0..20).map(|_| start(&body(1000), true, body_time)).collect();
    let long = start(&body(1000), false, body_time);
    let timed_out = Want::Refused(&[408]);
    let mut nothing = ended(silent).await;
    nothing.silence_is(408);
    sweep.record("slow", "connection without a byte", nothing, timed_out, true).await?;
    sweep.record("slow", "half a head, then silence", ended(half).await, timed_out, true).await?;
    for (name, list) in [("slowloris", heads), ("slow POST", posts)] {
        let count = list.len();
        let (mut good, mut worst) = (0, None);
        for task in list {
            let transcript = ended(task).await;
            let is_good = transcript.is_closed && transcript.statuses == [408];
            good += usize::from(is_good);
            if !is_good || worst.is_none() {
                worst = Some(transcript);
            }
        }
        let name = format!("{name}: {good} of {count} sockets got 408 and a close");
        sweep.record("slow", &name, worst.unwrap_or_default(), timed_out, true).await?;
    }
    sweep.record("slow", "length too long, then silence", ended(long).await, timed_out, true).await
}

async fn ended(task: JoinHandle<Transcript>) -> Transcript {
    task.await.unwrap_or_default()
}

/// Sends `first`, then a byte a second if it drips, until the gate answers, closes or the patience ends.
async fn drip(target: SocketAddr, first: String, drips: bool, patience: Duration) -> Transcript {
    let Ok(stream) = TcpStream::connect(target).await else { return Transcript::default() };
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let mut is_open = writer.write_all(first.as_bytes()).await.is_ok();
        while is_open && drips {
            tokio::time::sleep(DRIP).await;
            is_open = writer.write_all(b"a").await.is_ok();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        transcript = listen(&mut reader, patience) => transcript,
        () = write => Transcript::default(),
    }
}
