// Small line charts of the last five minutes. Pointing at one shows that moment's values in all of them.
import { make, millis, percent, short } from "./format.js";

const SPANS = [[60, "1 min"], [120, "2 min"], [300, "5 min"]];
const HEIGHT = 86;
const PAD = { top: 6, bottom: 14 };

const CHARTS = [
  { title: "Requests/s", format: short, series: [
    ["ok", (p) => p.ended[0]], ["client", (p) => p.ended[1]], ["gate", (p) => p.ended[2]], ["pod", (p) => p.ended[3]]],
    hint: "requests that ended: served, or failed by the client's, the gate's or a pod's doing" },
  { title: "Output/s", format: short, series: [["tokens", (p) => p.tokens[1]], ["events", (p) => p.events]],
    hint: "generated tokens, counted when a request ends and only if the pod told its usage; events of streams as they come" },
  { title: "In flight", format: short, series: [["requests", (p) => p.in_flight], ["in queue", (p) => p.waiting]] },
  { title: "Cached prompt", format: percent, max: 1_000, series: [["share", (p) => p.hit]],
    beside: (p) => `of ${short(p.tokens[0])}/s`, hint: "share of the prompt tokens that pods had in their caches, by their usage" },
  { title: "First token", format: millis, series: [["median", (p) => p.ttft?.[0]], ["p95", (p) => p.ttft?.[1]]] },
  { title: "Between tokens", format: millis, series: [["median", (p) => p.gap?.[0]], ["p95", (p) => p.gap?.[1]]] },
  { title: "Whole request", format: millis, series: [["median", (p) => p.e2e?.[0]], ["p95", (p) => p.e2e?.[1]]] },
  { title: "KV in use", format: percent, max: 1_000, series: [["mean", (p) => p.kv?.[0]], ["fullest", (p) => p.kv?.[1]]] },
];

const svg = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

/** The next of 1, 2, 5, 10, 20, ...: an axis that changes seldom. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-3)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

class Chart {
  constructor(description, parent) {
    Object.assign(this, description);
    this.values = this.series.map(() => make("b"));
    const keys = this.series.map(([name], place) => make("span", "key", make("span", `s${place}`, "● "), `${name} `, this.values[place]));
    this.aside = make("span", "key");
    this.svg = svg("svg", { role: "img", preserveAspectRatio: "none" });
    this.paths = this.series.map((_, place) => svg("path", { class: `s${place}` }));
    this.area = svg("path", { class: "area" });
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT - PAD.bottom, visibility: "hidden" });
    const [floor, top] = [HEIGHT - PAD.bottom, PAD.top];
    this.rules = [floor, (floor + top) / 2, top].map((y) => svg("line", { class: "grid", x1: 0, y1: y, x2: 9_999, y2: y }));
    this.label = svg("text", { x: 2, y: top + 9 });
    this.times = [["", "start"], ["now", "end"]].map(([text, anchor]) => {
      const element = svg("text", { y: HEIGHT - 3, "text-anchor": anchor });
      element.textContent = text;
      return element;
    });
    this.svg.append(...this.rules, this.area, ...this.paths, this.cursor, this.label, ...this.times);
    const title = make("h2", "", this.title);
    if (this.hint) title.title = this.hint;
    this.element = make("div", "chart", make("div", "top", title, ...keys, this.aside), this.svg);
    parent.append(this.element);
  }

  draw(points, at, [span, name]) {
    const width = this.svg.clientWidth || 300;
    const now = points.at(-1)?.t ?? 0;
    const x = (point) => width - ((now - point.t) / 1_000 / span) * width;
    const rows = this.series.map(([, get]) => points.map((point) => get(point) ?? null));
    const most = Math.max(0, ...rows.flat());
    const max = this.max ?? ceiling(most);
    const y = (value) => HEIGHT - PAD.bottom - (value / max) * (HEIGHT - PAD.bottom - PAD.top);
    rows.forEach((row, place) => {
      this.paths[place].setAttribute("d", line(points, row, x, y));
      const shown = row[at ?? row.length - 1];
      this.values[place].textContent = this.format(shown);
    });
    const point = points[at ?? points.length - 1];
    if (this.beside) this.aside.textContent = point ? this.beside(point) : "";
    const first = line(points, rows[0], x, y);
    const runs = first.split("M").filter(Boolean).map((run) => {
      const steps = run.split("L");
      return `M${steps[0].split(",")[0]},${y(0)}L${run}L${steps.at(-1).split(",")[0]},${y(0)}Z`;
    });
    this.area.setAttribute("d", runs.join(""));
    this.label.textContent = this.format(max);
    this.times[0].textContent = `${name} ago`;
    this.times[0].setAttribute("x", 2);
    this.times[1].setAttribute("x", width - 2);
    this.cursor.setAttribute("visibility", at === undefined ? "hidden" : "visible");
    if (at !== undefined) {
      this.cursor.setAttribute("x1", x(points[at]));
      this.cursor.setAttribute("x2", x(points[at]));
    }
    const spoken = this.series.map(([name], place) => `${name} ${this.values[place].textContent}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}: ${spoken}`);
  }
}

/** A path with gaps where nothing is known. */
function line(points, row, x, y) {
  let path = "";
  let isDown = false;
  row.forEach((value, place) => {
    if (value !== null) path += `${isDown ? "L" : "M"}${x(points[place]).toFixed(1)},${y(value).toFixed(1)}`;
    isDown = value !== null;
  });
  return path;
}

export class Charts {
  constructor(parent) {
    this.points = [];
    this.charts = CHARTS.map((description) => new Chart(description, parent));
    for (const { svg } of this.charts) {
      svg.addEventListener("pointermove", (event) => this.point(event.offsetX / svg.clientWidth));
      svg.addEventListener("pointerleave", () => this.point(undefined));
    }
    new ResizeObserver(() => this.draw()).observe(parent);
  }

  point(share) {
    this.share = share;
    this.draw();
  }

  set(points) {
    this.points = points;
    this.draw();
  }

  push(point) {
    if (!point || this.points.at(-1)?.t === point.t) return;
    this.points.push(point);
    while (this.points.length > 1 && point.t - this.points[0].t > SPANS.at(-1)[0] * 1_000) this.points.shift();
    this.draw();
  }

  draw() {
    const age = this.points.length ? (this.points.at(-1).t - this.points[0].t) / 1_000 : 0;
    const span = SPANS.find(([seconds]) => seconds >= age) ?? SPANS.at(-1);
    let at;
    if (this.share !== undefined && this.points.length) {
      const moment = this.points.at(-1).t - (1 - this.share) * span[0] * 1_000;
      at = this.points.findIndex((point) => point.t >= moment);
      if (at < 0) at = this.points.length - 1;
    }
    for (const chart of this.charts) chart.draw(this.points, at, span);
  }
}
