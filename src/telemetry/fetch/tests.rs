//! Answers a pod may give, good and bad, as bytes on a socket.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::super::test_server::{Pace, Server};
use super::*;

/// A line without TLS.
fn line(addr: SocketAddr, authority: &str) -> Line {
    Line::new(addr, authority.into(), None, Arc::default())
}

const CAPS: Caps = Caps { timeout: Duration::from_secs(10), body_bytes: 1_000 };

async fn ask(answer: &'static [u8], pace: Pace) -> Result<(u16, String), FetchError> {
    let server = Server::start(pace, move |_, _| answer.to_vec()).await;
    let caps = if pace == Pace::Hang { Caps { timeout: Duration::from_millis(30), ..CAPS } } else { CAPS };
    let answer = line(server.addr, "pod:1").get("/metrics", None, caps).await?;
    Ok((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
}

async fn check(answer: &'static str, expected: Result<(u16, &str), FetchError>) {
    let expected = expected.map(|(status, body)| (status, body.to_owned()));
    assert_eq!(ask(answer.as_bytes(), Pace::Close).await, expected, "{answer:?}");
    // The same, byte by byte.
    assert_eq!(ask(answer.as_bytes(), Pace::Drip).await, expected, "{answer:?} dripping");
}

#[tokio::test]
async fn framings() {
    check("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", Ok((200, "abc"))).await;
    check("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Ok((404, ""))).await;
    check("HTTP/1.0 200 OK\r\n\r\nuntil the end", Ok((200, "until the end"))).await;
    check("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\ncontent-length: 9\r\n\r\n", Ok((204, ""))).await;
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nt: 1\r\n\r\n",
        Ok((200, "abcde")),
    )
    .await;
}

#[tokio::test]
async fn bad_answers() {
    use FetchError::{Closed, Malformed, TooLarge};
    check("", Err(Closed)).await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", Err(Closed)).await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", Err(Closed)).await;
    check("SSH-2.0-OpenSSH_9.2\r\n", Err(Malformed("bad head"))).await;
    check("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", Err(Malformed("bad content-length"))).await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", Err(Malformed("bad content-length")))
        .await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", Err(Malformed("unknown transfer-encoding"))).await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", Err(Malformed("bad chunk size"))).await;
    check("HTTP/1.1 101 Switching\r\n\r\n", Err(Malformed("it switches protocols"))).await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n", Err(TooLarge(1_000))).await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffff\r\n", Err(TooLarge(1_000))).await;
}

#[tokio::test]
async fn endless_answers_and_silence_end() {
    let endless = |head: &str, filler: &str| -> &'static [u8] {
        Box::leak([head, &filler.repeat(70_000)].concat().into_bytes().into_boxed_slice())
    };
    let too_large = |max| Err(FetchError::TooLarge(max));
    assert_eq!(ask(endless("HTTP/1.0 200 OK\r\n\r\n", "ab"), Pace::Close).await, too_large(1_000));
    assert_eq!(ask(endless("HTTP/1.1 200 OK\r\nx: ", "ab"), Pace::Close).await, too_large(HEAD_BYTES_MAX));
    assert_eq!(ask(b"HTTP/1.1 200 OK\r\n", Pace::Hang).await, Err(FetchError::TimedOut));
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let refused = line(nobody, "pod:1").get("/", None, CAPS).await;
    assert_eq!(refused.unwrap_err(), FetchError::Connect(io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn connections_are_kept_and_replaced_when_they_went_stale() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for (pace, connections) in [(Pace::Keep, 1), (Pace::Close, 5)] {
        let server = Server::start(pace, |_, _| ANSWER.to_vec()).await;
        let mut line = line(server.addr, "pod:1");
        for round in 0..5 {
            assert_eq!(line.get("/x", None, CAPS).await.unwrap().status, 200, "{pace:?} {round}");
        }
        assert_eq!(server.connections(), connections, "{pace:?}");
    }
    let server = Server::start(Pace::Keep, |_, _| {
        b"HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 0\r\n\r\n".to_vec()
    })
    .await;
    let mut line = line(server.addr, "pod:1");
    line.get("/x", None, CAPS).await.unwrap();
    assert!(line.kept.is_none());
}

#[tokio::test]
async fn the_request_names_the_pod_and_carries_the_key() {
    let server = Server::start(Pace::Keep, |head, _| {
        let body = head.to_owned();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    })
    .await;
    let mut line = line(server.addr, "pod.local:8000");
    let answer = line.get("/v1/models", Some("sk-1"), CAPS).await.unwrap();
    let head = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(head.starts_with("GET /v1/models HTTP/1.1\r\nhost: pod.local:8000\r\n"), "{head}");
    assert!(head.contains("\r\nauthorization: Bearer sk-1\r\n"), "{head}");
}
