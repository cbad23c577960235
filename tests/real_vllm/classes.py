#!/usr/bin/env python3
"""Queues in front of two real vLLM pods that run four sequences each: 64 clients in three classes.

Start the servers, then this; it starts the gate itself:
  serve.sh generate 8101 --max-num-seqs 4 & serve.sh generate 8102 --max-num-seqs 4 & wait
Usage: classes.py [--tidegate BINARY] [--requests N] [--no-queue]

Says how many waited in the engines, how long each class waited for its first token, and whether any request was lost; that a tenant over
its limit is told when to come back, and that two tenants do not find each other's prompts in the pods' caches.
Exit code 0: engines held at most two waiting, the first class was first, nothing was lost, limits and caches as said. 1: not so.
"""
import argparse
import concurrent.futures
import hashlib
import http.client
import json
import pathlib
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

PODS = ["http://127.0.0.1:8101", "http://127.0.0.1:8102"]
CLASSES = {"desk": "interactive", "work": "standard", "night": "batch"}
WORDS = "alpha beta gamma delta river stone cloud window garden engine paper silver music number letter market".split()
HERE = pathlib.Path(__file__).resolve().parent


def ask(port, key, prompt, tokens):
    """Streams a completion; its status, time to first token, text, cached tokens and Retry-After."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "temperature": 0,
            "stream_options": {"include_usage": True}}
    began = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json", "authorization": f"Bearer {key}"})
    reply = connection.getresponse()
    if reply.status != 200:
        reply.read()
        return {"status": reply.status, "retry": reply.getheader("retry-after"), "reason": reply.getheader("x-tidegate-reason")}
    first, text, usage, is_done = None, "", {}, False
    for line in reply:
        if not line.startswith(b"data: "):
            continue
        first = first or time.monotonic() - began
        if line.strip() == b"data: [DONE]":
            is_done = True
            break
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        text += "".join(choice["text"] for choice in event.get("choices", []))
    connection.close()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {"status": 200 if is_done else 599, "ttft": first, "cached": cached, "made": usage.get("completion_tokens")}


def gauge(url, name):
    with urllib.request.urlopen(url + "/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", default="target/release/tidegate")
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-queue", action="store_true", help="the same without a queue, to compare")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = pathlib.Path(tempfile.mkdtemp())
    keys = {tenant: secrets.token_hex(24) for tenant in [*CLASSES, "small"]}
    lines = [f"{hashlib.sha256(key.encode()).hexdigest()} {tenant}\n" for tenant, key in keys.items()]
    (folder / "keys").write_text("".join(lines))
    settings = (HERE / "classes.yaml").read_text()
    if args.no_queue:
        settings = settings.replace("flow:\n", "flow:\n  queue: {enabled: false}\n")
    (folder / "gate.yaml").write_text(settings)
    command = [str(pathlib.Path(args.tidegate).resolve()), "serve", "--config", str(folder / "gate.yaml"), "--listen", "127.0.0.1:8090", "--admin", "127.0.0.1:9991",
               "--access-log", str(folder / "access.log")] + [part for pod in PODS for part in ("--pod", pod)]
    gate = subprocess.Popen(command, stderr=(folder / "gate.log").open("w"), cwd=folder)
    try:
        return run(args, rng, keys)
    finally:
        gate.terminate()
        gate.wait()


def run(args, rng, keys):
    for _ in range(200):
        try:
            urllib.request.urlopen("http://127.0.0.1:9991/readyz", timeout=2).read()
            break
        except OSError:
            time.sleep(0.1)
    else:
        sys.exit("the gate does not become ready")
    waiting, over = [], threading.Event()

    def watch():
        while not over.wait(0.2):
            waiting.append(max(gauge(pod, "vllm:num_requests_waiting") for pod in PODS))

    watcher = threading.Thread(target=watch)
    watcher.start()
    asked = []
    for number in range(args.requests):
        tenant = list(CLASSES)[number % 3]
        prompt = f"{number} " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(10, 150)))
        asked.append((tenant, prompt, rng.randint(8, 40)))
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        got = list(pool.map(lambda one: (one[0], one[2], ask(8090, keys[one[0]], one[1], one[2])), asked))
    took = time.monotonic() - began
    over.set()
    watcher.join()
    lost = [one for one in got if one[2]["status"] != 200 or one[2]["made"] != one[1]]
    waits = {name: sorted(one[2]["ttft"] for one in got if one[0] == name and one[2]["status"] == 200) for name in CLASSES}
    means = {name: statistics.mean(times) for name, times in waits.items()}
    print(f"{len(got)} requests of 64 clients in {took:.1f} s; lost or short: {len(lost)}")
    print(f"waiting in an engine: most {max(waiting):.0f}, mean {statistics.mean(waiting):.2f} of {len(waiting)} looks: "
          + " ".join(f"{count:.0f}" for count in waiting))
    for name, times in waits.items():
        print(f"{CLASSES[name]:12} first token: mean {means[name]:.2f} s, p90 {times[int(len(times) * 0.9)]:.2f} s")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        limited = list(pool.map(lambda number: ask(8090, keys["small"], f"limit {number} " + "x " * 40, 60), range(4)))
    refused = [one for one in limited if one["status"] == 429]
    print(f"one at a time: {sum(one['status'] == 200 for one in limited)} served, {len(refused)} refused "
          f"({refused and refused[0]['reason']}, retry after {refused and refused[0]['retry']} s)")
    shared = "the same beginning of a prompt " * 60
    first = [ask(8090, keys["work"], shared, 4)["cached"] for _ in range(3)]
    other = ask(8090, keys["night"], shared, 4)["cached"]
    print(f"cached tokens of one prompt: {first} for its tenant, then {other} for another")
    is_good = not lost and max(waiting) <= 2 and means["desk"] < means["work"] < means["night"]
    is_good = is_good and refused and refused[0]["retry"] and first[-1] > 0 and other == 0
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
