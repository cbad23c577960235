#!/usr/bin/env python3
"""Prefill and decode on two real vLLM pods, through a running gate, against the text of one pod that does it all.

Start the servers with pd.sh, then the gate:
  tidegate serve --config tests/real_vllm/pd.yaml --listen 127.0.0.1:8080 --admin 127.0.0.1:9901 \
    --prefill http://127.0.0.1:8101 --decode http://127.0.0.1:8201 --decode http://127.0.0.1:8202
Usage: pd.py [--requests N] [--seed N] [--gate URL] [--admin URL] [--whole URL] [--fault NAME]

Without --fault: N mixed requests (chat and completions, streamed or not, 20 to 3,000 tokens, 8 at a time, greedy) must have the
text of the whole server, byte for byte; decoders must compute no prompt; no lease may run out.
With --fault, something happens in the middle, and still every request must end with its text. Start the prefill server with
LEASE=12 BLOCKS=320, and the gate with lease_s 12:
  kill-prefill     the prefill server is killed
  kill-decode      decoder 1 is killed
  stop-before      decoder 1 is stopped (SIGSTOP) for 20 s while prefills run
  stop-after       decoder 1 is stopped for 20 s right after a request was sent to it; its lease runs out meanwhile and other
                   prompts overwrite the blocks. This one fails with `sentinel: false`
  bad-client       a client sends kv_transfer_params of its own

Exit code 0: all as said. 1: not so. 2: no server.
"""
import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
import urllib.parse
import urllib.request

WORDS = "alpha beta gamma delta river stone cloud window garden engine paper silver music number letter market".split()
HERE = pathlib.Path(__file__).resolve().parent


def call(base, path, body, timeout=180):
    """Sends a request; returns its status and its text, or the body of an error."""
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
    try:
        connection.request("POST", path, json.dumps(body).encode(), {"content-type": "application/json"})
        reply = connection.getresponse()
        data = reply.read()
    finally:
        connection.close()
    if reply.status != 200:
        return reply.status, data[:300].decode(errors="replace")
    return 200, text_of(data, body.get("stream"))


def text_of(data, is_stream):
    if not is_stream:
        return text_of_choice(json.loads(data)["choices"][0])
    text, is_done = "", False
    for line in data.decode().splitlines():
        if line == "data: [DONE]":
            is_done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                return "ERROR " + line
            text += "".join(text_of_choice(choice) for choice in event["choices"])
    return text if is_done else "BROKEN " + text


def text_of_choice(choice):
    if "text" in choice:
        return choice["text"]
    message = choice.get("message") or choice.get("delta") or {}
    return (message.get("reasoning") or "") + (message.get("content") or "")


