#!/usr/bin/env python3
"""Checks a running gate against real vLLM servers: each request is sent to a pod directly and through the gate.

Usage: GATE_URL=http://127.0.0.1:8080 DIRECT_URL=http://127.0.0.1:8001[,...] [EMBED_URL=http://127.0.0.1:8003] run.py

Prints one line per case as it ends, what differs under it, and a summary.

  --table FILE   writes the outcomes as a Markdown table
  --only TEXT    only cases and client scenarios whose name contains TEXT
  --self-test    GATE_URL is a second pod: everything must be identical; shows that the comparison forgives run-to-run noise
                 (with GATE_EMBED_URL a second pooling server). Routes that could harm a pod are not sent.

Exit code 0: every case is in the group that cases.json names (or there is no server: `SKIPPED`). 1: not so. 2: wrong use.
"""
import argparse
import http.client
import json
import os
import pathlib
import sys
import urllib.parse

import clients
from compare import Answer, BadStream, differences, summary

HERE = pathlib.Path(__file__).resolve().parent
# The only reasons for which the gate may answer by itself.
REASONS = {"JSON fault", "unknown model", "unknown path", "gate-owned", "refused"}
TIMEOUT_S = 180  # the first request with log probabilities compiles a kernel


def send(base, case):
    """Sends a case and reads the answer to its end."""
    method, path = case["send"].split(" ")
    headers = {"accept": "*/*"} | case.get("headers", {})
    body = None
    if method == "POST":
        headers.setdefault("content-type", "application/json")
        body = body_of(case)
    url = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT_S)
    try:
        connection.request(method, url.path.rstrip("/") + path, body, headers)
        reply = connection.getresponse()
        kind = (reply.getheader("content-type") or "").split(";")[0].strip()
        return Answer(reply.status, kind, reply.read(), {name.lower(): value for name, value in reply.getheaders()})
    finally:
        connection.close()


def body_of(case):
    if "body" in case:
        return case["body"].encode()
    return (HERE / "requests" / f"{case.get('body_of', case['name'])}.request.json").read_bytes()


def has_shape(shape, answer):
    """Does an answer of the gate have the shape that the case names?"""
    if shape == "any":
        return True
    try:
        body = json.loads(answer.body)
    except ValueError:
        return False
    if shape == "openai":
        error = body.get("error")
        return isinstance(error, dict) and {"message", "type", "param", "code"} <= error.keys() and error["code"] == answer.status
    if shape == "anthropic":
        return body.get("type") == "error" and {"message", "type"} <= body.get("error", {}).keys()
    if shape == "detail":
        return body.keys() == {"detail"}
    if shape == "models":
        names = [entry["id"] for entry in body["data"]]
        return body["object"] == "list" and "tiny" in names and len(names) == len(set(names))
    return shape == "json"


def judged(case, direct, gate, self_test):
    """(in its group?, outcome, notes)"""
    try:
        notes = differences(summary(direct, case.get("sampled", False)), summary(gate, case.get("sampled", False))) if direct else []
    except BadStream as bad:
        notes = [f"broken stream: {bad}"]
    is_identical = direct is not None and not notes
    if case["group"] == "identical" or self_test:
        is_identical = is_identical or (self_test and case["group"] == "gate" and direct.status == gate.status)
        return is_identical, "identical" if is_identical else "DIFFERENT", notes
    fits = gate.status in case["status"] and has_shape(case["shape"], gate)
    outcome = f"gate answers: {gate.status}, {case['shape']}, {case['why']}"
    notes = [] if fits else [f"expected {case['status']} in shape {case['shape']}, got {gate.status}: {gate.body[:200]!r}"]
    return fits, outcome if fits else "UNEXPECTED", notes


def run_case(case, servers, self_test):
    direct_url, gate_url = servers[case.get("server", "generate")]
    try:
        direct = None if case.get("only_gate") else send(direct_url, case)
        gate = send(gate_url, case)
    except (OSError, http.client.HTTPException) as broken:
        return {"case": case, "ok": False, "direct": "", "outcome": "NO ANSWER", "notes": [repr(broken)]}
    ok, outcome, notes = judged(case, direct, gate, self_test)
    shown = "not sent" if direct is None else f"{direct.status} {direct.kind}"
    return {"case": case, "ok": ok, "direct": shown, "gate": f"{gate.status} {gate.kind}", "outcome": outcome, "notes": notes}


def as_table(rows):
    lines = ["| case | request | directly | through the gate | result |", "|---|---|---|---|---|"]
    for row in rows:
        case = row["case"]
        cells = [case["name"], f"`{case['send']}`", row["direct"], row.get("gate", ""), row["outcome"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answers(url):
    try:
        return send(url, {"send": "GET /v1/models"}).status == 200
    except (OSError, http.client.HTTPException):
        return False


def cases(only):
    found = json.loads((HERE / "cases.json").read_text())
    for case in found:
        if case["group"] == "gate" and case["why"] not in REASONS:
            sys.exit(f"cases.json: {case['name']}: `{case['why']}` is no reason for the gate to answer by itself")
    return [case for case in found if only in case["name"]]


def settings():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=pathlib.Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    gate = os.environ.get("GATE_URL", "http://127.0.0.1:8080")
    direct = os.environ.get("DIRECT_URL", "http://127.0.0.1:8001").split(",")
    for url in [gate, *direct]:
        if not answers(url):
            print(f"SKIPPED: no server at {url} (see {HERE.name}/README.md)")
            sys.exit(0)
    servers = {"generate": (direct[0], gate)}
    embed = os.environ.get("EMBED_URL")
    if embed and answers(embed):
        servers["pooling"] = (embed, os.environ.get("GATE_EMBED_URL", gate))
    else:
        print(f"SKIPPED: pooling cases: no server at {embed or 'EMBED_URL (not set)'}")
    return arguments, servers, direct


def show(name, row):
    """One line per case, and what is wrong with it under it."""
    print(f"{'ok    ' if row['ok'] else 'FAILED'} {name}: {row['outcome']}", flush=True)
    if not row["ok"]:
        print("\n".join(f"         {note}" for note in row["notes"][:20]), flush=True)


def main():
    arguments, servers, direct = settings()
    rows, scenario_rows = [], []
    for case in cases(arguments.only):
        is_harmful = arguments.self_test and case.get("only_gate")
        if case.get("server", "generate") in servers and not is_harmful:
            rows.append(run_case(case, servers, arguments.self_test))
            show(case["name"], rows[-1])
    for row in clients.run(servers, arguments.only):
        scenario_rows.append(row)
        show(row["name"], row)
    table = as_table(rows) + "\n\n" + clients.as_table(scenario_rows)
    dead = [url for url in direct if not answers(url)]
    if dead:
        print(f"FAILED: no longer answering: {', '.join(dead)}")
    failed = [row for row in rows + scenario_rows if not row["ok"]]
    if arguments.table:
        arguments.table.write_text("# Requests directly and through the gate\n\nWritten by `run.py --table`.\n\n" + table + "\n")
    identical = sum(row["outcome"] == "identical" for row in rows)
    print(f"\n{len(rows)} requests: {identical} identical, {len(rows) - identical} other; "
          f"{len(scenario_rows)} client scenarios; {len(failed) + len(dead)} failed")
    sys.exit(1 if failed or dead else 0)


if __name__ == "__main__":
    main()
