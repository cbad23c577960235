//! A Kubernetes API server of its own: list in pages, chunked watch with bookmarks, 410, tokens that change, over TLS.
//!
//! It keeps what the real one does: a version for each change, events from any version that it still has, `410 Gone` for older ones
//! (as an error event in a watch that was begun, and as an answer to one that begins), and 401 for a token that it does not know.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

#[derive(Default)]
struct State {
    version: u64,
    /// Objects by collection (`/api/v1/namespaces/ai/pods`) and name.
    objects: BTreeMap<(String, String), Value>,
    /// What happened: version, collection, kind of event, object.
    events: Vec<(u64, String, &'static str, Value)>,
    /// Versions before this are forgotten.
    oldest: u64,
    token: String,
    asked: Vec<String>,
}

/// See the file.
pub(crate) struct Cluster {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    tls: TlsAcceptor,
    authority_pem: String,
    dir: PathBuf,
    serving: Mutex<Option<JoinHandle<()>>>,
}

impl Cluster {
    /// A server on a port of its own, with its kubeconfig in `dir`.
    pub(crate) async fn start(dir: &Path) -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cluster = Self {
            addr: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(State { version: 100, token: "first".into(), ..State::default() })),
            changed: watch::Sender::new(100),
            tls: TlsAcceptor::from(Arc::new(config)),
            authority_pem,
            dir: dir.to_owned(),
            serving: Mutex::new(None),
        };
        cluster.write_kubeconfig();
        cluster.serve(listener);
        cluster
    }

    fn write_kubeconfig(&self) {
        std::fs::write(self.dir.join("ca.pem"), &self.authority_pem).unwrap();
        std::fs::write(self.dir.join("token"), "first").unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: 'https://{}', certificate-authority: '{dir}/ca.pem'}}}}]\n\
             users: [{{name: gate, user: {{tokenFile: '{dir}/token'}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: gate, namespace: ai}}}}]\n",
            self.addr,
            dir = self.dir.display(),
        );
        std::fs::write(self.kubeconfig(), text).unwrap();
    }

    /// The file by which clients find it.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig.yaml")
    }

    #[allow(clippy::disallowed_methods, reason = "the test ends the task itself")]
    fn serve(&self, listener: TcpListener) {
        let (state, tls, changed) = (Arc::clone(&self.state), self.tls.clone(), self.changed.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, tls.clone(), Arc::clone(&state), changed.subscribe()));
            }
        });
        *self.serving.lock().unwrap() = Some(task);
    }

    /// Goes away: connections are cut, new ones refused.
    pub(crate) async fn stop(&self) {
        let task = self.serving.lock().unwrap().take().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }

    /// Comes back at the same address.
    pub(crate) async fn restart(&self) {
        self.serve(TcpListener::bind(self.addr).await.unwrap());
    }

    /// Adds or replaces an object, or removes it.
    pub(crate) fn put(&self, collection: &str, name: &str, object: Option<Value>) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let key = (collection.to_owned(), name.to_owned());
        let (kind, object) = if let Some(mut object) = object {
            object["metadata"]["name"] = json!(name);
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            let before = state.objects.insert(key, object.clone());
            (if before.is_some() { "MODIFIED" } else { "ADDED" }, object)
        } else {
            let mut object = state.objects.remove(&key).unwrap();
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            ("DELETED", object)
        };
        state.events.push((version, collection.to_owned(), kind, object));
        drop(state);
        self.changed.send_replace(version);
    }

    /// Forgets all events: who watches from an older version is told to list again.
    pub(crate) fn compact(&self) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        state.oldest = state.version;
        state.events.clear();
        let version = state.version;
        drop(state);
        self.changed.send_replace(version);
    }

    /// From now on only this token is known; the file has it.
    pub(crate) fn rotate(&self, token: &str) {
        token.clone_into(&mut self.state.lock().unwrap().token);
        std::fs::write(self.dir.join("token"), token).unwrap();
    }

    /// Requests so far: method and target.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }
}

