"use strict";
// The columns of a call, unpacked, and what is looked up in them. Times are picoseconds.

/** base64 of deflated bytes -> ArrayBuffer */
async function inflate(text) {
  const packed = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** The inverse of packing.Packer: byte planes and differences back into typed arrays, by name. */
function unpack(manifest, buffer) {
  const bytes = new Uint8Array(buffer);
  const columns = {};
  let at = 0;
  for (const { name, width, length, delta } of manifest) {
    const plane = (k) => bytes.subarray(at + k * length, at + (k + 1) * length);
    const Kind = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: Float64Array }[width];
    const values = new Kind(length);
    const planes = Array.from({ length: width }, (_, k) => plane(k));
    for (let i = 0; i < length; i++) {
      let low = 0;
      for (let k = Math.min(width, 4) - 1; k >= 0; k--) low = (low << 8) | planes[k][i];
      if (width === 8) {
        const high = (planes[7][i] << 24) | (planes[6][i] << 16) | (planes[5][i] << 8) | planes[4][i];
        values[i] = high * 4294967296 + (low >>> 0);
      } else values[i] = low;
    }
    // Typed arrays wrap around at their width, as the differences did.
    if (delta) for (let i = 1; i < length; i++) values[i] += values[i - 1];
    columns[name] = values;
    at += width * length;
  }
  return columns;
}

/** Index of the first of values[first..last) that is greater than x. */
function firstAbove(values, x, first, last) {
  while (first < last) {
    const middle = (first + last) >>> 1;
    if (values[middle] > x) last = middle;
    else first = middle + 1;
  }
  return first;
}

/** One kernel call: its description, typed columns, and indexes over them. */
class Call {
  static async load(description, text) {
    return new Call(description, unpack(description.columns, await inflate(text)));
  }

