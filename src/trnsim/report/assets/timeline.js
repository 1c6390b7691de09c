"use strict";
// The timeline: one row an engine and DMA ring, memory below, an overview above; zooming, panning, selecting.

const GUTTER = 116;
const AXIS = 26;
const ENGINE_ROW = 26;
const RING_ROW = 15;
const CHART_ROW = 58;
const GAP = 4;
const CORE_ROW = 20;

class Timeline {
  /** `events`: {select(hit), hover(hit, x, y)} */
  constructor(root, events) {
    this.main = root.querySelector("#timeline");
    this.overview = root.querySelector("#overview");
    this.events = events;
    this.context = this.main.getContext("2d", { alpha: false });
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => this.retheme());
    new ResizeObserver(() => this.resize()).observe(this.main.parentElement);
    this.pointers = new Map();
    this.listen();
  }

  show(call) {
    this.call = call;
    this.selected = null;
    this.t0 = 0;
    this.t1 = this.limit = Math.max(call.totalPs, 1);
    this.layout();
    this.retheme();
  }

  retheme() {
    if (!this.call) return;
    this.palette = new Palette(this.call, this.dark.matches, this.context);
    this.painter = new TrackPainter(this.call, this.palette);
    this.overviewPainter = new TrackPainter(this.call, this.palette);
    this.resize();
  }

  /** Rows from top to bottom, in CSS pixels: tracks with anything in them, then charts. */
  layout() {
    const { call } = this;
    const cores = [...new Set(call.tracks.map((t) => t.core))];
    this.rows = [];
    this.charts = [];
    this.headings = [];
    let y = AXIS + GAP;
    for (const core of cores) {
      if (cores.length > 1) { this.headings.push({ y, text: `core ${core}` }); y += CORE_ROW; }
      for (const [i, track] of call.tracks.entries()) {
        if (track.core !== core || !track.events) continue;
        const height = track.kind === "dma" ? RING_ROW : ENGINE_ROW;
        this.rows.push({ track: i, y, height });
        y += height + GAP;
      }
    }
    const chart = (c) => { this.charts.push({ ...c, y, height: CHART_ROW }); y += CHART_ROW + GAP + 4; };
    for (const m of call.memory) {
      const name = m.memory.toUpperCase() + (cores.length > 1 ? ` core ${m.core}` : "");
      chart({ name, hue: m.memory === "sbuf" ? 217 : 152, memory: m, limit: m.capacity_bytes_per_partition });
    }
    if (call.bandwidth.length) {
      const seconds = (this.limit / call.bandwidth.length) * 1e-12;
      const peak = call.bandwidth.reduce((a, b) => Math.max(a, b), 0) / seconds;
      chart({ name: "HBM traffic", hue: 188, rate: seconds, peak, limit: call.hbmPeak });
    }
    this.height = y + 2;
    this.main.style.height = `${this.height}px`;
  }

  resize() {
    if (!this.call) return;
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.main, this.overview]) {
      canvas.width = Math.round(canvas.clientWidth * ratio);
      canvas.height = Math.round(canvas.clientHeight * ratio);
    }
    this.ratio = ratio;
    this.repaintOverview();
    this.invalidate();
  }

  get plot() { return this.main.clientWidth - GUTTER; }

  invalidate() {
    this.pending ??= requestAnimationFrame(() => { this.pending = null; this.draw(); });
  }

  draw() {
    const { context: c, ratio, call, palette } = this;
    if (!call || this.plot < 10) return;
    const width = Math.floor(this.plot * ratio);
    const x0 = Math.round(GUTTER * ratio);
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.fillStyle = palette.panel;
    c.fillRect(0, 0, this.main.width, this.main.height);
    c.fillStyle = palette.row;
    const rows = this.rows.map(({ track, y, height }) => ({ track, y: Math.round(y * ratio), height: Math.round(height * ratio) }));
    for (const row of rows) c.fillRect(x0, row.y, width, row.height);
    for (const chart of this.charts) c.fillRect(x0, chart.y * ratio, width, chart.height * ratio);
    this.drawAxis(c, x0, width);
    this.painter.paint(c, rows, x0, width, this.t0, this.t1, true, 11 * ratio);
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (const chart of this.charts) this.drawChart(c, chart);
    this.drawSelection(c);
    this.drawLabels(c);
    this.drawOverview();
  }

  x(t) { return GUTTER + ((t - this.t0) * this.plot) / (this.t1 - this.t0); }
  time(x) { return this.t0 + ((x - GUTTER) * (this.t1 - this.t0)) / this.plot; }

  drawAxis(c, x0, width) {
    const { ratio, palette } = this;
    const rough = ((this.t1 - this.t0) / this.plot) * 110;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.strokeStyle = palette.line;
    c.fillStyle = palette.muted;
    c.font = "11px system-ui, sans-serif";
    c.textBaseline = "middle";
    c.textAlign = "center";
    c.lineWidth = 1;
    c.beginPath();
    // One unit for all ticks, with the decimals that the step needs.
    const [unit, size] = step >= 1e9 ? ["ms", 1e9] : step >= 1e4 ? ["us", 1e6] : ["ns", 1e3];
    const digits = Math.max(0, -Math.floor(Math.log10(step / size) + 1e-9));
    for (let t = Math.ceil(this.t0 / step) * step; t <= this.t1; t += step) {
      const x = Math.round(this.x(t)) + 0.5;
      c.moveTo(x, AXIS - 5);
      c.lineTo(x, this.height);
      if (x > GUTTER + 16 && x < GUTTER + this.plot - 30) c.fillText(`${number(t / size, digits)} ${unit}`, x, AXIS / 2 - 1);
    }
    c.stroke();
    c.setTransform(1, 0, 0, 1, 0, 0);
  }

  drawChart(c, chart) {
    const { plot, palette } = this;
    const top = chart.y + 3;
    const bottom = chart.y + chart.height;
    const m = chart.memory;
    const scaleTo = m ? Math.max(m.peak_bytes_per_partition, chart.limit, 1) : Math.max(chart.peak, chart.limit, 1);
    const y = (value) => bottom - (value / scaleTo) * (bottom - top);
    const color = hsl(chart.hue, 0.55, palette.dark ? 0.55 : 0.5);
    c.fillStyle = css(color, 0.35);
    c.strokeStyle = css(color);
    c.beginPath();
    c.moveTo(GUTTER, bottom);
    // The largest value within each pixel, so that a short peak is never lost.
    const values = m ? m.bytes : this.call.bandwidth;
    let i = m ? firstAbove(m.time, this.t0, 0, m.time.length) - 1 : 0;
    for (let px = 0; px < plot; px++) {
      const until = this.t0 + ((px + 1) * (this.t1 - this.t0)) / plot;
      let value = 0;
      if (m) {
        value = i >= 0 ? m.bytes[i] : 0;
        while (i + 1 < m.time.length && m.time[i + 1] <= until) value = Math.max(value, m.bytes[++i]);
      } else {
        const bin = (t) => Math.min(Math.max(Math.floor((t / this.limit) * values.length), 0), values.length - 1);
        const from = bin(this.t0 + (px * (this.t1 - this.t0)) / plot);
        for (let b = from; b <= Math.max(from, bin(until) - 1); b++) value = Math.max(value, values[b]);
        value /= chart.rate;
      }
      c.lineTo(GUTTER + px, y(value));
      c.lineTo(GUTTER + px + 1, y(value));
    }
    c.lineTo(GUTTER + plot, bottom);
    c.fill();
    c.stroke();
    if (chart.limit) {
      c.strokeStyle = m && m.peak_bytes_per_partition > chart.limit ? palette.alarm : palette.muted;
      c.setLineDash([5, 4]);
      c.beginPath();
      c.moveTo(GUTTER, y(chart.limit) + 0.5);
      c.lineTo(GUTTER + plot, y(chart.limit) + 0.5);
      c.stroke();
      c.setLineDash([]);
    }
  }

  /** The gutter, over anything that reaches into it. */
  drawLabels(c) {
    const { palette, call } = this;
    c.fillStyle = palette.panel;
    c.fillRect(0, 0, GUTTER - 4, this.height);
    c.textBaseline = "middle";
    c.textAlign = "right";
    for (const { track, y, height } of this.rows) {
      const engine = height === ENGINE_ROW;
      c.font = engine ? "600 12px system-ui, sans-serif" : "10.5px system-ui, sans-serif";
      c.fillStyle = engine ? palette.text : palette.muted;
      c.fillText(call.tracks[track].label, GUTTER - 10, y + height / 2, GUTTER - 14);
    }
    for (const chart of this.charts) {
      const show = (v) => (chart.memory ? formatBytes(v) : `${number(v / 1e9)} GB/s`);
      const peak = chart.memory ? chart.memory.peak_bytes_per_partition : chart.peak;
      const lines = [[chart.name, true], [`peak ${show(peak)}`], chart.limit ? [`of ${show(chart.limit)}`] : [""]];
      for (const [i, [text, bold]] of lines.entries()) {
        c.font = bold ? "600 12px system-ui, sans-serif" : "10.5px system-ui, sans-serif";
        c.fillStyle = bold ? palette.text : palette.muted;
        c.fillText(text, GUTTER - 10, chart.y + 12 + 17 * i, GUTTER - 14);
      }
    }
    c.textAlign = "left";
    c.font = "600 11px system-ui, sans-serif";
    c.fillStyle = palette.muted;
    for (const { y, text } of this.headings) c.fillText(text.toUpperCase(), 8, y + CORE_ROW / 2);
  }

  rowOf(track) { return this.rows.find((r) => r.track === track); }

  drawSelection(c) {
    const { call, selected, palette } = this;
    if (!selected) return;
    c.save();
    c.beginPath();
    c.rect(GUTTER, 0, this.plot, this.height);
    c.clip();
    c.strokeStyle = palette.text;
    c.lineWidth = 2;
    const box = (start, end, row) => {
      const x = this.x(start);
      c.strokeRect(x - 1, row.y - 1, Math.max(this.x(end) - x, 2) + 2, row.height + 2);
    };
    const { waits } = call;
    const w = selected.wait ?? call.waitOf[selected.event];
    if (selected.event !== undefined) box(call.start[selected.event], call.end[selected.event], this.rowOf(call.track[selected.event]));
    else if (waits.before[w] >= 0) box(waits.start[w], waits.end[w], this.rowOf(call.track[waits.before[w]]));
    c.lineWidth = 1.5;
    const link = (from, to) => {
      const a = this.rowOf(call.track[from]);
      const b = this.rowOf(call.track[to]);
      const x1 = this.x(call.done[from]);
      const y1 = a.y + a.height / 2;
      const x2 = this.x(call.start[to]);
      const y2 = b.y + b.height / 2;
      const bend = Math.max(12, Math.min(60, Math.abs(x2 - x1) / 2));
      c.beginPath();
      c.moveTo(x1, y1);
      c.bezierCurveTo(x1 + bend, y1, x2 - bend, y2, x2, y2);
      c.stroke();
      c.beginPath();
      c.moveTo(x2, y2);
      c.lineTo(x2 - 6, y2 - 4);
      c.lineTo(x2 - 6, y2 + 4);
      c.fillStyle = palette.text;
      c.fill();
    };
    if (w >= 0 && waits.released[w] >= 0 && waits.before[w] >= 0) link(waits.released[w], waits.before[w]);
    if (selected.event !== undefined) {
      for (const r of call.releasedBy(selected.event).slice(0, 20)) if (waits.before[r] >= 0) link(selected.event, waits.before[r]);
    }
    c.restore();
  }

  repaintOverview() {
    const { overview, ratio } = this;
    this.cache = document.createElement("canvas");
    this.cache.width = overview.width;
    this.cache.height = overview.height;
    const c = this.cache.getContext("2d");
    c.fillStyle = this.palette.row;
    c.fillRect(0, 0, overview.width, overview.height);
    const x0 = Math.round(GUTTER * ratio);
    const height = overview.height / Math.max(this.rows.length, 1);
    const rows = this.rows.map(({ track }, i) => ({ track, y: Math.floor(i * height), height: Math.max(1, Math.floor(height * 0.8)) }));
    this.overviewPainter.paint(c, rows, x0, Math.floor(this.plot * ratio), 0, this.limit, false, 0);
  }

  drawOverview() {
    const { overview, ratio, palette } = this;
    const c = overview.getContext("2d");
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.drawImage(this.cache, 0, 0);
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.fillStyle = palette.panel;
    c.fillRect(0, 0, GUTTER - 4, overview.clientHeight);
    c.fillStyle = palette.muted;
    c.font = "11px system-ui, sans-serif";
    c.textAlign = "right";
    c.textBaseline = "middle";
    c.fillText("overview", GUTTER - 10, overview.clientHeight / 2);
    const a = GUTTER + (Math.max(this.t0, 0) / this.limit) * this.plot;
    const b = GUTTER + (Math.min(this.t1, this.limit) / this.limit) * this.plot;
    c.fillStyle = palette.dark ? "rgba(0,0,0,0.55)" : "rgba(255,255,255,0.65)";
    c.fillRect(GUTTER, 0, a - GUTTER, overview.clientHeight);
    c.fillRect(b, 0, GUTTER + this.plot - b, overview.clientHeight);
    c.strokeStyle = palette.accent;
    c.lineWidth = 2;
    c.strokeRect(a, 1, Math.max(b - a, 2), overview.clientHeight - 2);
  }

  setRange(t0, t1) {
    const span = Math.min(Math.max(t1 - t0, 2000), this.limit * 1.04);
    const middle = (t0 + t1) / 2;
    const margin = this.limit * 0.02;
    this.t0 = Math.min(Math.max(middle - span / 2, -margin), this.limit + margin - span);
    this.t1 = this.t0 + span;
    this.invalidate();
  }

  zoom(factor, x = GUTTER + this.plot / 2) {
    const t = this.time(x);
    this.setRange(t - (t - this.t0) / factor, t + (this.t1 - t) / factor);
  }

  pan(fraction) {
    const by = fraction * (this.t1 - this.t0);
    this.setRange(this.t0 + by, this.t1 + by);
  }

  fit() { this.setRange(0, this.limit); }

  /** Brings an interval into view, zooming only where it would be too small or too large to see. */
  reveal(start, end) {
    const span = this.t1 - this.t0;
    const length = Math.max(end - start, 1000);
    const wanted = length * this.plot < 8 * span ? length * 40 : length > span ? length * 1.6 : span;
    const middle = (start + end) / 2;
    if (wanted !== span || start < this.t0 || end > this.t1) this.setRange(middle - wanted / 2, middle + wanted / 2);
    else this.invalidate();
  }

  select(hit, reveal = false) {
    this.selected = hit;
    if (hit && reveal) {
      const w = this.call.waits;
      if (hit.event !== undefined) this.reveal(this.call.start[hit.event], this.call.end[hit.event]);
      else this.reveal(w.start[hit.wait], w.end[hit.wait]);
    }
    this.invalidate();
  }

  hit(x, y) {
    const row = this.rows.find((r) => y >= r.y - GAP / 2 && y < r.y + r.height + GAP / 2);
    if (!row || x < GUTTER) return null;
    return this.call.at(row.track, this.time(x), (4 * (this.t1 - this.t0)) / this.plot);
  }

  listen() {
    const { main, overview, pointers } = this;
    const at = (e, canvas = main) => {
      const box = canvas.getBoundingClientRect();
      return [e.clientX - box.left, e.clientY - box.top];
    };
    main.addEventListener("wheel", (e) => {
      e.preventDefault();
      const unit = e.deltaMode === 1 ? 20 : e.deltaMode === 2 ? 400 : 1;
      if (e.shiftKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) this.pan(((e.deltaX || e.deltaY) * unit) / this.plot);
      else this.zoom(Math.exp(-e.deltaY * unit * (e.ctrlKey ? 0.01 : 0.0022)), at(e)[0]);
    }, { passive: false });
    main.addEventListener("pointerdown", (e) => {
      main.setPointerCapture(e.pointerId);
      pointers.set(e.pointerId, at(e));
      this.moved = 0;
    });
    main.addEventListener("pointermove", (e) => {
      const now = at(e);
      const before = pointers.get(e.pointerId);
      if (!before) { this.events.hover(this.hit(...now), e.clientX, e.clientY); return; }
      this.moved += Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]);
      if (pointers.size === 1) this.pan((before[0] - now[0]) / this.plot);
      else {
        const [other] = [...pointers].filter(([id]) => id !== e.pointerId).map(([, p]) => p);
        const spread = (p) => Math.max(Math.hypot(p[0] - other[0], p[1] - other[1]), 10);
        this.zoom(spread(now) / spread(before), (now[0] + other[0]) / 2);
      }
      pointers.set(e.pointerId, now);
      this.events.hover(null);
    });
    const up = (e) => {
      if (pointers.delete(e.pointerId) && e.type === "pointerup" && this.moved < 5) this.events.select(this.hit(...at(e)));
    };
    main.addEventListener("pointerup", up);
    main.addEventListener("pointercancel", up);
    main.addEventListener("pointerleave", () => this.events.hover(null));
    main.addEventListener("dblclick", (e) => this.zoom(4, at(e)[0]));
    const jump = (e) => {
      const t = ((at(e, overview)[0] - GUTTER) / this.plot) * this.limit;
      const half = (this.t1 - this.t0) / 2;
      this.setRange(t - half, t + half);
    };
    overview.addEventListener("pointerdown", (e) => { overview.setPointerCapture(e.pointerId); jump(e); });
    overview.addEventListener("pointermove", (e) => { if (e.buttons) jump(e); });
  }
}
