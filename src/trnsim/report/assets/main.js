"use strict";
// Puts the panels together, and answers keys, search and tabs.

class App {
  constructor() {
    this.description = JSON.parse(this.find("description").textContent);
    Call.engineNames = this.description.engineNames;
    this.loaded = [];
    this.history = [];
    this.timeline = new Timeline(document, {
      select: (hit) => this.select(hit),
      hover: (hit, x, y) => this.hover(hit, x, y),
    });
    this.makeTabs();
    this.listen();
  }

  find(id) { return document.getElementById(id); }

  makeTabs() {
    const calls = this.description.calls;
    const tabs = calls.map(({ report: r }, i) => h("button", {
      type: "button", role: "tab", id: `tab-${i}`, onclick: () => this.show(i), "aria-controls": "call",
      title: `${r.kernel}, ${r.chip}`,
    }, `${calls.length > 1 ? `${i + 1}. ` : ""}${r.kernel}  ${us(r.time_us)}`));
    this.find("tabs").replaceChildren(...tabs);
    this.find("tabs").addEventListener("keydown", (e) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
      if (!step) return;
      e.stopPropagation();
      const next = (this.current + step + tabs.length) % tabs.length;
      this.show(next).then(() => tabs[next].focus());
    });
  }

  async show(i) {
    this.current = i;
    for (const [j, tab] of [...this.find("tabs").children].entries()) {
      tab.setAttribute("aria-selected", String(j === i));
      tab.tabIndex = j === i ? 0 : -1;
    }
    this.loaded[i] ??= await Call.load(this.description.calls[i], this.find(`data-${i}`).textContent);
    if (this.current !== i) return;
    const call = (this.call = this.loaded[i]);
    call.matches = null;
    this.history = [];
    this.find("search").value = "";
    this.find("matches").textContent = "";
    this.find("summary").replaceChildren(...summaryPanel(call));
    this.find("findings").replaceChildren(...findingsPanel(call));
    this.find("memory").replaceChildren(...memoryPanel(call));
    this.find("about").replaceChildren(aboutPanel(call, this.description.versions));
    this.find("note").textContent = call.leftOut ? `the last ${number(call.leftOut)} intervals are left out` : `${number(call.count)} intervals`;
    this.lines = new LinesTable(call, (line) => this.search("", line));
    this.find("lines").replaceChildren(this.lines.element);
    this.timeline.show(call);
    this.recolor();
    this.select(null);
  }

  /** The panels that show the canvas's colours. */
  recolor() {
    const { palette } = this.timeline;
    this.find("engines").replaceChildren(...enginesPanel(this.call, palette));
    this.find("legend").replaceChildren(...legendPanel(this.call, palette));
  }

  select(hit, reveal = false) {
    this.timeline.select(hit, reveal);
    this.find("details").replaceChildren(...detailsPanel(this.call, hit, (next) => this.jump(next)).filter(Boolean));
  }

  jump(hit) {
    if (this.timeline.selected) this.history.push(this.timeline.selected);
    this.select(hit, true);
  }

  hover(hit, x, y) {
    const tip = this.find("tooltip");
    tip.hidden = !hit;
    if (!hit) return;
    tip.textContent = tooltipText(this.call, hit);
    tip.style.left = `${Math.min(x + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(y + 16, window.innerHeight - tip.offsetHeight - 8)}px`;
  }

  search(query, line = 0) {
    const count = this.call.search(query, line);
    const what = line ? place(this.call.report.lines[line - 1]) : "";
    if (line) this.find("search").value = "";
    else if (this.lines.on) this.lines.mark(0);
    this.find("matches").textContent = query.trim() || line ? `${what} ${number(count)} match${count === 1 ? "" : "es"}`.trim() : "";
    this.timeline.repaintOverview();
    this.timeline.invalidate();
  }

  /** To the next (1) or previous (-1) match in time, from the selection or the middle of the view. */
  step(direction) {
    const { matches, start, count } = this.call;
    if (!matches) return;
    const selected = this.timeline.selected?.event;
    const now = selected === undefined ? (this.timeline.t0 + this.timeline.t1) / 2 : start[selected];
    // Matches in order of (start, event): the nearest one after (or before) the selection, else the first (or last).
    const after = (e, t, than) => (start[e] !== t ? start[e] > t : e > than) ;
    let best = -1;
    let edge = -1;
    for (let e = 0; e < count; e++) {
      if (!matches[e] || e === selected) continue;
      const later = after(e, now, selected ?? -1);
      if (later === (direction > 0)) { if (best < 0 || after(e, start[best], best) !== (direction > 0)) best = e; }
      if (edge < 0 || after(e, start[edge], edge) !== (direction > 0)) edge = e;
    }
    const target = best >= 0 ? best : edge;
    if (target >= 0) this.select({ event: target }, true);
  }

  neighbour(direction) {
    const e = this.timeline.selected?.event;
    if (e === undefined) return;
    const track = this.call.tracks[this.call.track[e]];
    const next = e + direction;
    if (next >= track.first && next < track.last) this.select({ event: next }, true);
  }

  listen() {
    const on = (id, type, action) => this.find(id).addEventListener(type, action);
    on("search", "input", (e) => this.search(e.target.value));
    on("search", "keydown", (e) => { if (e.key === "Enter") this.step(e.shiftKey ? -1 : 1); });
    on("next", "click", () => this.step(1));
    on("previous", "click", () => this.step(-1));
    on("zoom-in", "click", () => this.timeline.zoom(1.6));
    on("zoom-out", "click", () => this.timeline.zoom(1 / 1.6));
    on("fit", "click", () => this.timeline.fit());
    on("help-button", "click", () => this.find("help").showModal());
    this.timeline.dark.addEventListener("change", () => this.call && this.recolor());
    document.addEventListener("keydown", (e) => this.key(e));
  }

  key(e) {
    if (!this.call || e.ctrlKey || e.metaKey || e.altKey || this.find("help").open) return;
    if (e.key === "Escape") {
      this.find("search").value = "";
      this.lines.mark(0);
      this.search("");
      this.select(null);
      document.activeElement.blur();
      return;
    }
    if (e.target.matches("input")) return;
    const { timeline } = this;
    const actions = {
      "+": () => timeline.zoom(1.4), "=": () => timeline.zoom(1.4), "-": () => timeline.zoom(1 / 1.4), "_": () => timeline.zoom(1 / 1.4),
      ArrowLeft: () => timeline.pan(e.shiftKey ? -0.8 : -0.12), ArrowRight: () => timeline.pan(e.shiftKey ? 0.8 : 0.12),
      Home: () => timeline.pan(-1e9), End: () => timeline.pan(1e9),
      0: () => timeline.fit(), f: () => timeline.selected && this.zoomToSelection(),
      "[": () => this.neighbour(-1), "]": () => this.neighbour(1),
      n: () => this.step(1), N: () => this.step(-1),
      r: () => this.toReleaser(), b: () => this.history.length && this.select(this.history.pop(), true),
      "/": () => this.find("search").focus(), "?": () => this.find("help").showModal(),
    };
    if (!Object.hasOwn(actions, e.key)) return;
    e.preventDefault();
    actions[e.key]();
  }

  zoomToSelection() {
    const { call, timeline } = this;
    const { event, wait } = timeline.selected;
    const [a, b] = event === undefined ? [call.waits.start[wait], call.waits.end[wait]] : [call.start[event], call.end[event]];
    timeline.setRange(a - (b - a), b + (b - a));
  }

  toReleaser() {
    const hit = this.timeline.selected;
    if (!hit) return;
    const w = hit.wait ?? this.call.waitOf[hit.event];
    if (w >= 0 && this.call.waits.released[w] >= 0) this.jump({ event: this.call.waits.released[w] });
  }

  /** Times frames at all zooms (?bench=1): draws and reads a pixel back, so that the drawing is really done. */
  bench(frames) {
    const { timeline } = this;
    const times = [];
    const whole = timeline.limit;
    for (let i = 0; i < frames; i++) {
      const depth = (i / frames) * 3.5; // from the whole call to 1/3000 of it
      const span = whole / 10 ** depth;
      const middle = whole * (0.3 + 0.4 * ((i * 0.618) % 1));
      const before = performance.now();
      timeline.t0 = middle - span / 2;
      timeline.t1 = middle + span / 2;
      timeline.draw();
      timeline.context.getImageData(0, 0, 1, 1);
      times.push(performance.now() - before);
    }
    timeline.fit();
    const sorted = [...times].sort((a, b) => a - b);
    const mean = times.reduce((a, b) => a + b, 0) / frames;
    const report = { frames, mean, median: sorted[frames >> 1], p95: sorted[Math.floor(frames * 0.95)], worst: sorted[frames - 1],
      events: this.call.count, width: timeline.main.width, height: timeline.main.height, wholeCall: times.slice(0, 5) };
    document.body.append(h("pre", { id: "bench" }, JSON.stringify(report)));
    document.title = `bench ${mean.toFixed(2)} ms per frame`;
  }
}

(async () => {
  const fail = (text) => document.getElementById("call").prepend(h("p.finding.error", {}, text));
  if (typeof DecompressionStream === "undefined") return fail("This report needs a browser of 2023 or later.");
  try {
    const app = new App();
    if (!app.description.calls.length) return fail("No kernel was called.");
    await app.show(0);
    const frames = Number(new URLSearchParams(location.search).get("bench"));
    if (frames) app.bench(frames > 1 ? frames : 120);
    window.trnsim = app;
  } catch (error) {
    fail(`The report could not be read: ${error.message}`);
    throw error;
  }
})();
