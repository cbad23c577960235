"""Are two answers of an inference server the same, apart from what differs between any two runs?

`summary(answer)` turns an answer into plain data in which ids, times and cache counts are masked; a stream is folded, since a
server may put one token or several into an event: texts are joined, counters keep their last value, other values are
collected once each, and the order of event kinds is kept. `differences(a, b)` lists what remains, with its path.
"""
import json
from dataclasses import dataclass, field

MASKED = {"id", "created", "created_at", "completed_at", "item_id", "request_id", "response_id"}
# How much of a prompt was cached depends on what a pod saw before.
CACHE = {"cached_tokens", "created_cache_tokens", "cache_write_tokens", "cache_read_input_tokens",
         "cache_creation_input_tokens", "input_tokens_per_turn", "cached_tokens_per_turn"}
# What sampling decides; masked for requests that do not ask for greedy decoding.
SAMPLED = {"text", "content", "delta", "arguments", "token_ids", "tokens", "token", "bytes", "logprob", "logprobs",
           "top_logprobs", "finish_reason", "stop_reason", "status", "incomplete_details", "completion_tokens",
           "output_tokens", "total_tokens", "reasoning", "output", "partial_json"}
JOINED = {"content", "text", "delta", "reasoning", "arguments", "partial_json", "thinking"}
LISTED = {"token_ids", "bytes", "tokens", "token_logprobs", "top_logprobs", "text_offset"}
COUNTERS = {"completion_tokens", "output_tokens", "total_tokens", "prompt_tokens", "input_tokens"}
FLOAT_TOLERANCE = 0.02  # bfloat16, and batches that differ


@dataclass
class Answer:
    status: int
    kind: str  # media type without parameters
    body: bytes
    headers: dict = field(default_factory=dict)


class BadStream(ValueError):
    """The bytes are not server-sent events as vLLM writes them."""


def events(body):
    """[(event name or None, data)] of a stream; data is JSON or text."""
    text = body.decode("utf-8")
    if text and not text.endswith("\n\n"):
        raise BadStream(f"the stream ends inside an event: {text[-40:]!r}")
    found = []
    for block in text.split("\n\n"):
        if not block.strip():
            continue
        name, data = None, []
        for line in block.strip("\n").split("\n"):
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                data.append(value)
            elif not line.startswith(":"):
                raise BadStream(f"not a line of an event: {line[:40]!r}")
        joined = "\n".join(data)
        try:
            found.append((name, json.loads(joined)))
        except json.JSONDecodeError:
            found.append((name, joined))
    return found


def masked(value, random, key=""):
    """`value` with everything that may differ between runs replaced by its type."""
    if key in MASKED and not isinstance(value, (dict, list)):
        return f"<{type(value).__name__}>"
    if key in CACHE or (random and key in SAMPLED):
        return "<any>"
    if isinstance(value, dict):
        return {name: masked(member, random, name) for name, member in value.items()}
    if isinstance(value, list):
        return [masked(member, random, key if key in CACHE else "") for member in value]
    return value


def leaves(value, path=()):
    """(path, key, leaf) of every leaf; members of a list that carry an `index` are named by it."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key in LISTED and isinstance(member, list):
                yield (*path, key), key, member
            else:
                yield from leaves(member, (*path, key))
    elif isinstance(value, list):
        for position, member in enumerate(value):
            index = member.get("index", position) if isinstance(member, dict) else position
            yield from leaves(member, (*path, f"[{index}]"))
    else:
        yield path, path[-1] if path else "", value


def folded(stream, random):
    """One dictionary that says what a stream said, however it was cut into events."""
    order, said = [], {}
    for name, data in stream:
        kind = name or ("[DONE]" if data == "[DONE]" else "error" if isinstance(data, dict) and "error" in data else "data")
        if not order or order[-1] != kind:
            order.append(kind)
        if not isinstance(data, dict):
            continue
        for path, key, leaf in leaves(masked(data, random)):
            if leaf is None or key in ("sequence_number", "logprobs", "content_index"):
                continue
            place = (name or "", *path)
            if isinstance(leaf, str) and key in JOINED and leaf != "<any>":
                said[place] = said.get(place, "") + leaf
            elif isinstance(leaf, list):
                said[place] = said.get(place, []) + leaf
            elif key in COUNTERS:
                said[place] = leaf
            elif leaf not in said.setdefault(place, []):
                said[place].append(leaf)
    return {"events": order, "said": {"/".join(place): value for place, value in sorted(said.items())}}


def summary(answer, random=False):
    """Plain data that is equal for equal answers."""
    shown = {"status": answer.status, "kind": answer.kind}
    if answer.kind == "text/event-stream":
        return shown | {"stream": folded(events(answer.body), random)}
    try:
        return shown | {"body": masked(json.loads(answer.body), random)}
    except ValueError:
        return shown | {"bytes": answer.body.decode("utf-8", "replace")}


def differences(one, other, path=""):
    """Where two plain values differ, as lines."""
    if isinstance(one, dict) and isinstance(other, dict):
        lines = []
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                lines.append(f"{path}/{key}: only {'direct' if key in one else 'through the gate'}")
            else:
                lines += differences(one[key], other[key], f"{path}/{key}")
        return lines
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return [f"{path}: {len(one)} members directly, {len(other)} through the gate"]
        return [line for at, pair in enumerate(zip(one, other)) for line in differences(*pair, f"{path}/{at}")]
    if isinstance(one, float) and isinstance(other, float):
        return [] if abs(one - other) <= FLOAT_TOLERANCE else [f"{path}: {one} directly, {other} through the gate"]
    return [] if one == other and type(one) is type(other) else [f"{path}: {one!r} directly, {other!r} through the gate"]
