// The dashboard: takes the gate's events and hands them to the parts of the page. It only reads.
import { Charts } from "./charts.js";
import { Decisions } from "./decisions.js";
import { Fleet } from "./fleet.js";
import { bytes, make, percent, seconds, short } from "./format.js";

const LATE_MS = 3_500;
const byId = (id) => document.getElementById(id);

const charts = new Charts(byId("charts"));
const fleet = new Fleet({
  parent: byId("pods"), detail: byId("pod-detail"), sum: byId("fleet-sum"), filter: byId("filter"), paint: byId("paint"),
  scale: byId("scale"), asTiles: byId("as-tiles"), asTable: byId("as-table"),
});
const decisions = new Decisions({ parent: byId("decisions"), sum: byId("stream-sum"), explained: byId("explained"), whySum: byId("why-sum") });

let version;
let last = 0;
let isPaused = false;
let refusedBefore = new Map();

/** All there is: at the start, and after a gap. */
function whole(data) {
  // Another version of the gate has another page.
  if (version && version !== data.version) location.reload();
  version = data.version;
  byId("version").textContent = data.version;
  fleet.setCards(data.cards);
  fleet.update(data.pods, true);
  charts.set(data.points);
  decisions.set(data.decisions);
  now(data.now);
}

/** One second. */
function tick(data) {
  if (data.cards) fleet.setCards(data.cards);
  fleet.update(data.pods, Boolean(data.cards));
  charts.push(data.point);
  decisions.update(data.decisions);
  now(data.now);
}

function now(data) {
  state(data.gate);
  queues(data.queues, data.refused);
  models(data.models);
}

function state(gate) {
  const ready = byId("ready");
  ready.textContent = gate.missing ? `not ready: ${gate.missing}` : "ready";
  ready.className = `badge ${gate.missing ? "bad" : "good"}`;
  byId("safe").hidden = !gate.safe_mode;
  byId("memory").hidden = gate.memory_stage === 0;
  byId("memory").textContent = `memory stage ${gate.memory_stage}`;
  byId("facts").textContent = `${short(gate.connections)} connections · ${bytes(gate.body_bytes)} of bodies held · index ${short(gate.index_blocks)} blocks, ${bytes(gate.index_bytes)}`;
  document.title = gate.missing ? "Tidegate: not ready" : gate.safe_mode ? "Tidegate: safe mode" : "Tidegate";
}

/** Fills a table; numbers to the right. `rows` are arrays of texts, or [text, class]. */
function table(parent, heads, rows, empty) {
  const head = make("tr", "", ...heads.map(([name, className, hint]) => {
    const cell = make("th", className, name);
    cell.scope = "col";
    if (hint) cell.title = hint;
    return cell;
  }));
  const body = rows.map((row) => make("tr", "", ...row.map((value, place) => {
    const [text, className] = Array.isArray(value) ? value : [value, ""];
    const cell = make("td", `${heads[place][1]} ${className}`.trim(), text);
    cell.title = text;
    return cell;
  })));
  const [top, left] = [parent.scrollTop, parent.scrollLeft];
  parent.replaceChildren(make("table", "", make("thead", "", head), make("tbody", "", ...body)), ...(rows.length ? [] : [make("p", "note", empty)]));
  [parent.scrollTop, parent.scrollLeft] = [top, left];
}

function queues(lines, refused) {
  const counts = new Map();
  for (const [name, reason, count] of refused) counts.set(name, [...(counts.get(name) ?? []), [reason, count]]);
  const sum = (name) => (counts.get(name) ?? []).reduce((all, [, count]) => all + count, 0);
  const rows = ["interactive", "standard", "batch"].map((name) => {
    const own = lines.filter((line) => line[2] === name);
    const all = (place) => own.reduce((value, line) => value + line[place], 0);
    const most = (place) => Math.max(0, ...own.map((line) => line[place]));
    const gained = sum(name) - (refusedBefore.get(name) ?? sum(name));
    refusedBefore.set(name, sum(name));
    const reasons = (counts.get(name) ?? []).filter(([, count]) => count).sort((a, b) => b[1] - a[1]).map(([reason, count]) => `${reason} ${short(count)}`).join(", ");
    return [
      name, [short(all(3)), all(3) ? "busy" : ""], most(4) ? seconds(most(4)) : "–", most(5) ? seconds(most(5)) : "–",
      [`${short(sum(name))}${gained > 0 ? ` (+${short(gained)}/s)` : ""}`, gained > 0 ? "bad" : ""], reasons || "–",
    ];
  });
  const heads = [
    ["class", ""], ["waiting", "num"], ["oldest", "num"], ["backlog", "num", "time until what waits has gone to pods"],
    ["refused", "num", "since the start"], ["reasons", ""],
  ];
  table(byId("queues"), heads, rows, "");
}

function models(lines) {
  const pair = (times) => (times ? `${short(times[0])} / ${short(times[1])}` : "–");
  const rows = lines.map((line) => [
    line.model, short(line.in_flight), short(line.rate), short(line.tokens[1]), percent(line.hit), pair(line.ttft), pair(line.gap), pair(line.e2e),
  ]);
  const heads = [
    ["model", ""], ["active", "num", "requests in flight"], ["req/s", "num"], ["tok/s", "num", "generated"], ["hits", "num", "share of prompt tokens that were cached"],
    ["first", "num", "time to the first token"], ["between", "num", "between tokens"], ["whole", "num"],
  ];
  table(byId("models"), heads, rows, "No model served a request yet.");
}

function listen() {
  source = new EventSource("/dashboard/events");
  const on = (name, take) => source.addEventListener(name, (event) => {
    last = Date.now();
    take(JSON.parse(event.data));
  });
  on("whole", whole);
  on("tick", tick);
  // A browser gives up for good where the answer is an error: too many viewers, or a gate that is just starting.
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(() => isPaused || listen(), 3_000);
  });
}

let source;
listen();

setInterval(() => {
  const age = Date.now() - last;
  const live = byId("live");
  const isLate = !isPaused && age > LATE_MS;
  live.textContent = isPaused ? "paused" : last === 0 ? "no data yet" : isLate ? `no data for ${Math.round(age / 1_000)} s` : "live";
  live.className = isLate ? "late" : "dim";
}, 500);

byId("pause").addEventListener("click", ({ target }) => {
  isPaused = !isPaused;
  target.setAttribute("aria-pressed", isPaused);
  // What was missed comes whole on a new connection.
  source.close();
  if (!isPaused) listen();
});

/** Colours as the system has them, or as chosen here. */
const THEMES = ["auto", "light", "dark"];
function paint(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme[0].toUpperCase() + theme.slice(1);
}
const stored = () => {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
};
paint(THEMES.includes(stored()) ? stored() : "auto");
byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  paint(next);
  try {
    localStorage.setItem("theme", next);
  } catch {
    // Nothing is stored in private windows of some browsers; the choice holds until the page is left.
  }
});
