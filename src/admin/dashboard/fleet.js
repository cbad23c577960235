// The pods as tiles (cards while there are few, a heat map when there are many) or as a table that draws only what is in sight.
import { make, percent, short } from "./format.js";

// Places in the arrays that the gate sends, see lines.rs.
const CARD = { id: 0, address: 1, role: 2, rank: 3, labels: 4, models: 5, capacity: 6, version: 7 };
const LINE = { place: 0, standing: 1, requests: 2, prefilling: 3, context: 4, queued: 5, running: 6, waiting: 7, kv: 8, hit: 9, age: 10 };

const FEW_MAX = 4;
const SOME_MAX = 8;
const LARGE_MAX = 16;
const MEDIUM_MAX = 120;
const ROW = 24;

const PAINTS = {
  kv: { get: (pod) => pod.line[LINE.kv], max: () => 1_000, format: percent },
  hit: { get: (pod) => pod.line[LINE.hit], max: () => 1_000, format: percent },
  load: { get: (pod) => pod.line[LINE.requests], max: ceiling, format: short },
  tokens: { get: (pod) => pod.line[LINE.context], max: ceiling, format: short },
  waiting: { get: (pod) => pod.line[LINE.waiting], max: ceiling, format: short },
};

const COLUMNS = [
  { name: "pod", width: 78, get: (pod) => pod.number, show: (pod) => pod.card[CARD.id] },
  { name: "address", width: 132, get: (pod) => pod.card[CARD.address] },
  { name: "role", width: 58, get: (pod) => pod.card[CARD.role] },
  { name: "standing", width: 72, get: (pod) => pod.line[LINE.standing], tone: (pod) => TONES[pod.line[LINE.standing]] },
  { name: "model", width: 84, get: (pod) => pod.card[CARD.models].join(", ") },
  { name: "running", hint: "by the pod's own last reading, all clients", number: true, get: (pod) => pod.line[LINE.running] },
  { name: "waiting", hint: "by the pod's own last reading, all clients", number: true, get: (pod) => pod.line[LINE.waiting], tone: (pod) => (pod.line[LINE.waiting] > 0 ? "busy" : "") },
  { name: "ours", hint: "requests that this gate has in flight there", number: true, get: (pod) => pod.line[LINE.requests] },
  { name: "prefill", hint: "of these, without a first token", number: true, get: (pod) => pod.line[LINE.prefilling] },
  { name: "tokens", hint: "context tokens of ours in flight", number: true, get: (pod) => pod.line[LINE.context], show: (pod) => short(pod.line[LINE.context]) },
  { name: "queued", hint: "uncached prompt tokens sent and not yet prefilled", number: true, get: (pod) => pod.line[LINE.queued], show: (pod) => short(pod.line[LINE.queued]) },
  { name: "KV", hint: "KV cache in use", number: true, get: (pod) => pod.line[LINE.kv], show: (pod) => percent(pod.line[LINE.kv]) },
  { name: "hits", hint: "prompt tokens found in the pod's cache, lately", number: true, get: (pod) => pod.line[LINE.hit], show: (pod) => percent(pod.line[LINE.hit]) },
  { name: "reading", hint: "age of the last reading, where it is stale", number: true, get: (pod) => pod.line[LINE.age] ?? 1e9, show: reading, tone: (pod) => (pod.line[LINE.age] === 0 ? "" : "warn") },
];

const TONES = { ready: "good", ramp: "warn", probe: "warn", ejected: "bad", asleep: "dim" };

function reading(pod) {
  const age = pod.line[LINE.age];
  return age === null ? "none" : age === 0 ? "fresh" : `${age} s old`;
}

function ceiling(values) {
  const most = Math.max(4, ...values);
  return 2 ** Math.ceil(Math.log2(most));
}

export class Fleet {
  constructor(elements) {
    Object.assign(this, elements);
    this.pods = [];
    this.shown = [];
    this.view = "tiles";
    this.sort = { column: 0, isDown: false };
    this.filter.addEventListener("input", () => this.rebuild());
    this.paint.addEventListener("change", () => this.rebuild());
    this.asTiles.addEventListener("click", () => this.show("tiles"));
    this.asTable.addEventListener("click", () => this.show("table"));
  }

  setCards(cards) {
    const old = this.pods;
    this.pods = cards.map((card, place) => ({
      card,
      place,
      number: Number(card[CARD.id].replace(/\D/g, "")),
      words: [card[CARD.id], card[CARD.address], card[CARD.role], ...card[CARD.models], ...Object.entries(card[CARD.labels]).map((pair) => pair.join("="))].join(" ").toLowerCase(),
      line: old[place]?.line ?? [place, "ready", 0, 0, 0, 0, null, null, null, null, null],
    }));
  }

  /** Takes the lines of pods that changed. `isOther` if the fleet itself changed. */
  update(lines, isOther) {
    const before = this.filter.value ? this.pods.map((pod) => pod.line[LINE.standing]) : [];
    for (const line of lines) {
      const pod = this.pods[line[LINE.place]];
      if (pod) pod.line = line;
    }
    const isMoved = before.some((standing, place) => this.pods[place]?.line[LINE.standing] !== standing);
    if (isOther || isMoved) this.rebuild();
    else this.refresh(lines.map((line) => this.pods[line[LINE.place]]).filter(Boolean));
  }

