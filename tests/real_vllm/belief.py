#!/usr/bin/env python3
"""What the gate believes to be cached, against what vLLM says was.

Sends conversations through the gate, several at a time: chat with and without tools, turns whose answer comes back without
its first half (as templates strip reasoning), cache salts, completions that grow. Then compares, per request, the gate's
`hit_estimate_tokens` in its access log with the `cached_tokens` of vLLM's usage, and the sum of these with the engines' own
counters. Prints one line per kind and a total; ends with 0 if the total is within the bound, 1 if not.

    belief.py --gate http://127.0.0.1:8080 --pods http://127.0.0.1:8001,http://127.0.0.1:8002 --access-log gate.log

The gate must be fresh and alone in front of these pods, and run with `--access-log gate.log`. The pods' caches are reset first
(a route of vLLM's development mode, which serve.sh switches on).
"""
import argparse
import collections
import concurrent.futures
import json
import random
import sys
import urllib.error
import urllib.request

WORDS = "tide gate pod cache block queue token prompt answer batch score route lease order night water stone harbour".split()
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks up the tide table of a harbour.",
          "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}, "day": {"type": "string"}}}}}]


def call(url, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    fields = {"content-type": "application/json", **(headers or {})}
    with urllib.request.urlopen(urllib.request.Request(url, data, fields), timeout=120) as answer:
        return answer.read().decode()


def counters(pods):
    sums = collections.Counter()
    for pod in pods:
        for line in call(pod + "/metrics").splitlines():
            name = line.split("{")[0].split(" ")[0]
            if name in ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"):
                sums[name.split("_")[2]] += float(line.rsplit(" ", 1)[1])
    return sums


def text(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def session(args, kind, number):
    """One conversation, turn after turn; gives the ids of its requests."""
    rng = random.Random(f"{args.seed}-{kind}-{number}")
    ids, messages = [], [{"role": "system", "content": text(random.Random(f"{args.seed}-{kind}"), 80)}]
    prompt = text(rng, 60)
    for turn in range(args.turns):
        name = f"{kind}-{number}-{turn}"
        body = {"model": args.model, "max_tokens": 24, "temperature": 0}
        if kind == "salt":
            body["cache_salt"] = f"tenant-{number % 3}"
        if kind == "completions":
            path, body["prompt"] = "/v1/completions", prompt
        else:
            messages.append({"role": "user", "content": text(rng, 25)})
            path, body["messages"] = "/v1/chat/completions", messages
            if kind == "tools":
                body["tools"] = TOOLS
        try:
            answer = json.loads(call(args.gate + path, body, {"x-request-id": name}))
        except urllib.error.HTTPError as error:
            # A conversation ends where the model's context does.
            if error.code == 400:
                break
            raise
        ids.append((name, kind))
        if kind == "completions":
            prompt += answer["choices"][0]["text"] + " " + text(rng, 20)
        else:
            reply = answer["choices"][0]["message"]["content"] or ""
            messages = messages + [{"role": "assistant", "content": reply[len(reply) // 2:] if kind == "stripped" else reply}]
    return ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", required=True)
    parser.add_argument("--pods", required=True, type=lambda text: text.split(","))
    parser.add_argument("--access-log", required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sessions", type=int, default=10, help="of each kind")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=50, help="requests that are not judged")
    parser.add_argument("--bound", type=float, default=0.05, help="share of the prompt tokens")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        for pod in args.pods:
            call(pod + "/reset_prefix_cache", {})
    except OSError as error:
        print(f"SKIPPED: no server at {args.pods} ({error})")
        return 0
    before = counters(args.pods)
    kinds = ["chat", "tools", "stripped", "salt", "completions"]
    jobs = [(kind, number) for number in range(args.sessions) for kind in kinds]
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        ids = dict(pair for pairs in pool.map(lambda job: session(args, *job), jobs) for pair in pairs)
    after = counters(args.pods)
    lines = {}
    for _ in range(50):
        with open(args.access_log, encoding="utf-8") as log:
            lines = {line["request_id"]: line for line in map(json.loads, log) if line.get("request_id") in ids}
        if len(lines) == len(ids):
            break
    judged = [line for line in lines.values() if line.get("cached_tokens") is not None][args.warm_up:]
    sums = collections.defaultdict(collections.Counter)
    for line in judged:
        for kind in (ids[line["request_id"]], "all"):
            sums[kind].update(requests=1, prompt=line["prompt_tokens"], cached=line["cached_tokens"],
                              error=abs(line["hit_estimate_tokens"] - line["cached_tokens"]))
    for kind in [*kinds, "all"]:
        one = sums[kind]
        share = lambda what: one[what] / max(one["prompt"], 1)
        print(f"{kind:12} {one['requests']:4} requests  {one['prompt']:7} prompt tokens  cached {share('cached'):.3f}  belief error {share('error'):.4f}")
    told = sum(line["cached_tokens"] or 0 for line in lines.values())
    counted = after["hits"] - before["hits"]
    print(f"cached tokens: {told} by usage, {counted:.0f} by the engines' counters; seed {args.seed}")
    is_good = judged and sums["all"]["error"] <= args.bound * sums["all"]["prompt"]
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
