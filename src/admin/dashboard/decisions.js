// Decisions as they happen, and one of them explained: what each candidate would have cost, and of what.
import { clock, make, millis, seconds, short } from "./format.js";

const ROWS_MAX = 60;
// Places in the array of an end, see stream.rs.
const END = { cause: 0, fault: 1, status: 2, class: 3, attempts: 4, ttft: 5, e2e: 6, cached: 7, generated: 8 };

const TERMS = {
  wait: "waits before its prefill", prefill: "its own prefill", transfer: "KV blocks brought", unseen: "what other gates may have sent",
  loads: "loading and compiling", stall: "its prefill delays others", price: "cache that hits would spare", decode: "its own decoding",
  slow: "slows the others' decoding", other: "another scorer",
};

const COLUMNS = [
  ["time", 84, ""], ["request", 72, ""], ["class", 84, ""], ["model", 110, ""], ["pod", 100, ""], ["prompt", 54, "num", "tokens, estimated"],
  ["hit", 94, "num", "tokens of the prompt that the pod was believed to have, and what it said"], ["cost", 64, "num", "of the chosen pod, seconds of the ranking"],
  ["first", 62, "num", "time to the first token"], ["whole", 62, "num"], ["end", 0, ""],
];

export class Decisions {
  constructor({ parent, sum, explained, whySum }) {
    Object.assign(this, { parent, sum, explained, whySum });
    this.lines = new Map();
    this.news = 0;
    const head = make("tr", "", ...COLUMNS.map(([name, width, className, hint]) => {
      const cell = make("th", className, name);
      cell.scope = "col";
      if (width) cell.style.width = `${width}px`;
      if (hint) cell.title = hint;
      return cell;
    }));
    this.body = make("tbody");
    parent.replaceChildren(make("table", "fixed", make("thead", "", head), this.body));
    this.body.addEventListener("click", (event) => this.explain(event.target.closest("tr")?.dataset.id));
    // Rows stand still while somebody is about to choose one.
    for (const [start, end] of [["pointerenter", "pointerleave"], ["focusin", "focusout"]]) {
      parent.addEventListener(start, () => (this.isHeld = true));
      parent.addEventListener(end, () => {
        this.isHeld = parent.matches(":hover, :has(:focus-visible)");
        if (!this.isHeld) this.draw();
      });
    }
  }

  set(lines) {
    this.lines = new Map(lines.map((line) => [line.id, line]));
    this.draw();
    // There is something to see from the start.
    if (!this.chosen) this.explain(lines.at(-1)?.id);
  }

  update(lines) {
    for (const line of lines) {
      const isKnown = this.lines.has(line.id);
      this.lines.set(line.id, line);
      if (!isKnown) this.news += 1;
      else this.fill(line);
      if (line.id === this.chosen) this.explain(line.id);
    }
    while (this.lines.size > ROWS_MAX) this.lines.delete(this.lines.keys().next().value);
    if (this.isHeld) this.summarise();
    else this.draw();
    if (!this.chosen) this.explain(lines.at(-1)?.id);
  }

  summarise() {
    this.sum.textContent = this.isHeld && this.news ? `held while you point at it; ${this.news} newer` : "a sample, newest first";
  }

  draw() {
    this.news = 0;
    this.summarise();
    this.parent.classList.toggle("single", new Set([...this.lines.values()].map((line) => line.model)).size <= 1);
    const old = new Map([...this.body.children].map((row) => [row.dataset.id, row]));
    const rows = [...this.lines.values()].reverse().map((line) => old.get(line.id) ?? this.row(line));
    if (rows.some((row, place) => this.body.children[place] !== row) || rows.length !== this.body.children.length) this.body.replaceChildren(...rows);
    if (!rows.length) this.body.replaceChildren(make("tr", "", cell(COLUMNS.length, "No request was planned yet.")));
  }

  row(line) {
    const row = make("tr", "", ...COLUMNS.map(([, , className]) => make("td", className)));
    row.dataset.id = line.id;
    row.setAttribute("aria-selected", line.id === this.chosen);
    const button = make("button", "", line.id.slice(0, 8));
    button.type = "button";
    button.title = line.id;
    row.children[1].append(button);
    this.fill(line, row);
    return row;
  }

  /** Writes what is known of a decision into its row. */
  fill(line, row = [...this.body.children].find((row) => row.dataset.id === line.id)) {
    if (!row) return;
    const end = line.end;
    const pod = line.prefill_pod ? `${line.prefill_pod} → ${line.pod?.replace("pod-", "")}` : line.pod ?? "none";
    const texts = [
      clock(line.t), null, end?.[END.class] ?? "", line.model, pod, short(line.prompt),
      end && end[END.cached] !== null ? `${short(line.hit)} / ${short(end[END.cached])}` : short(line.hit),
      line.cost === null ? "–" : seconds(line.cost),
      end ? millis(end[END.ttft]) : "", end ? millis(end[END.e2e]) : "", end ? cause(end) : "in flight",
    ];
    texts.forEach((text, place) => {
      if (text !== null) row.children[place].textContent = text;
    });
    row.children[3].title = line.model;
    row.lastElementChild.className = !end ? "dim" : end[END.fault] === "none" ? "good" : end[END.fault] === "client" ? "warn" : "bad";
    row.lastElementChild.title = end?.[END.cause] ?? "";
  }

