"use strict";
// Everything around the timeline: summary, details of a selection, source lines, engines, memory.

/** An element: h("p.muted", {title: "x"}, "text", child, ...). Text is always text, never markup. */
function h(spec, properties, ...children) {
  const [tag, ...classes] = spec.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in element && name !== "style") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return element;
}

const us = (value) => formatTime(value * 1e6);
const shortFile = (path) => path.split(/[\\/]/).pop();
const place = (line) => `${shortFile(line.file)}:${line.line}`;

function card(name, value, more = "", gauge = null) {
  const bar = gauge === null ? null : h(gauge > 1 ? "div.gauge.over" : "div.gauge", {}, h("i", { style: `width:${Math.min(gauge, 1) * 100}%` }));
  return h("div.card", {}, h("div.name", {}, name), h("div.value", {}, value), h("div.more", {}, more), bar);
}

function summaryPanel(call) {
  const r = call.report;
  const error = r.error_percent === null ? "" : `, ±${number(r.error_percent)} %`;
  const cores = `${r.cores} core${r.cores === 1 ? "" : "s"}`;
  const memory = (name) => {
    const uses = r.memory.filter((m) => m.memory === name).sort((a, b) => b.peak_bytes_per_partition - a.peak_bytes_per_partition);
    if (!uses.length) return null;
    const { peak_bytes_per_partition: peak, capacity_bytes_per_partition: capacity } = uses[0];
    return card(`${name.toUpperCase()} peak a partition`, formatBytes(peak), `of ${formatBytes(capacity)}`, peak / (capacity || 1));
  };
  const waste = (e) => Object.values(e.waiting_us).reduce((a, b) => a + b, 0);
  const tensor = r.engines.tensor;
  return [
    h("div.headline", {},
      h("h1", {}, r.kernel),
      h("span.muted", {}, [`${r.chip}, ${cores}`, call.argumentsText].filter(Boolean).join(", ")),
      h("span.time", {}, us(r.time_us)),
      h(`span.badge.${r.support}`, { title: r.support_reason }, r.support + error)),
    h("p.bound", {}, h("span.muted", {}, "Bound by "), r.bound_by_text),
    h("div.cards", {},
      r.mfu === null ? null : card("MFU", percent(r.mfu, 1), `of ${number(call.peakFlops / 1e12, 1)} TFLOP/s`, r.mfu),
      tensor ? card("TensorE busy", percent(tensor.busy_fraction, 1), `waits ${us(waste(tensor))}`, tensor.busy_fraction) : null,
      card("HBM traffic", `${number(r.hbm_bytes_per_second / 1e9, 1)} GB/s`,
        r.hbm_utilization === null ? "" : `${percent(r.hbm_utilization)} of ${number(call.hbmPeak / 1e9)} GB/s`, r.hbm_utilization),
      card("HBM read", formatBytes(r.hbm_read_bytes), `written ${formatBytes(r.hbm_write_bytes)}`),
      memory("sbuf"), memory("psum"),
      card("Instructions", number(r.instructions), r.spills ? `${number(r.spills)} spills` : `${number(r.flops / 1e9, 2)} GFLOP`),
      card("Spread", r.spread_us ? `± ${us(r.spread_us)}` : "none", "phase of the TensorE throttle")),
  ];
}

function findingsPanel(call) {
  const worst = [...call.report.findings].sort((a, b) => (b.severity === "error") - (a.severity === "error"));
  return worst.map((f) => h(`div.finding.${f.severity}`, {},
    h("strong", {}, `${f.severity} `), f.message, " ",
    f.file ? h("code", {}, `${f.file}:${f.line} `) : null,
    h("span.muted", {}, `[${f.kind}]${f.count > 1 ? `, ${number(f.count)} times` : ""}`)));
}

function aboutPanel(call, versions) {
  const r = call.report;
  const rows = [
    ["support", `${r.support}${r.support_reason ? `: ${r.support_reason}` : ""}`],
    ["schedule", r.schedule + (r.schedule_reason ? `, because ${r.schedule_reason}` : "")], ["clock", r.clock], ["generation", r.generation],
    ["arguments", r.arguments.join("; ")],
    ["numbers", r.numeric ? "computed" : "time only"],
    ["seed", r.seed === null ? "" : String(r.seed)],
    ["simulated in", `${number(r.wall_seconds, 2)} s`],
    ["versions", Object.entries(versions).map(([k, v]) => `${k} ${v}`).join(", ")],
  ];
  return h("dl", {}, ...rows.filter(([, v]) => v).flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)]));
}