type Tls = tokio_rustls::server::TlsStream<TcpStream>;

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    state: Arc<Mutex<State>>,
    mut changed: watch::Receiver<u64>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(tls.accept(stream).await?);
    loop {
        let (mut target, mut token) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if target.is_empty() {
                line.trim_end_matches(" HTTP/1.1").clone_into(&mut target);
            } else if let Some(given) = line.to_ascii_lowercase().strip_prefix("authorization: bearer ") {
                given.clone_into(&mut token);
            }
        }
        let is_known = {
            let mut state = state.lock().unwrap();
            state.asked.push(target.clone());
            state.token == token
        };
        let url = target.strip_prefix("GET ").unwrap_or_default();
        let (collection, query) = url.split_once('?').unwrap_or((url, ""));
        let query: BTreeMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if !is_known {
            plain(stream.get_mut(), 401, &status(401, "Unauthorized")).await?;
        } else if query.contains_key("watch") {
            watched(stream.get_mut(), collection, &query, &state, &mut changed).await?;
        } else {
            let answer = listed(collection, &query, &state.lock().unwrap());
            plain(stream.get_mut(), 200, &answer).await?;
        }
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code })
}

async fn plain(stream: &mut Tls, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await?;
    stream.flush().await
}

/// One page; `continue` is the name after which it goes on.
fn listed(collection: &str, query: &BTreeMap<&str, &str>, state: &State) -> Value {
    let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let after = query.get("continue").copied().unwrap_or_default();
    let all = state
        .objects
        .iter()
        .filter(|((of, name), object)| of == collection && name.as_str() > after && is_selected(object, query));
    let mut items: Vec<Value> = all.take(limit.saturating_add(1)).map(|(_, object)| object.clone()).collect();
    let mut metadata = json!({ "resourceVersion": state.version.to_string() });
    if items.len() > limit {
        items.truncate(limit);
        metadata["continue"] = items.last().unwrap()["metadata"]["name"].clone();
    }
    json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items })
}

/// Equality selectors of labels, and of the name, are all that is asked for here.
fn is_selected(object: &Value, query: &BTreeMap<&str, &str>) -> bool {
    let decoded = |text: &str| text.replace("%3D", "=").replace("%2F", "/").replace("%2C", ",");
    let labels = query.get("labelSelector").map(|text| decoded(text)).unwrap_or_default();
    let fields = query.get("fieldSelector").map(|text| decoded(text)).unwrap_or_default();
    let has = |term: &str| term.split_once('=').is_none_or(|(key, value)| object["metadata"]["labels"][key] == value);
    let is_named = fields.strip_prefix("metadata.name=").is_none_or(|name| object["metadata"]["name"] == name);
    is_named && labels.split(',').all(has)
}

#[allow(clippy::disallowed_methods, reason = "a server's own timers: its timeout, and bookmarks where nothing happens")]
/// Events as they come, a bookmark when there are none for a while, until the client's timeout.
async fn watched(
    stream: &mut Tls,
    collection: &str,
    query: &BTreeMap<&str, &str>,
    state: &Mutex<State>,
    changed: &mut watch::Receiver<u64>,
) -> std::io::Result<()> {
    let mut from: u64 = query["resourceVersion"].parse().unwrap();
    let head = "HTTP/1.1 200 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let ends = tokio::time::sleep(Duration::from_secs(query["timeoutSeconds"].parse().unwrap()));
    tokio::pin!(ends);
    loop {
        changed.borrow_and_update();
        let (lines, is_gone) = {
            let state = state.lock().unwrap();
            let is_gone = from < state.oldest;
            let new = state.events.iter().filter(|(version, of, ..)| *version > from && of == collection);
            let new = new.filter(|(.., object)| is_selected(object, query));
            let lines: Vec<Value> = new.map(|(_, _, kind, object)| json!({ "type": kind, "object": object })).collect();
            from = state.version.max(from);
            (lines, is_gone)
        };
        if is_gone {
            chunk(stream, &json!({ "type": "ERROR", "object": status(410, "Expired") })).await?;
            break;
        }
        for line in &lines {
            chunk(stream, line).await?;
        }
        stream.flush().await?;
        tokio::select! {
            () = &mut ends => break,
            _ = changed.changed() => {}
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                let metadata = json!({ "resourceVersion": from.to_string(), "creationTimestamp": null });
                let object = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": metadata });
                chunk(stream, &json!({ "type": "BOOKMARK", "object": object })).await?;
                stream.flush().await?;
            }
        }
    }
    stream.write_all(b"0\r\n\r\n").await?;
    stream.flush().await
}

/// An event in two chunks: nobody promises that a chunk is a line.
async fn chunk(stream: &mut Tls, line: &Value) -> std::io::Result<()> {
    let text = format!("{line}\n");
    let (first, second) = text.split_at(text.len() / 2);
    for part in [first, second] {
        stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await?;
    }
    Ok(())
}
