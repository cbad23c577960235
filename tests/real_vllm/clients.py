"""The unchanged `openai` and `anthropic` clients: each scenario runs directly and through the gate and must see the same.

A scenario takes the base URL and returns plain data without ids and times, or the exception that a user would catch.
Decoding is greedy, so texts are compared as well.
"""
from compare import differences, masked

SCENARIOS = []
HELLO = [{"role": "user", "content": "Hello there"}]
TOOL = {"type": "function", "function": {"name": "switch", "strict": True, "parameters": {
    "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}}}


def scenario(server="generate", package="openai"):
    def register(function):
        SCENARIOS.append((function.__name__, server, package, function))
        return function
    return register


def openai_client(base):
    import openai
    return openai.OpenAI(base_url=f"{base}/v1", api_key="not-needed", max_retries=0, timeout=180)


def anthropic_client(base):
    import anthropic
    return anthropic.Anthropic(base_url=base, api_key="not-needed", max_retries=0, timeout=180)


def joined(chunks):
    """What a user of a stream of chat chunks collects."""
    seen = {"text": "", "finish": None, "usage": None, "models": set()}
    for chunk in chunks:
        seen["models"].add(chunk.model)
        if chunk.usage:
            seen["usage"] = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices:
            part = choice.delta.content if hasattr(choice, "delta") else choice.text
            seen["text"] += part or ""
            seen["finish"] = choice.finish_reason or seen["finish"]
    return seen | {"models": sorted(seen["models"])}


def plain(reply):
    return masked(reply.model_dump(), random=False)


@scenario()
def openai_models(base):
    return "tiny" in [model.id for model in openai_client(base).models.list()]


@scenario()
def openai_chat(base):
    return plain(openai_client(base).chat.completions.create(model="tiny", messages=HELLO, max_tokens=16, temperature=0))


@scenario()
def openai_chat_stream(base):
    with openai_client(base).chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=16, temperature=0, stream=True,
            stream_options={"include_usage": True}) as stream:
        return joined(stream)


@scenario()
def openai_chat_stream_left_early(base):
    client = openai_client(base)
    with client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2000, temperature=0, stream=True) as stream:
        next(iter(stream))
    return joined(client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2, temperature=0, stream=True))


@scenario()
def openai_tools(base):
    """The model is noise and may fill a whole answer with white space: the first prompt that makes it end a call counts."""
    for prompt in ("Hello there", "Turn it on", "Light", "Off", "import os", "class A"):
        reply = openai_client(base).chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": prompt}], max_tokens=64, temperature=0, tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "switch"}})
        calls = reply.choices[0].message.tool_calls or []
        if calls:
            return {"prompt": prompt, "finish": reply.choices[0].finish_reason,
                    "calls": [(call.type, call.function.name, call.function.arguments) for call in calls]}
    raise AssertionError("no prompt made the model call the tool; try another seed of make_tiny_model.py")