function memoryPanel(call) {
  return call.report.memory.flatMap((m) => {
    const many = new Set(call.report.memory.map((x) => x.core)).size > 1;
    const title = `${m.memory.toUpperCase()}${many ? `, core ${m.core}` : ""}: ${formatBytes(m.peak_bytes_per_partition)} of ${formatBytes(m.capacity_bytes_per_partition)} a partition`;
    const rows = m.holders.map((x) => h("tr", {}, h("td.mono", {}, x.storage), h("td.number", {}, formatBytes(x.bytes_per_partition)),
      h("td.number", {}, percent(x.bytes_per_partition / (m.peak_bytes_per_partition || 1))), h("td.mono", {}, shortFile(x.declared_at))));
    const head = h("tr", {}, h("th", {}, "storage"), h("th.number", {}, "bytes"), h("th.number", {}, "share"), h("th", {}, "declared"));
    return [h("p", { style: "margin:6px 0 4px" }, title), rows.length ? h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows)) : ""];
  });
}

function enginesPanel(call, palette) {
  const total = call.report.time_us || 1;
  const reasonColor = (name) => {
    const i = call.reasons.indexOf(name);
    return i < 0 ? css(palette.ended) : css(palette.reason[i], 0.55);
  };
  const used = new Set();
  const rows = Object.entries(call.report.engines).map(([name, e]) => {
    const parts = Object.entries(e.waiting_us);
    const label = Call.engineNames[name] || name;
    const text = [`busy ${percent(e.busy_fraction, 1)}`, ...parts.map(([k, v]) => `${k} ${percent(v / total, 1)}`)].join(", ");
    if (e.busy_us) for (const [k, v] of parts) if (v / total > 0.005) used.add(k);
    return h("div.engine", {},
      h("span", {}, label),
      h("div.stack", { title: text, role: "img", "aria-label": `${label}: ${text}` },
        h("i", { style: `flex:${e.busy_fraction} 0 0;background:${css(palette.family[name] || [120, 120, 120])}` }),
        ...parts.map(([k, v]) => h("i", { style: `flex:${v / total} 0 0;background:${e.busy_us ? reasonColor(k) : "none"}` }))),
      h("span.number", {}, e.busy_us ? percent(e.busy_fraction, 1) : "not used"));
  });
  const keys = [...used].map((k) => h("span", {}, h("span.swatch", { style: `background:${reasonColor(k)}` }), k));
  return [...rows, h("div.keys", {}, h("span", {}, "solid: busy; waiting for"), ...keys)];
}

function legendPanel(call, palette) {
  const used = [...new Set(call.waits.reason)].sort((a, b) => a - b);
  const hatch = (c) => `background:repeating-linear-gradient(135deg,${css(c, 0.9)} 0 2px,${css(c, 0.15)} 2px 5px)`;
  return [h("span", {}, "hatched: waiting for"), ...used.map((i) => h("span", {}, h("span.swatch", { style: hatch(palette.reason[i]) }), call.reasons[i]))];
}

/** The table of source lines; `pick(place)` is called with the 1-based place of a line, or 0 to clear. */
class LinesTable {
  constructor(call, pick) {
    this.call = call;
    this.pick = pick;
    this.on = 0;
    this.key = "active_us";
    this.falling = true;
    this.element = h("div", {});
    this.render();
  }

  render() {
    const columns = [
      ["line", "line", false], ["text", "source", false], ["active_us", "time", true], ["fraction", "%", true],
      ["busy_us", "busy", true], ["caused_waiting_us", "waits caused", true], ["instructions", "instr.", true],
    ];
    const titles = {
      active_us: "time with at least one of its instructions running", busy_us: "summed over engines and rings",
      caused_waiting_us: "engine time spent waiting for its instructions",
    };
    const head = columns.map(([key, name, numeric]) => h(numeric ? "th.number" : "th",
      key === this.key ? { "aria-sort": this.falling ? "descending" : "ascending" } : {},
      h("button", { type: "button", title: titles[key] || "", onclick: () => this.sort(key) }, name)));
    const value = (l) => (this.key === "line" ? `${l.file}:${String(l.line).padStart(7)}` : l[this.key]);
    const order = this.call.report.lines.map((l, i) => [l, i + 1]);
    order.sort(([a], [b]) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (this.falling ? -1 : 1));
    const rows = order.map(([l, i]) => {
      const row = h(i === this.on ? "tr.on" : "tr", { onclick: () => this.toggle(i) },
        h("td", {}, h("button.link.mono", { type: "button", title: `${l.file}:${l.line} ${l.function}` }, place(l))),
        h("td.mono", {}, l.text || `(${l.engines.join(", ")})`),
        h("td.number", {}, us(l.active_us)),
        h("td.number.share", {}, number(100 * l.fraction, 1), h("i", { style: `width:${Math.min(l.fraction, 1) * 100}%` })),
        h("td.number", {}, us(l.busy_us)), h("td.number", {}, us(l.caused_waiting_us)), h("td.number", {}, number(l.instructions)));
      return row;
    });
    const empty = h("p.muted", {}, "No trace: source lines are not known.");
    this.element.replaceChildren(rows.length ? h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)) : empty);
  }

  sort(key) {
    this.falling = key === this.key ? !this.falling : key !== "line" && key !== "text";
    this.key = key;
    this.render();
  }

  toggle(i) {
    this.mark(this.on === i ? 0 : i);
    this.pick(this.on);
  }

  mark(i) {
    this.on = i;
    this.render();
  }
}