  async explain(id) {
    if (!id) return;
    this.chosen = id;
    for (const row of this.body.children) row.setAttribute("aria-selected", row.dataset.id === id);
    const line = this.lines.get(id);
    let answer;
    try {
      answer = await fetch(`/explain/${encodeURIComponent(id)}`);
    } catch {
      answer = { ok: false };
    }
    if (this.chosen !== id) return;
    if (!answer.ok) {
      this.explained.replaceChildren(make("p", "note", "This decision is not kept any more."));
      return;
    }
    this.explained.replaceChildren(...picture(await answer.json(), line));
    if (this.whySum.textContent !== id) this.explained.scrollTop = 0;
    this.whySum.textContent = id;
  }
}

function cell(span, text) {
  const element = make("td", "dim", text);
  element.colSpan = span;
  return element;
}

function cause(end) {
  const again = end[END.attempts] > 1 ? ` ×${end[END.attempts]}` : "";
  return `${end[END.cause]}${end[END.cause] === "ok" ? "" : ` ${end[END.status] ?? ""}`}${again}`;
}

/** A kept decision as a picture. */
function picture({ decision, prompt_tokens, attempt, split }, line) {
  const rows = decision.rows ?? [];
  const isDecode = split?.chosen === "remote";
  const stacks = rows.map((row) => stack(row, isDecode));
  const most = Math.max(...stacks.map((parts) => total(parts)), 1e-9);
  const parts = [facts([
    ["prompt ", `${short(prompt_tokens)} tokens`], ["attempt ", String(attempt)], ["mode ", decision.mode],
    ["candidates ", `${decision.eligible} of ${decision.considered}`],
    ...(line?.end ? [["ended ", cause(line.end)], ["generated ", short(line.end[END.generated])]] : []),
  ])];
  if (decision.nobody) parts.push(make("p", "note bad", `No pod: ${decision.nobody}`));
  if (split) parts.push(...splitPicture(split));
  if (rows.length) parts.push(make("h3", "", isDecode ? "Where to decode: cost of each candidate" : "Cost of each candidate"), legend(stacks));
  rows.forEach((row, place) => parts.push(candidate(row, stacks[place], most, row.pod === decision.chosen)));
  if (!rows.length && !decision.nobody) parts.push(make("p", "note", "In safe mode the pod with the fewest requests in flight is chosen; nothing is weighed."));
  if (decision.eligible > rows.length) parts.push(make("p", "note", `The ${rows.length} cheapest are shown.`));
  return parts;
}

const total = (parts) => parts.reduce((sum, [, value]) => sum + Math.max(value, 0), 0);

/** What a candidate's cost is made of: terms of a cost that has some, else one part per scorer. */
function stack(row, isDecode) {
  return (row.scores ?? []).flatMap((score) => {
    const terms = Object.entries(score.terms ?? {});
    const weight = score.cost ? score.counted / score.cost : 1;
    // Where another pod prefills, the prefill of a decode pod is to get the blocks.
    const nameOf = (name) => (isDecode && name === "prefill" ? "transfer" : name);
    return terms.length ? terms.map(([name, value]) => [nameOf(name), value * weight]) : [[score.scorer, score.counted]];
  });
}

function candidate(row, parts, most, isChosen) {
  const element = make("div", isChosen ? "candidate chosen" : "candidate", make("span", "dot"), make("span", "", row.pod));
  element.setAttribute("aria-label", `${row.pod}${isChosen ? ", chosen" : ""}, cost ${row.total ?? "none"}`);
  if (row.total === null) {
    const drop = row.filters.find((cell) => cell.verdict !== "keep");
    element.append(make("span", "hit"), make("span", "why", drop ? `ruled out by ${drop.filter}` : "ruled out"));
    return element;
  }
  element.append(make("span", "hit", `${short(row.hit_tokens)} cached`), bar(parts, most), make("span", "num", seconds(row.total)));
  return element;
}

function bar(parts, most) {
  const element = make("div", "stack");
  for (const [name, value] of parts) {
    if (value <= 0) continue;
    const piece = make("i", TERMS[name] ? `t-${name}` : "t-other");
    piece.style.width = `${(value / most) * 100}%`;
    piece.title = `${name} ${seconds(value)}: ${TERMS[name] ?? "a scorer"}`;
    element.append(piece);
  }
  return element;
}

/** The names of the parts that can be seen. */
function legend(stacks) {
  const parts = stacks.flat();
  const least = Math.max(...stacks.map(total)) / 200;
  const seen = new Set(parts.filter(([, value]) => value > least).map(([name]) => name));
  return make("div", "legend", ...[...seen].map((name) => {
    const entry = make("span", "", make("i", TERMS[name] ? `t-${name}` : "t-other"), name);
    entry.title = TERMS[name] ?? "";
    return entry;
  }));
}

/** One pod or two: both ways as bars. */
function splitPicture(split) {
  const head = make("h3", "", `One pod or two: ${split.chosen === "remote" ? "two" : "one"}`, make("span", "dim", ` (${split.reason.replaceAll("_", " ")})`));
  const ways = [["local", "one pod", "", split.local], ["remote", "two pods", split.prefill && `${split.prefill} → ${split.decode?.replace("pod-", "")}`, split.remote]];
  const known = ways.filter(([, , , parts]) => parts);
  if (!known.length) return [head];
  const stacks = known.map(([, , , parts]) => ["wait", "prefill", "transfer", "stall", "decode"].map((name) => [name, parts[`${name}_s`]]));
  const most = Math.max(...stacks.map(total));
  const rows = known.map(([way, name, pods], place) => make("div", way === split.chosen ? "candidate chosen" : "candidate",
    make("span", "dot"), make("span", "", name), make("span", "hit", pods ?? ""), bar(stacks[place], most), make("span", "num", seconds(total(stacks[place])))));
  return [head, legend(stacks), ...rows];
}

function facts(pairs) {
  return make("p", "facts", ...pairs.map(([name, value]) => make("span", "", name, make("b", "", value))));
}