@scenario()
def openai_tools_stream(base):
    seen = {"names": [], "arguments": "", "text": "", "finish": None}
    for chunk in openai_client(base).chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=64, temperature=0, tools=[TOOL], stream=True,
            tool_choice={"type": "function", "function": {"name": "switch"}}):
        for choice in chunk.choices:
            seen["finish"] = choice.finish_reason or seen["finish"]
            seen["text"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                seen["names"] += [call.function.name] if call.function.name else []
                seen["arguments"] += call.function.arguments or ""
    return seen


@scenario()
def openai_logprobs(base):
    reply = openai_client(base).chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    return [(token.token, token.logprob, len(token.top_logprobs)) for token in reply.choices[0].logprobs.content]


@scenario()
def openai_completion_of_token_ids(base):
    return plain(openai_client(base).completions.create(
        model="tiny", prompt=[100, 200, 300, 400], max_tokens=8, temperature=0, extra_body={"return_token_ids": True}))


@scenario()
def openai_completion_batches(base):
    client, found = openai_client(base), []
    for prompt in (["import os", "import sys"], [[100, 200], [300, 400, 500]]):
        reply = client.completions.create(model="tiny", prompt=prompt, max_tokens=4, temperature=0)
        found.append([(choice.index, choice.text, choice.finish_reason) for choice in reply.choices])
    return found


@scenario()
def openai_completion_stream(base):
    return joined(openai_client(base).completions.create(
        model="tiny", prompt="import os", max_tokens=8, temperature=0, stream=True))


@scenario()
def openai_responses(base):
    reply = openai_client(base).responses.create(model="tiny", input="Hello there", max_output_tokens=8, temperature=0)
    return {"text": reply.output_text, "status": reply.status, "usage": (reply.usage.input_tokens, reply.usage.output_tokens)}


@scenario()
def openai_responses_stream(base):
    kinds, text = [], ""
    for event in openai_client(base).responses.create(
            model="tiny", input="Hello there", max_output_tokens=8, temperature=0, stream=True):
        kinds += [event.type] if kinds[-1:] != [event.type] else []
        text += event.delta if event.type == "response.output_text.delta" else ""
    return {"kinds": kinds, "text": text}


@scenario()
def openai_responses_by_id(base):
    """Several, so that behind a gate not all of them are made by the same pod."""
    client, found = openai_client(base), []
    for word in ("one", "two", "three", "four", "five", "six"):
        made = client.responses.create(model="tiny", input=word, max_output_tokens=4, temperature=0)
        read = client.responses.retrieve(made.id)
        found.append((read.id == made.id, read.output_text == made.output_text, read.output_text))
    return found


@scenario()
def openai_responses_continued(base):
    client = openai_client(base)
    first = client.responses.create(model="tiny", input="Hello there", max_output_tokens=4, temperature=0)
    second = client.responses.create(
        model="tiny", input="And more", max_output_tokens=4, temperature=0, previous_response_id=first.id)
    return {"text": second.output_text, "tokens": second.usage.input_tokens, "linked": second.previous_response_id == first.id}


@scenario(server="pooling")
def openai_embeddings(base):
    reply = openai_client(base).embeddings.create(model="tiny-embed", input=["import os", "class A"])
    return [[entry.index, len(entry.embedding), entry.embedding[:8]] for entry in reply.data]


def caught(call):
    try:
        call()
    except Exception as error:  # what a user would have to catch, whatever it is
        return [type(error).__name__, getattr(error, "status_code", None)]
    return ["no error"]


@scenario()
def openai_errors(base):
    chat = openai_client(base).chat.completions.create
    return [caught(lambda: chat(model="nope", messages=HELLO)),
            caught(lambda: chat(model="tiny", messages=HELLO, max_tokens=-1)),
            caught(lambda: chat(model="tiny", messages=HELLO, max_tokens=100_000, stream=True)),
            caught(lambda: openai_client(base).responses.retrieve("resp_unknown"))]


@scenario(package="anthropic")
def anthropic_message(base):
    reply = anthropic_client(base).messages.create(model="tiny", messages=HELLO, max_tokens=8, extra_body={"temperature": 0})
    return {"text": [part.text for part in reply.content], "stop": reply.stop_reason,
            "usage": (reply.usage.input_tokens, reply.usage.output_tokens)}


@scenario(package="anthropic")
def anthropic_stream(base):
    with anthropic_client(base).messages.stream(
            model="tiny", messages=HELLO, max_tokens=8, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    return {"text": text, "stop": final.stop_reason, "tokens": final.usage.output_tokens}


@scenario(package="anthropic")
def anthropic_count_tokens(base):
    return anthropic_client(base).messages.count_tokens(model="tiny", messages=HELLO).input_tokens


@scenario(package="anthropic")
def anthropic_errors(base):
    create = anthropic_client(base).messages.create
    return [caught(lambda: create(model="nope", messages=HELLO, max_tokens=4)),
            caught(lambda: create(model="tiny", messages=HELLO, max_tokens=100_000))]


def run(servers, only):
    """Runs the scenarios and yields one row for each."""
    missing = set()
    for package in ("openai", "anthropic"):
        try:
            __import__(package)
        except ImportError:
            missing.add(package)
            print(f"SKIPPED: scenarios of the `{package}` client: not installed in {__import__('sys').executable}")
    for name, server, package, function in SCENARIOS:
        if only not in name or package in missing or server not in servers:
            continue
        seen = []
        for url in servers[server]:
            try:
                seen.append(function(url))
            except Exception as error:  # a scenario that breaks directly is a broken scenario; one that breaks on the gate a finding
                seen.append(f"{type(error).__name__}: {str(error)[:300]}")
        broken = [value for value in seen if isinstance(value, str)]
        notes = broken or differences(listed(seen[0]), listed(seen[1]))
        yield {"name": name, "ok": not notes, "outcome": "DIFFERENT" if notes else "same", "notes": notes}


def listed(value):
    """Tuples as lists, so that the comparison walks into them."""
    if isinstance(value, dict):
        return {key: listed(member) for key, member in value.items()}
    return [listed(member) for member in value] if isinstance(value, (list, tuple)) else value


def as_table(rows):
    lines = ["| client scenario | result |", "|---|---|"]
    return "\n".join(lines + [f"| {row['name']} | {row['outcome']} |" for row in rows])