const MEMORY_NAMES = { sbuf: "SBUF", psum: "PSUM", hbm: "HBM" };

function operandElement(o) {
  const partitions = o.memory === "hbm" ? "" : `, partitions ${o.start}–${o.start + o.partitions - 1}`;
  return h("div.operand", {},
    h("strong", {}, o.name), h("span.muted", {}, ` ${o.role} `), h("code", {}, o.storage), h("br"),
    `${MEMORY_NAMES[o.memory] || o.memory}, ${o.dtype} ${o.shape.join("x")}${partitions}, byte ${number(o.offset)}, ${formatBytes(o.bytes)}`);
}

/** What is known about a selected event or wait; `go(hit)` jumps to another one. */
function detailsPanel(call, hit, go) {
  if (!hit) return [h("p.muted", {}, "Click an interval to see its instruction, operands, and what it waited for. Press ? for the keyboard.")];
  const { waits } = call;
  const name = (e) => `${call.tracks[call.track[e]].label}: ${call.opcodes[call.opcode[e]]}`;
  const link = (e) => {
    const line = call.lineOf(e);
    return h("button.link", { type: "button", onclick: () => go({ event: e }) }, `${name(e)} at ${formatTime(call.start[e], 3)}${line ? `, ${place(line)}` : ""}`);
  };
  const waited = (w) => [
    h("p", { style: "margin:0" }, `${formatTime(waits.end[w] - waits.start[w], 3)} for ${call.reasons[waits.reason[w]]}`),
    waits.released[w] >= 0 ? h("p", { style: "margin:0" }, "released by ", link(waits.released[w])) : null,
  ];
  if (hit.event === undefined) {
    const w = hit.wait;
    const before = waits.before[w];
    return [
      h("h3", {}, before < 0 ? "No more instructions" : "Waiting"),
      h("dl", {}, h("dt", {}, "from"), h("dd", {}, formatTime(waits.start[w], 3)), h("dt", {}, "to"), h("dd", {}, formatTime(waits.end[w], 3))),
      h("h4", {}, "Waited"), ...waited(w).filter(Boolean),
      ...(before >= 0 ? [h("h4", {}, "Then ran"), link(before)] : []),
    ];
  }
  const e = hit.event;
  const instruction = call.instructionOf(e);
  const line = call.lineOf(e);
  const fields = [
    ["on", call.tracks[call.track[e]].label], ["start", formatTime(call.start[e], 3)], ["end", formatTime(call.end[e], 3)],
    ["busy", formatTime(call.end[e] - call.start[e], 3)], ["visible", formatTime(call.done[e], 3)],
  ];
  if (call.bytes[e]) {
    const length = (call.end[e] - call.start[e]) * 1e-12;
    fields.push(["bytes", `${formatBytes(call.bytes[e])}${length > 0 ? ` (${number(call.bytes[e] / length / 1e9, 1)} GB/s)` : ""}`]);
  }
  if (instruction) fields.push(["instruction", `${instruction.name} #${instruction.row}`]);
  const w = call.waitOf[e];
  const released = call.releasedBy(e);
  return [
    h("h3", {}, call.opcodes[call.opcode[e]]),
    h("dl", {}, ...fields.flatMap(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])),
    ...(line ? [h("h4", {}, `Source: ${line.file}:${line.line}${line.function ? ` in ${line.function}` : ""}`), h("code.source", {}, line.text || "(source not found)")] : []),
    h("h4", {}, "Waited"), ...(w >= 0 ? waited(w).filter(Boolean) : [h("span.muted", {}, "started at once")]),
    h("h4", {}, "Released"),
    ...(released.length
      ? [h("ul", {}, ...[...released.slice(0, 12)].map((r) => h("li", {}, waits.before[r] >= 0 ? link(waits.before[r]) : "the end", ` (${formatTime(waits.end[r] - waits.start[r])} waited)`))),
        released.length > 12 ? h("span.muted", {}, `and ${number(released.length - 12)} more`) : ""]
      : [h("span.muted", {}, "nothing waited for it")]),
    ...(instruction && instruction.operands.length ? [h("h4", {}, "Operands"), ...instruction.operands.map(operandElement)] : []),
  ];
}

function tooltipText(call, hit) {
  const { waits } = call;
  if (hit.event === undefined) {
    const w = hit.wait;
    return `waiting ${formatTime(waits.end[w] - waits.start[w])} for ${call.reasons[waits.reason[w]]}`;
  }
  const line = call.lineOf(hit.event);
  const e = hit.event;
  return `${call.opcodes[call.opcode[e]]}  ${formatTime(call.end[e] - call.start[e])}${line ? `  ${place(line)}  ${line.text}` : ""}`;
}
