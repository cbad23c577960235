//! A collector of traces: takes OTLP over HTTP, decodes the protobuf, keeps every span.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// What came in one call.
pub struct Call {
    pub head: String,
    pub body: Vec<u8>,
    pub spans: Vec<Span>,
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
}

/// A running collector.
pub struct Collector {
    pub addr: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Collector {
    /// Answers with these statuses first, then with 200.
    #[allow(clippy::disallowed_methods, reason = "stands for another program; it ends with the runtime of the test")]
    pub async fn start(statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, calls) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&calls);
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                tokio::spawn(serve(io, Arc::clone(&kept), statuses));
            }
        });
        Self { addr, calls }
    }

    pub fn calls(&self) -> usize {
        self.calls.lock().len()
    }

    /// Takes what came.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock())
    }
}

async fn serve(mut io: TcpStream, calls: Arc<Mutex<Vec<Call>>>, statuses: &'static [u16]) {
    while let Some((head, body)) = super::wire::read_request(&mut io).await {
        let request = ExportTraceServiceRequest::decode(&*body).unwrap();
        let resource = request.resource_spans.first().and_then(|of| of.resource.clone()).unwrap_or_default();
        let scopes = request.resource_spans.into_iter().flat_map(|of| of.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans).collect();
        let status = {
            let mut calls = calls.lock();
            calls.push(Call { head, body, spans, resource: words(&resource.attributes) });
            statuses.get(calls.len() - 1).copied().unwrap_or(200)
        };
        let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: 0\r\n\r\n");
        if io.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Attributes as text.
pub fn words(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let value = |one: &KeyValue| match one.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(count)) => count.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|one| (one.key.clone(), value(one))).collect()
}