  show(view) {
    this.view = view;
    this.asTiles.setAttribute("aria-pressed", view === "tiles");
    this.asTable.setAttribute("aria-pressed", view === "table");
    this.rebuild();
  }

  /** Builds the view anew: other pods, another filter, another view. */
  rebuild() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.shown = this.pods.filter((pod) => words.every((word) => `${pod.words} ${pod.line[LINE.standing]}`.includes(word)));
    const top = this.parent.firstElementChild?.scrollTop ?? 0;
    this.view === "tiles" ? this.buildTiles() : this.buildTable();
    if (this.parent.firstElementChild) this.parent.firstElementChild.scrollTop = top;
    this.refresh(this.shown);
  }

  refresh(changed) {
    this.summarise();
    if (this.view === "table") return this.drawTable();
    const paint = PAINTS[this.paint.value];
    const max = paint.max(this.shown.map((pod) => paint.get(pod) ?? 0));
    const isRescaled = max !== this.max;
    this.max = max;
    this.scale.replaceChildren(paint.format(0), make("i"), paint.format(max));
    for (const pod of isRescaled ? this.shown : changed) this.drawTile(pod, paint, max);
    this.tell();
  }

  summarise() {
    const count = {};
    for (const pod of this.pods) count[pod.line[LINE.standing]] = (count[pod.line[LINE.standing]] ?? 0) + 1;
    const roles = new Set(this.pods.map((pod) => pod.card[CARD.role]));
    const words = Object.entries(count).map(([standing, number]) => `${number} ${standing}`);
    if (roles.size > 1) words.push([...roles].map((role) => `${this.pods.filter((pod) => pod.card[CARD.role] === role).length} ${role}`).join(" / "));
    if (this.shown.length !== this.pods.length) words.push(`${this.shown.length} shown`);
    this.sum.textContent = this.pods.length ? `${this.pods.length} pods: ${words.join(", ")}` : "no pods";
  }

  buildTiles() {
    const count = this.shown.length;
    this.size = count <= LARGE_MAX ? "large" : count <= MEDIUM_MAX ? "medium" : "small";
    const tiles = make("div", `tiles ${this.size}`);
    tiles.tabIndex = 0;
    tiles.setAttribute("role", "listbox");
    tiles.setAttribute("aria-label", "Pods");
    for (const pod of this.shown) {
      pod.tile = make("div", "tile");
      pod.tile.id = `tile-${pod.place}`;
      pod.tile.setAttribute("role", "option");
      tiles.append(pod.tile);
    }
    const podOf = (event) => this.pods[event.target.closest(".tile")?.id.slice(5)];
    tiles.addEventListener("pointerover", (event) => this.point(podOf(event)));
    tiles.addEventListener("click", (event) => this.point(podOf(event)));
    tiles.addEventListener("keydown", (event) => this.move(event, tiles));
    this.tiles = tiles;
    this.parent.className = this.pods.length <= FEW_MAX ? "few" : this.pods.length <= SOME_MAX ? "some" : "";
    this.parent.replaceChildren(count ? tiles : make("p", "note", this.pods.length ? "No pod matches the filter." : "The gate knows no pods."));
    if (!this.shown.includes(this.active)) this.active = undefined;
    this.point(this.active);
  }

  move(event, tiles) {
    const columns = getComputedStyle(tiles).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const place = this.shown.indexOf(this.active) + step;
    this.point(this.shown[Math.min(Math.max(place, 0), this.shown.length - 1)]);
    this.active?.tile.scrollIntoView({ block: "nearest" });
  }

  point(pod) {
    if (!pod) return;
    this.active?.tile?.classList.remove("active");
    this.active?.tile?.setAttribute("aria-selected", "false");
    this.active = pod;
    pod.tile.classList.add("active");
    pod.tile.setAttribute("aria-selected", "true");
    this.tiles.setAttribute("aria-activedescendant", pod.tile.id);
    this.tell();
  }

  drawTile(pod, paint, max) {
    const { tile, line, card } = pod;
    if (!tile) return;
    const value = paint.get(pod);
    const standing = line[LINE.standing];
    const heat = value === null ? "unknown" : `q${Math.round(Math.min(value / max, 1) * 8)}`;
    const active = pod === this.active ? " active" : "";
    tile.className = `tile ${standing}${active} ${this.size === "large" ? "" : heat}`;
    tile.setAttribute("aria-label", `${card[CARD.id]}, ${standing}, ${paint.format(value)}`);
    if (this.size === "medium") tile.replaceChildren(make("div", "", card[CARD.id].replace("pod-", "#"), mark(card)), make("div", "", standing === "ready" ? paint.format(value) : standing));
    if (this.size === "large") tile.replaceChildren(...largeTile(pod));
  }

  /** The numbers of the pod that is pointed at. */
  tell() {
    const pod = this.active;
    if (!pod || !this.shown.includes(pod)) return;
    const { card, line } = pod;
    const labels = Object.entries(card[CARD.labels]).map((pair) => pair.join("=")).join(" ");
    const parts = [
      ["", card[CARD.id]], ["at ", card[CARD.address]], ["", line[LINE.standing]], ["role ", card[CARD.role]],
      ["running ", short(line[LINE.running])], ["waiting ", short(line[LINE.waiting])],
      ["ours ", short(line[LINE.requests])], ["in prefill ", short(line[LINE.prefilling])],
      ["tokens in flight ", short(line[LINE.context])], ["to prefill ", short(line[LINE.queued])],
      ["KV ", `${percent(line[LINE.kv])} of ${short(card[CARD.capacity])}`], ["hits ", percent(line[LINE.hit])], ["reading ", reading(pod)],
      ["serves ", card[CARD.models].join(", ") || "not known yet"], ["", card[CARD.version] ? `vLLM ${card[CARD.version]}` : ""], ["", labels],
    ];
    if (card[CARD.rank] !== null) parts.splice(4, 0, ["rank ", String(card[CARD.rank])]);
    this.detail.replaceChildren(...parts.filter(([, value]) => value).flatMap(([name, value], place) => [place ? " · " : "", name, make("b", "", value)]));
  }

  buildTable() {
    const head = make("tr");
    COLUMNS.forEach((column, place) => {
      const button = make("button", "", column.name);
      button.type = "button";
      button.addEventListener("click", () => {
        this.sort = { column: place, isDown: this.sort.column === place ? !this.sort.isDown : Boolean(column.number) };
        this.sorted();
      });
      const cell = make("th", column.number ? "num" : "", button);
      cell.scope = "col";
      if (column.hint) cell.title = column.hint;
      if (column.width) cell.style.width = `${column.width}px`;
      head.append(cell);
    });
    this.body = make("tbody");
    const table = make("table", "fixed", make("thead", "", head), this.body);
    table.setAttribute("aria-rowcount", this.shown.length + 1);
    this.scroller = make("div", "scroll", table);
    this.scroller.style.height = "100%";
    this.scroller.tabIndex = 0;
    this.scroller.setAttribute("role", "region");
    this.scroller.setAttribute("aria-label", "Pods");
    this.scroller.addEventListener("scroll", () => this.drawTable());
    this.head = head;
    this.parent.replaceChildren(this.scroller);
    this.detail.textContent = "Running, waiting, KV and hits are what the pods say of themselves; ours is what this gate has sent and not seen end.";
    this.sorted();
  }

  sorted() {
    [...this.head.children].forEach((cell, place) => {
      if (place === this.sort.column) cell.setAttribute("aria-sort", this.sort.isDown ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    this.drawTable();
  }

  /** Draws the rows in sight; two spacers stand for the rest. */
  drawTable() {
    const { get } = COLUMNS[this.sort.column];
    const sign = this.sort.isDown ? -1 : 1;
    const order = (a, b) => (a === b ? 0 : (a ?? -1) > (b ?? -1) ? 1 : -1);
    const pods = [...this.shown].sort((a, b) => sign * order(get(a), get(b)) || a.number - b.number);
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - 4);
    const last = Math.min(pods.length, first + Math.ceil(this.scroller.clientHeight / ROW) + 8);
    const rows = pods.slice(first, last).map((pod, place) => {
      const row = make("tr", "", ...COLUMNS.map((column) => {
        const cell = make("td", `${column.number ? "num " : ""}${column.tone?.(pod) ?? ""}`, String((column.show ?? column.get)(pod) ?? "–"));
        return cell;
      }));
      row.setAttribute("aria-rowindex", first + place + 2);
      return row;
    });
    this.body.replaceChildren(spacer(first), ...rows, spacer(pods.length - last));
  }
}

function spacer(rows) {
  const cell = make("td");
  cell.colSpan = COLUMNS.length;
  cell.style.height = `${rows * ROW}px`;
  cell.style.padding = "0";
  const row = make("tr", "", cell);
  row.hidden = rows === 0;
  row.setAttribute("aria-hidden", "true");
  return row;
}

const mark = (card) => ({ prefill: " P", decode: " D" })[card[CARD.role]] ?? "";

function largeTile({ card, line }) {
  const meter = (name, value, className) => {
    const fill = make("b");
    fill.style.width = `${(value ?? 0) / 10}%`;
    return make("div", `meter ${className}`, make("span", "", name), make("i", "", fill), make("span", "", percent(value)));
  };
  const role = card[CARD.role] === "both" ? "" : ` ${card[CARD.role]}`;
  return [
    make("div", "head", make("b", "", card[CARD.id]), make("span", "standing", line[LINE.standing] + role), make("span", "dim", card[CARD.models][0] ?? "")),
    make("div", "load", `${short(line[LINE.running])} running, ${short(line[LINE.waiting])} waiting`),
    make("div", "load dim", `${short(line[LINE.requests])} ours, ${short(line[LINE.context])} tokens`),
    meter("KV", line[LINE.kv], ""),
    meter("hits", line[LINE.hit], "hit"),
  ];
}
