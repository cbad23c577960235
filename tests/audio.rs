//! Recordings: forms go to a pod of the model they name, byte for byte but for what must not reach it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]
mod kit;

use kit::{Answer, Gate, events, raw};
use tidegate::sim::http::{Fault, Fleet, Rule, SimConfig, SimPod};

const PATHS: [&str; 2] = ["/v1/audio/transcriptions", "/v1/audio/translations"];

/// A form with a recording of so many bytes, as `curl -F` writes it.
fn form(bytes: usize, members: &[(&str, &str)]) -> Vec<u8> {
    let mut form = Vec::new();
    for (name, value) in members {
        let part = format!("--------xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        form.extend_from_slice(part.as_bytes());
    }
    let head = "--------xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\n";
    form.extend_from_slice(head.as_bytes());
    form.extend((0..bytes).map(|at| (at % 251) as u8));
    form.extend_from_slice(b"\r\n--------xyz--\r\n");
    form
}

async fn send(gate: &Gate, path: &str, content_type: &str, body: &[u8]) -> Answer {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: gate\r\nconnection: close\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    raw(gate.addr(), &[head.as_bytes(), body].concat()).await
}

async fn ask(gate: &Gate, path: &str, body: &[u8]) -> Answer {
    send(gate, path, "multipart/form-data; boundary=------xyz", body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_goes_to_its_model_whole_and_streamed() {
    let config = |model: &str| SimConfig { models: vec![model.to_owned()], ..SimConfig::default() };
    let pods = [SimPod::start(config("chat")).await.unwrap(), SimPod::start(config("whisper")).await.unwrap()];
    let yaml = "models: {whisper: {aliases: [listener]}}\n";
    let gate = Gate::start(&[pods[0].addr(), pods[1].addr()], yaml).await;
    gate.eventually("models known", || gate.app().gate().table.fleet().unknown.is_empty()).await;
    for path in PATHS {
        for model in ["whisper", "listener"] {
            let body = form(200_000, &[("model", model), ("language", "en")]);
            let answer = ask(&gate, path, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["text"], "200000 bytes were heard by whisper");
            let arrival = pods[1].served().pop().unwrap();
            let as_it_came = arrival.body.as_deref() == Some(body.as_slice());
            assert_eq!(as_it_came, model == "whisper");
        }
        let answer = ask(&gate, path, &form(10, &[("model", "whisper"), ("stream", "true")])).await;
        let told = events(&answer.body);
        assert!(answer.is_whole && told.len() > 3 && told.last().unwrap().contains("[DONE]"), "{}", answer.text());
    }
    assert!(pods[0].served().is_empty());
    let unknown = ask(&gate, PATHS[0], &form(10, &[("model", "nobody's")])).await;
    assert_eq!((unknown.status, unknown.json()["error"]["param"].as_str()), (404, Some("model")));
    let lines = gate.finish().await;
    assert_eq!((lines[0]["route"].as_str(), lines[0]["model"].as_str()), (Some("transcriptions"), Some("whisper")));
    assert!(lines[2]["stream"] == true && lines[2]["cause"] == "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_tried_elsewhere_and_danger_is_taken_out() {
    let fleet = Fleet::start(2, SimConfig::default()).await.unwrap();
    let gate = Gate::start(&fleet.addrs(), "").await;
    gate.eventually("models known", || gate.app().gate().table.fleet().unknown.is_empty()).await;
    fleet.pods[0].script(Rule::new(Fault::Refuse));
    for _ in 0..4 {
        let body = form(1_000, &[("kv_transfer_params", "{}"), ("vllm_xargs", r#"{"kv_transfer_params": "x"}"#)]);
        let answer = ask(&gate, PATHS[0], &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let seen: Vec<_> = fleet.pods.iter().flat_map(SimPod::served).collect();
    assert!(!seen.is_empty());
    assert!(
        seen.iter()
            .all(|one| !String::from_utf8_lossy(one.body.as_deref().unwrap_or_default()).contains("transfer_params"))
    );
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_form_is_told_so() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "limits: {body_bytes_max: 100000}\n").await;
    let body = form(10, &[]);
    for (content_type, body, status, mark) in [
        ("application/json", &b"{}"[..], 400, "multipart/form-data"),
        ("multipart/form-data", &body, 400, "multipart/form-data"),
        ("multipart/form-data; boundary=other", &body, 400, "boundary at its start"),
        ("multipart/form-data; boundary=------xyz", &body[..body.len() - 10], 400, "boundary at its end"),
        (
            "multipart/form-data; boundary=------xyz",
            &form(10, &[("model", "a"), ("model", "sim")]),
            400,
            "more than once",
        ),
        ("multipart/form-data; boundary=------xyz", &form(200_000, &[]), 413, "larger"),
    ] {
        let answer = send(&gate, PATHS[0], content_type, body).await;
        assert_eq!(answer.status, status, "{content_type}: {}", answer.text());
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(mark), "{}", answer.text());
    }
    assert!(fleet.pods[0].served().is_empty());
    assert_eq!(kit::get(gate.addr(), PATHS[0]).await.status, 405);
    gate.finish().await;
}