def requests(count, rng, longest):
    for number in range(count):
        length = int(20 * (longest / 20) ** rng.random())
        body = {"model": "tiny", "temperature": 0, "max_tokens": rng.randint(2, 40), "stream": rng.random() < 0.5}
        if rng.random() < 0.5:
            # Words of this vocabulary have about two tokens.
            words = " ".join(rng.choice(WORDS) for _ in range(max(5, length // 2)))
            yield "/v1/chat/completions", body | {"messages": [{"role": "user", "content": f"{number} {words}"}]}
        else:
            yield "/v1/completions", body | {"prompt": [rng.randrange(10, 8000) for _ in range(length)]}


def metric(url, name, labels=""):
    """Sum of the samples of a metric whose labels contain `labels`."""
    with urllib.request.urlopen(url + "/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    picked = [line for line in lines if line.startswith((name + "{", name + " ")) and labels in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in picked)


def computed(url):
    return metric(url, "vllm:prompt_tokens_by_source_total", 'source="local_compute"')


def run_all(base, asked, at_half=None):
    """Sends all, 8 at a time; calls `at_half` once in the middle. Returns the answers in order."""
    started, lock = 0, threading.Lock()

    def one(request):
        nonlocal started
        with lock:
            started += 1
            now = started
        if at_half and now == len(asked) // 2:
            at_half()
        return call(base, *request)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, asked))


def server(name):
    """Process ids of a server: the group that pd.sh started."""
    port = {"prefill": 8101, "decode1": 8201, "decode2": 8202}[name]
    home = pathlib.Path(os.environ.get("TIDEGATE_VLLM") or os.path.join(os.environ.get("TMPDIR", "/tmp"), "tidegate-vllm"))
    return int((home / "run" / f"{port}.pid").read_text())


def signal_all(pid, what):
    os.killpg(os.getpgid(pid), what)


def stop_for(name, seconds):
    pid = server(name)
    signal_all(pid, signal.SIGSTOP)
    print(f"{name} stopped for {seconds} s", flush=True)
    threading.Timer(seconds, lambda: signal_all(pid, signal.SIGCONT)).start()


def churn(url, after, until):
    """Prompts of its own for the prefill server, from `after` to `until` seconds from now: they take all its blocks in turn."""
    rng, began = random.Random(7), time.time()

    def run():
        time.sleep(after)
        while time.time() - began < until:
            body = {"model": "tiny", "max_tokens": 1, "prompt": [rng.randrange(10, 8000) for _ in range(1500)]}
            call(url, "/v1/completions", body)

    threading.Thread(target=run).start()


def wait_for_dispatch(admin, pod):
    """Comes back when a decode leg has been sent."""
    before = metric(admin, "tidegate_disagg_leases_total", 'end="used"')
    until = time.time() + 30
    while metric(admin, "tidegate_disagg_leases_total", 'end="used"') == before and time.time() < until:
        time.sleep(0.002)


def fault(name, args):
    if name == "kill-prefill":
        signal_all(server("prefill"), signal.SIGKILL)
    elif name == "kill-decode":
        signal_all(server("decode1"), signal.SIGKILL)
    elif name == "stop-before":
        stop_for("decode1", 20)
    elif name == "stop-after":
        wait_for_dispatch(args.admin, "decode1")
        stop_for("decode1", 20)
        churn(args.prefill, 13, 19)
    elif name == "bad-client":
        body = {"model": "tiny", "prompt": "x", "max_tokens": 2, "kv_transfer_params": {"do_remote_prefill": True}}
        print("client's own kv_transfer_params:", call(args.gate, "/v1/completions", body)[0])
    print(f"fault: {name}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gate", default="http://127.0.0.1:8080")
    parser.add_argument("--admin", default="http://127.0.0.1:9901")
    parser.add_argument("--whole", default="http://127.0.0.1:8001")
    parser.add_argument("--prefill", default="http://127.0.0.1:8101")
    parser.add_argument("--decode", default="http://127.0.0.1:8201,http://127.0.0.1:8202")
    parser.add_argument("--fault", choices=["kill-prefill", "kill-decode", "stop-before", "stop-after", "bad-client"])
    args = parser.parse_args()
    decoders = args.decode.split(",")
    rng = random.Random(args.seed)
    print("seed", args.seed, flush=True)
    asked = list(requests(args.requests, rng, 600 if args.fault else 3000))
    try:
        wanted = run_all(args.whole, asked)
    except OSError as error:
        print("no server:", error)
        return 2
    again = run_all(args.whole, asked)
    unsteady = sum(one != other for one, other in zip(wanted, again))
    print(f"whole server against itself: {unsteady} of {len(asked)} differ", flush=True)
    # The first requests of a server compile kernels, for longer than a short lease lasts.
    run_all(args.gate, list(requests(24, random.Random(args.seed + 1000), 600)))
    before = {name: metric(args.admin, f"tidegate_disagg_{name}_total") for name in ("remote", "local", "replans")}
    own_before = [computed(pod) for pod in decoders]
    lapsed_before = metric(args.prefill, "vllm:nixl_num_kv_expired_reqs_total")
    began = time.time()
    got = run_all(args.gate, asked, (lambda: fault(args.fault, args)) if args.fault else None)
    took = time.time() - began
    # A stream that had begun when its pod died cannot be saved; it must say so.
    begun = [number for number, (_, text) in enumerate(got) if args.fault == "kill-decode" and text.startswith("ERROR")]
    wrong = [
        number
        for number, (one, other) in enumerate(zip(wanted, got))
        if one != other and wanted[number] == again[number] and number not in begun
    ]
    if begun:
        print(f"{len(begun)} streams had begun and ended with an error event")
    for number in wrong[:5]:
        print("DIFFERS", number, asked[number][0], "wanted", wanted[number], "got", got[number])
    counts = {
        "remote": metric(args.admin, "tidegate_disagg_remote_total") - before["remote"],
        "local": metric(args.admin, "tidegate_disagg_local_total") - before["local"],
        "agrees": metric(args.admin, "tidegate_disagg_sentinel_total", '"agrees"'),
        "open": metric(args.admin, "tidegate_disagg_sentinel_total", '"open"'),
        "differs": metric(args.admin, "tidegate_disagg_sentinel_total", '"differs"'),
        "expired": metric(args.admin, "tidegate_disagg_sentinel_total", '"expired"'),
        "replans": metric(args.admin, "tidegate_disagg_replans_total") - before["replans"],
    }
    print(f"{len(asked)} requests in {took:.1f} s: {len(wrong)} differ;", ", ".join(f"{k} {v:.0f}" for k, v in counts.items()))
    if args.fault:
        is_good = not wrong
        for pod in decoders:
            is_dead = args.fault == "kill-decode" and pod == decoders[0]
            if not is_dead:
                status, text = call(pod, "/v1/completions", {"model": "tiny", "prompt": "alive", "max_tokens": 2})
                print(pod, "answers", status)
                is_good &= status == 200
        return 0 if is_good else 1
    own = [computed(pod) - before for pod, before in zip(decoders, own_before)]
    lapsed = metric(args.prefill, "vllm:nixl_num_kv_expired_reqs_total") - lapsed_before
    print(f"prompt tokens computed by decoders: {own}; leases that ran out: {lapsed:.0f}")
    return 0 if not wrong and not any(own) and not lapsed and counts["remote"] >= len(asked) else 1


if __name__ == "__main__":
    sys.exit(main())
