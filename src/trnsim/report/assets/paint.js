"use strict";
// Colours, hatching, and the merging of intervals that are narrower than a few pixels.

const HUES = { tensor: 217, vector: 152, scalar: 28, gpsimd: 285, sync: 340, dma: 188 };
const REASON_HUES = [4, 46, 318, 262, 96, 200, 22, 170, 232, 70];
const WIDE = 3; // pixels from which an interval is drawn by itself; narrower ones are merged

function hsl(h, s, l) {
  const a = s * Math.min(l, 1 - l);
  const f = (n) => {
    const k = (n + h / 30) % 12;
    return Math.round(255 * (l - a * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [f(0), f(8), f(4)];
}

const css = ([r, g, b], alpha = 1) => `rgba(${r},${g},${b},${alpha})`;

/** The colours of one call in one theme. */
class Palette {
  constructor(call, dark, context) {
    this.dark = dark;
    const style = getComputedStyle(document.documentElement);
    const variable = (name) => style.getPropertyValue(name).trim();
    for (const name of ["text", "muted", "line", "panel", "row", "accent", "alarm"]) this[name] = variable(`--${name}`);
    const families = [...new Set(call.tracks.map((t) => t.family))];
    this.family = Object.fromEntries(families.map((f, i) => [f, hsl(HUES[f] ?? (60 + 83 * i) % 360, 0.62, dark ? 0.58 : 0.5)]));
    // Opcodes of one engine share its hue; the lightness tells them apart.
    this.opcode = Object.fromEntries(families.map((f) => [f, call.opcodes.map((_, i) => this.shade(HUES[f] ?? 60, i))]));
    this.opcodeCss = Object.fromEntries(families.map((f) => [f, this.opcode[f].map((c) => css(c))]));
    const ink = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#10151c" : "#ffffff");
    this.opcodeInk = Object.fromEntries(families.map((f) => [f, this.opcode[f].map(ink)]));
    this.opcodeFaint = Object.fromEntries(families.map((f) => [f, this.opcode[f].map((c) => css(c, 0.18))]));
    this.reason = call.reasons.map((_, i) => hsl(REASON_HUES[i % REASON_HUES.length], 0.65, dark ? 0.55 : 0.52));
    this.ended = dark ? [70, 74, 82] : [205, 208, 214];
    this.hatch = [...this.reason, this.ended].map((c) => this.pattern(c, context));
  }

  shade(hue, i) {
    const steps = [0, 0.07, -0.06, 0.12, -0.1, 0.03];
    const base = this.dark ? 0.58 : 0.5;
    return hsl((hue + 7 * ((i % 5) - 2) + 360) % 360, 0.6, base + steps[i % steps.length]);
  }

  pattern(color, context) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const c = tile.getContext("2d");
    c.fillStyle = css(color, this.dark ? 0.2 : 0.16);
    c.fillRect(0, 0, 8, 8);
    c.strokeStyle = css(color, 0.75);
    c.lineWidth = 1.2;
    c.beginPath();
    for (const x of [-8, 0, 8]) { c.moveTo(x, 8); c.lineTo(x + 8, 0); }
    c.stroke();
    return context.createPattern(tile, "repeat");
  }
}

/** One row of pixels in which many narrow intervals are averaged. */
class Strip {
  constructor(width) {
    this.width = width;
    this.sums = new Float32Array(width * 4);
    this.used = false;
  }

  clear() {
    if (this.used) this.sums.fill(0);
    this.used = false;
  }

  add(x0, x1, color, weight) {
    this.used = true;
    if (x0 < 0) x0 = 0;
    if (x1 > this.width) x1 = this.width;
    for (let x = Math.floor(x0); x < x1; x++) {
      const part = (Math.min(x + 1, x1) - Math.max(x, x0)) * weight;
      const i = 4 * x;
      this.sums[i] += color[0] * part;
      this.sums[i + 1] += color[1] * part;
      this.sums[i + 2] += color[2] * part;
      this.sums[i + 3] += part;
    }
  }

  /** Writes the row into pixels (RGBA) from `at` on: mean colour, coverage as opacity. */
  write(pixels, at) {
    const { sums, width } = this;
    for (let x = 0, i = 0, o = at; x < width; x++, i += 4, o += 4) {
      const weight = sums[i + 3];
      if (weight === 0) { pixels[o + 3] = 0; continue; }
      pixels[o] = sums[i] / weight;
      pixels[o + 1] = sums[i + 1] / weight;
      pixels[o + 2] = sums[i + 2] / weight;
      pixels[o + 3] = 255 * Math.min(1, Math.max(weight, 0.12));
    }
  }
}

/**
 * Paints tracks for a range of time. Wide intervals are rectangles; narrow ones are averaged into a strip of one pixel's
 * height that is then stretched, so a frame costs about the same however many intervals there are.
 */
class TrackPainter {
  constructor(call, palette) {
    this.call = call;
    this.palette = palette;
    this.strips = document.createElement("canvas");
  }

  /** rows: [{track, y, height}] in device pixels; x0, width: the plot; t0, t1: the visible range; labels: draw opcodes */
  paint(context, rows, x0, width, t0, t1, labels, font) {
    const shown = rows.length;
    if (width < 1 || !shown) return;
    if (this.strips.width !== width || this.strips.height < shown) {
      this.strips.width = width;
      this.strips.height = shown;
      this.strip = new Strip(width);
      this.image = new ImageData(width, shown);
    }
    const side = this.strips.getContext("2d");
    const scale = width / (t1 - t0);
    const wide = rows.map((row, i) => {
      this.strip.clear();
      const found = this.collect(row.track, t0, t1, scale, width);
      this.strip.write(this.image.data, i * width * 4);
      return found;
    });
    side.putImageData(this.image, 0, 0);
    context.imageSmoothingEnabled = false;
    for (const [i, row] of rows.entries()) {
      this.paintWaits(context, wide[i].waits, row, x0, width, t0, scale);
      context.drawImage(this.strips, 0, i, width, 1, x0, row.y, width, row.height);
      this.paintEvents(context, wide[i].events, row, x0, width, t0, scale, labels, font);
    }
  }

  /** Puts a track's narrow intervals into the strip and returns the wide ones. */
  collect(number, t0, t1, scale, width) {
    const { call, palette, strip } = this;
    const track = call.tracks[number];
    const { start, end, opcode, matches } = call;
    const colors = palette.opcode[track.family];
    const span = WIDE / scale;
    const events = [];
    const waits = [];
    for (let e = firstAbove(call.reached, t0, track.first, track.last); e < track.last && start[e] < t1; e++) {
      if (end[e] - start[e] >= span) { events.push(e); continue; }
      const x = (start[e] - t0) * scale;
      const weight = matches === null ? 1 : matches[e] ? 3 : 0.15;
      strip.add(x, Math.max((end[e] - t0) * scale, x + 0.01), colors[opcode[e]], weight);
    }
    const w = call.waits;
    for (let i = firstAbove(w.end, t0, track.firstWait, track.lastWait); i < track.lastWait && w.start[i] < t1; i++) {
      if (w.end[i] - w.start[i] >= span) { waits.push(i); continue; }
      const color = w.before[i] < 0 ? palette.ended : palette.reason[w.reason[i]];
      strip.add((w.start[i] - t0) * scale, (w.end[i] - t0) * scale, color, matches === null ? 0.14 : 0.05);
    }
    return { events, waits };
  }

  paintWaits(context, list, row, x0, width, t0, scale) {
    const { waits } = this.call;
    const { hatch } = this.palette;
    if (row.height < 6) return;
    context.globalAlpha = this.call.matches === null ? 1 : 0.35;
    for (const w of list) {
      const left = Math.max((waits.start[w] - t0) * scale, 0);
      const right = Math.min((waits.end[w] - t0) * scale, width);
      context.fillStyle = waits.before[w] < 0 ? hatch[hatch.length - 1] : hatch[waits.reason[w]];
      context.fillRect(x0 + left, row.y + row.height * 0.2, right - left, row.height * 0.6);
    }
    context.globalAlpha = 1;
  }

  paintEvents(context, list, row, x0, width, t0, scale, labels, font) {
    const { call, palette } = this;
    const { start, end, opcode, matches } = call;
    const family = call.tracks[row.track].family;
    const solid = palette.opcodeCss[family];
    const faint = palette.opcodeFaint[family];
    const named = [];
    for (const e of list) {
      const left = Math.max((start[e] - t0) * scale, 0);
      const right = Math.min((end[e] - t0) * scale, width);
      const matched = matches === null || matches[e];
      context.fillStyle = (matched ? solid : faint)[opcode[e]];
      // A hair of a gap, so that neighbours can be told apart.
      context.fillRect(x0 + left, row.y, Math.max(right - left - (right - left > 6 ? 1 : 0), 1), row.height);
      if (labels && right - left > 7 * font) named.push(e, left, right);
    }
    if (!named.length || row.height < 1.2 * font) return;
    context.font = `${font}px ui-monospace, "DejaVu Sans Mono", Menlo, monospace`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    for (let i = 0; i < named.length; i += 3) {
      const room = Math.floor((named[i + 2] - named[i + 1] - 0.8 * font) / (0.61 * font));
      const name = call.opcodes[opcode[named[i]]];
      const text = name.length <= room ? name : `${name.slice(0, room - 1)}…`;
      if (room < 3) continue;
      const visible = matches === null || matches[named[i]];
      context.fillStyle = visible ? palette.opcodeInk[family][opcode[named[i]]] : palette.muted;
      context.fillText(text, x0 + named[i + 1] + 0.4 * font, row.y + row.height / 2 + 0.5);
    }
  }
}