  constructor(description, columns) {
    Object.assign(this, description);
    const c = (name) => columns[name];
    const count = c("events.start").length;
    this.count = count;
    this.start = Float64Array.from(c("events.start"));
    this.end = new Float64Array(count);
    this.done = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      this.end[i] = this.start[i] + c("events.length")[i];
      this.done[i] = this.end[i] + c("events.latency")[i];
    }
    this.opcode = c("events.opcode");
    this.line = c("events.line");
    this.instruction = c("events.instruction");
    this.bytes = c("events.bytes");
    this.track = new Uint16Array(count);
    const waits = c("waits.start").length;
    this.waits = {
      start: Float64Array.from(c("waits.start")),
      end: new Float64Array(waits),
      reason: c("waits.reason"),
      before: Float64Array.from(c("waits.before"), (x) => x - 1),
      released: Float64Array.from(c("waits.released"), (x) => x - 1),
    };
    for (let i = 0; i < waits; i++) this.waits.end[i] = this.waits.start[i] + c("waits.length")[i];
    this.columns = columns;
    this.indexTracks();
    this.indexWaits(waits);
    this.memory = this.report.memory.map((m, i) => ({
      ...m, time: Float64Array.from(c(`memory${i}.time`)), bytes: c(`memory${i}.bytes`),
    }));
    this.bandwidth = c("bandwidth");
    this.matches = null; // Uint8Array over events while a search is on
  }

  indexTracks() {
    let event = 0;
    let wait = 0;
    // For binary search: the latest end so far, which rises even where intervals of a ring overlap.
    this.reached = new Float64Array(this.count);
    for (const [i, track] of this.tracks.entries()) {
      track.first = event;
      track.last = event += track.events;
      track.firstWait = wait;
      track.lastWait = wait += track.waits;
      track.label = track.kind === "dma" ? track.name : this.names[track.name] || track.name;
      track.family = track.kind === "dma" ? "dma" : track.name;
      this.track.fill(i, track.first, track.last);
      let latest = -Infinity;
      for (let e = track.first; e < track.last; e++) this.reached[e] = latest = Math.max(latest, this.end[e]);
    }
  }

  get names() { return Call.engineNames; }

  /** waitOf[event]: the wait that it ended (-1 none); releasedBy(event): the waits that it released. */
  indexWaits(count) {
    this.waitOf = new Int32Array(this.count).fill(-1);
    this.releasedFirst = new Uint32Array(this.count + 1);
    const { before, released } = this.waits;
    for (let w = 0; w < count; w++) {
      if (before[w] >= 0) this.waitOf[before[w]] = w;
      if (released[w] >= 0) this.releasedFirst[released[w] + 1]++;
    }
    for (let e = 0; e < this.count; e++) this.releasedFirst[e + 1] += this.releasedFirst[e];
    const next = this.releasedFirst.slice();
    this.releasedWaits = new Uint32Array(this.releasedFirst[this.count]);
    for (let w = 0; w < count; w++) if (released[w] >= 0) this.releasedWaits[next[released[w]]++] = w;
  }

  releasedBy(event) {
    return this.releasedWaits.subarray(this.releasedFirst[event], this.releasedFirst[event + 1]);
  }

  lineOf(event) { return this.line[event] ? this.report.lines[this.line[event] - 1] : null; }

  /** {name, operands: [...]} of the instruction behind an event, or null. */
  instructionOf(event) {
    const core = this.tracks[this.track[event]].core;
    const table = this.traces[core];
    if (!this.instruction[event] || !table) return null;
    const column = (name) => this.columns[`trace${core}.${name}`];
    const row = this.instruction[event] - 1;
    const described = table.classes[column("class")[row]];
    const first = column("operand")[row];
    const operands = described.operands.map(([name, role], i) => ({
      name,
      role,
      storage: column("storage")[first + i] ? table.storages[column("storage")[first + i] - 1] : "",
      start: column("partition")[first + i],
      offset: column("offset")[first + i],
      ...table.forms[column("form")[first + i]],
    }));
    return { name: described.name, row, operands };
  }

  /** The event or wait of a track at time t, or the nearest within `slack`: {event} or {wait} or null. */
  at(trackNumber, t, slack) {
    const track = this.tracks[trackNumber];
    let best = null;
    let distance = Infinity;
    let e = firstAbove(this.reached, t - slack, track.first, track.last);
    for (; e < track.last && this.start[e] <= t + slack; e++) {
      const d = t < this.start[e] ? this.start[e] - t : t > this.end[e] ? t - this.end[e] : 0;
      if (d <= slack && d <= distance) { best = { event: e }; distance = d; }
    }
    if (best && distance === 0) return best;
    const w = firstAbove(this.waits.end, t, track.firstWait, track.lastWait);
    if (w < track.lastWait && this.waits.start[w] <= t && this.waits.end[w] - this.waits.start[w] > 4 * slack) return { wait: w };
    return best || (w < track.lastWait && this.waits.start[w] <= t ? { wait: w } : null);
  }

  /** Marks the events that a query or a source line (1-based place in the report) names; returns how many. */
  search(query, line = 0) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length && !line) { this.matches = null; return 0; }
    const has = (text) => words.every((word) => text.toLowerCase().includes(word));
    const opcodes = this.opcodes.map(has);
    const lines = [false, ...this.report.lines.map((l) => words.length > 0 && has(`${l.file}:${l.line} ${l.function} ${l.text}`))];
    const classes = this.traces.map((t) => t.classes.map((k) => has(k.name)));
    this.matches = new Uint8Array(this.count);
    let count = 0;
    for (let e = 0; e < this.count; e++) {
      const core = this.tracks[this.track[e]].core;
      const row = this.instruction[e];
      const hit = line
        ? this.line[e] === line
        : opcodes[this.opcode[e]] || lines[this.line[e]] ||
          (row && classes[core] && classes[core][this.columns[`trace${core}.class`][row - 1]]);
      if (hit) { this.matches[e] = 1; count++; }
    }
    return count;
  }
}

const number = (x, digits = 0) => x.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

function formatTime(ps, digits = 1) {
  const size = Math.abs(ps);
  if (size < 1e6) return `${number(ps / 1e3, size % 1e3 ? digits : 0)} ns`;
  if (size < 1e11) return `${number(ps / 1e6, digits)} us`;
  return `${number(ps / 1e9, 2)} ms`;
}

function formatBytes(count) {
  let value = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${number(value, unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1024;
  }
  return `${number(value, 1)} TiB`;
}

const percent = (part, digits = 0) => `${number(100 * part, digits)} %`;
