"use strict";
// Errors are noted on the root element, where a person or a test sees them.
const page = document.documentElement;
const errors = [];
const note = (text) => { errors.push(text); page.dataset.errors = errors.join(" | "); };
addEventListener("error", (event) => note(event.message));
addEventListener("unhandledrejection", (event) => note(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => note(`blocked: ${event.violatedDirective}`));

const data = JSON.parse(document.getElementById("data").textContent);
const objects = data.objects;
const rowOf = new Map(objects.oid.map((oid, row) => [oid, row]));
const curves = new Map(Object.entries(data.curves));
const SVG = "http://www.w3.org/2000/svg";
const BAND = { 1: "g", 2: "r", 3: "i" };

// Elements are made from texts, never from markup: names and reasons may hold anything.
function make(parent, tag, attributes = {}, text = null) {
  const inSvg = tag === "svg" || (parent && parent.namespaceURI === SVG);
  const element = inSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

const round = (value) => Math.round(value * 100) / 100;

function steps(low, high, about) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(k * step);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function logSteps(low, high, about) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / about));
  const ticks = [];
  for (let power = first; power <= last; power += every) ticks.push(10 ** power);
  if (ticks.length < 2) return [low, high].map((value) => Number(value.toPrecision(2)));
  return ticks;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(0).replace("e+", "e");
  return String(Number(value.toPrecision(6))).replace("-", "−");
}

const count = (number) => number.toLocaleString("en-US");

// Light curves

function points(curve) {
  const found = [];
  for (let k = 0; k < curve.t.length; k++) {
    const code = parseInt(curve.f[k], 16);
    found.push({
      x: curve.t0 + curve.t[k] / 1e5, y: curve.m[k] / 1000, e: curve.e[k] / 1000,
      band: BAND[code & 3], below: (code & 4) > 0, forced: (code & 8) > 0,
    });
  }
  return found;
}

function limits(curve) {
  return curve.lt.map((t, k) => ({ x: curve.t0 + t / 1e5, y: curve.lm[k] / 1000, band: BAND[curve.lf[k]] }));
}

function drawCurve(parent, oid, curve, period, size) {
  const folded = period !== null;
  const own = points(curve);
  const shown = own.length ? own : [];
  let below = folded ? [] : limits(curve);
  const alt = `Light curve of ${oid}, ${curve.n} detections` + (folded ? `, folded at ${period} days` : "");
  const svg = make(parent, "svg", {
    class: "chart curve", viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": alt,
  });
  const left = size.left, right = size.width - 6, top = 5, bottom = size.height - size.bottom;
  let low = Infinity, high = -Infinity;
  for (const point of shown) {
    const reach = Math.min(point.e, 0.3);
    low = Math.min(low, point.y - reach);
    high = Math.max(high, point.y + reach);
  }
  if (!shown.length) for (const point of below) { low = Math.min(low, point.y); high = Math.max(high, point.y); }
  // Limits far below would squeeze the light curve; among apparent magnitudes those of the difference have no place.
  const floor = high + 1.5;
  if (!curve.a) for (const point of below) if (point.y <= floor) { high = Math.max(high, point.y); low = Math.min(low, point.y); }
  if (!(high > low)) { low -= 0.5; high += 0.5; }
  const pad = (high - low) * 0.06;
  low -= pad; high += pad;
  let first = 0, last = 2;
  if (!folded) {
    const times = [...shown, ...below].map((point) => point.x);
    first = Math.min(...times); last = Math.max(...times);
    const margin = Math.max((last - first) * 0.03, 0.02);
    first -= margin; last += margin;
  }
  const px = (x) => round(left + (x - first) / (last - first) * (right - left));
  const py = (y) => round(top + (y - low) / (high - low) * (bottom - top));
  const vertical = steps(low, high, size.height > 200 ? 6 : 4);
  for (const value of vertical.ticks) {
    make(svg, "path", { class: "grid", d: `M${left} ${py(value)}H${right}` });
    make(svg, "text", { class: "end", x: left - 4, y: py(value) + 3.5 }, value.toFixed(vertical.digits));
  }
  const across = folded ? { ticks: [0, 0.5, 1, 1.5, 2], digits: 1 } : steps(first, last, size.width > 400 ? 7 : size.labels ? 4 : 3);
  for (const value of across.ticks) {
    make(svg, "path", { class: "axis", d: `M${px(value)} ${bottom}v3` });
    if (px(value) > left + 4 && px(value) < right - 4 || folded)
      make(svg, "text", { class: px(value) > right - 12 ? "end" : "mid", x: Math.min(px(value), right + 2), y: bottom + size.tick }, value.toFixed(across.digits));
  }
  make(svg, "path", { class: "frame", d: `M${left} ${top}H${right}V${bottom}H${left}Z` });
  if (size.labels) {
    const label = folded ? `phase, period ${Number(period.toPrecision(7))} d` : "MJD (days)";
    make(svg, "text", { class: "mid", x: (left + right) / 2, y: size.height - 3 }, label);
    const what = curve.a ? "apparent magnitude" : "magnitude of the difference";
    make(svg, "text", { class: "mid", transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)` }, what);
  }
  const epoch = shown.length ? Math.min(...shown.map((point) => point.x)) : 0;
  const places = (point) => {
    if (!folded) return [point.x];
    const phase = ((point.x - epoch) / period) % 1;
    return [phase, phase + 1];
  };
  for (const band of ["i", "r", "g"]) {
    let triangles = "";
    for (const point of below) {
      if (point.band !== band) continue;
      const y = curve.a || point.y > high ? bottom - 3 : py(point.y);
      triangles += `M${round(px(point.x) - 2.4)} ${round(y - 2)}h4.8l-2.4 4.2z`;
    }
    const group = make(svg, "g", { class: `band-${band}` });
    if (triangles) make(group, "path", { class: "limit", d: triangles });
    let bars = "", solid = "", hollow = "", forced = "";
    for (const point of shown) {
      if (point.band !== band) continue;
      for (const x of places(point)) {
        const mark = `M${px(x)} ${py(point.y)}h0`;
        if (point.forced) { forced += mark; continue; }
        bars += `M${px(x)} ${py(Math.max(point.y - point.e, low))}V${py(Math.min(point.y + point.e, high))}`;
        if (point.below) hollow += mark; else solid += mark;
      }
    }
    if (bars) make(group, "path", { class: "error", d: bars });
    if (forced) make(group, "path", { class: "forced", "stroke-width": size.mark * 0.55, d: forced });
    if (solid) make(group, "path", { class: "mark", "stroke-width": size.mark, d: solid });
    if (hollow) {
      make(group, "path", { class: "mark", "stroke-width": size.mark, d: hollow });
      make(group, "path", { class: "hole", "stroke-width": size.mark * 0.5, d: hollow });
    }
  }
  return svg;
}

const SMALL = { width: 210, height: 132, left: 34, bottom: 17, tick: 13, mark: 3.4, labels: false };
const STRIP = { width: 210, height: 88, left: 34, bottom: 17, tick: 13, mark: 2.6, labels: false };
// As wide as there is room, so that its texts keep their size.
const large = () => {
  const width = Math.max(300, Math.min(800, viewer.clientWidth - 44));
  return { width, height: width < 500 ? 230 : 300, left: 58, bottom: 42, tick: 17, mark: width < 500 ? 4.5 : 6, labels: true };
};

function isPeriodic(row) {
  if (row === undefined || !objects.period[row]) return false;
  const info = data.classes[objects.class[row]];
  if (info && info.periodic !== null) return info.periodic;
  return objects.fit[row] !== null && objects.fit[row] >= data.period_fit;
}

function probabilityBars(parent, oid, most) {
  const top = (objects.top && objects.top[oid]) || [];
  if (!top.length) return;
  const bars = make(parent, "div", { class: "probs" });
  for (const [number, probability] of top.slice(0, most)) {
    make(bars, "span", {}, data.classes[number].name);
    const bar = make(make(bars, "div", { class: `k${number}` }), "i");
    bar.style.width = `${100 * probability}%`;
    make(bars, "span", { class: "p" }, probability.toFixed(2));
  }
}

function periodText(row) {
  const period = row === undefined ? null : objects.period[row];
  return period === null ? "" : `${Number(period.toPrecision(5))} d`;
}

function opener(parent, oid) {
  const button = make(parent, "button", { type: "button", class: "open", title: oid }, oid);
  button.addEventListener("click", () => openViewer(oid));
  return button;
}

function drawGallery() {
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  for (const [number, oids] of data.gallery) {
    if (!oids.length) continue;
    const info = data.classes[number];
    const section = make(gallery, "div", { class: `class-gallery k${number}`, id: `class-${number}` });
    const head = make(section, "h3");
    make(head, "i", { class: "chip" });
    make(head, "span", {}, info.name);
    if (info.branch) make(head, "span", { class: "note" }, info.branch);
    const cards = make(section, "div", { class: "cards" });
    for (const oid of oids) {
      const row = rowOf.get(oid), curve = curves.get(oid);
      const card = make(cards, "article", { class: "curve-card" });
      const folded = isPeriodic(row);
      opener(card, oid);
      const line = make(card, "p", { class: "facts-line" });
      make(line, "span", {}, folded ? periodText(row) : `${curve.n} detections`);
      if (objects.match[row] !== null) make(line, "span", {}, `match ${objects.match[row].toFixed(2)}″`);
      if (folded) drawCurve(card, oid, curve, objects.period[row], SMALL);
      drawCurve(card, oid, curve, null, folded ? STRIP : SMALL);
      if (!folded) card.dataset.plain = "";
      probabilityBars(card, oid, 3);
    }
  }
}

// One object, large

const viewer = document.getElementById("viewer");

function openViewer(oid) {
  const row = rowOf.get(oid), curve = curves.get(oid);
  if (!curve) return;
  viewer.replaceChildren();
  if (!viewer.open) viewer.showModal();
  const head = make(viewer, "header");
  make(head, "h3", { id: "viewer-title" }, oid);
  make(head, "a", { href: data.broker + encodeURIComponent(oid), rel: "noreferrer", target: "_blank" }, "ALeRCE page");
  const close = make(head, "button", { type: "button" }, "close");
  close.addEventListener("click", () => viewer.close());
  close.focus();
  const facts = [];
  if (row !== undefined) {
    if (objects.ra[row] !== null) facts.push(`RA ${objects.ra[row].toFixed(5)}°, Dec ${objects.dec[row].toFixed(5)}°`);
    facts.push(curve.n > curve.t.length ? `${curve.t.length} of ${curve.n} detections are drawn` : `${curve.n} detections`);
    if (objects.match[row] !== null) facts.push(`match at ${objects.match[row].toFixed(2)}″`);
  }
  make(viewer, "p", { class: "note" }, facts.join("; "));
  probabilityBars(viewer, oid, 4);
  drawCurve(viewer, oid, curve, null, large());
  const period = row === undefined ? null : objects.period[row];
  if (period) {
    const controls = make(viewer, "div", { class: "controls" });
    const place = make(viewer, "div");
    const choices = [["half the period", 0.5], [`period ${periodText(row)}`, 1], ["twice the period", 2]];
    const buttons = choices.map(([text, factor]) => {
      const button = make(controls, "button", { type: "button" }, text);
      button.addEventListener("click", () => fold(factor));
      return button;
    });
    const fold = (factor) => {
      place.replaceChildren();
      drawCurve(place, oid, curve, period * factor, large());
      buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(choices[k][1] === factor)));
    };
    fold(1);
  }
}
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

// Features

const features = data.features;
const hiddenClasses = new Set();

function featureLabel(k) {
  return features.names[k] + (features.units[k] ? ` (${features.units[k]})` : "");
}

// Range that holds all but the outermost half per cent at each side, and whether the values span decades.
function rangeOf(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];
  return { low: at(0.005), high: at(0.995), tenth: at(0.1), most: at(0.9) };
}

function axisOf(k, log) {
  const usable = features.values[k].map((value) => (value !== null && (!log || value > 0) ? value : null));
  let { low, high } = usable.some((value) => value !== null) ? rangeOf(usable) : { low: 1, high: 2 };
  if (!(high > low)) { const half = Math.abs(low) / 10 || 0.5; low -= half; high += half; if (log) low = high / 10; }
  if (!log) { const pad = (high - low) * 0.04; low -= pad; high += pad; } else { low /= 1.15; high *= 1.15; }
  const share = log
    ? (value) => Math.log(value / low) / Math.log(high / low)
    : (value) => (value - low) / (high - low);
  const found = log ? logSteps(low, high, 6) : steps(low, high, 6).ticks;
  return { usable, share, ticks: found.filter((tick) => share(tick) >= -1e-9 && share(tick) <= 1 + 1e-9) };
}

function spansDecades(k) {
  const known = features.values[k].filter((value) => value !== null);
  if (known.some((value) => value <= 0) || known.length < 3) return false;
  const { tenth, most } = rangeOf(known);
  return most / tenth > 30;
}

let placed = [];

function drawScatter() {
  const place = document.getElementById("scatter");
  const x = Number(fx.value), y = Number(fy.value);
  const width = Math.max(300, place.clientWidth), height = Math.round(Math.min(Math.max(width * 0.66, 280), 520));
  const left = 62, right = width - 12, top = 10, bottom = height - 44;
  place.replaceChildren();
  const svg = make(place, "svg", {
    class: "chart dots", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${features.names[y]} against ${features.names[x]} for ${features.oid.length} objects, coloured by class`,
  });
  const h = axisOf(x, lx.checked), v = axisOf(y, ly.checked);
  const px = (value) => round(left + h.share(value) * (right - left));
  const py = (value) => round(bottom - v.share(value) * (bottom - top));
  for (const tick of v.ticks) {
    make(svg, "path", { class: "grid", d: `M${left} ${py(tick)}H${right}` });
    make(svg, "text", { class: "end", x: left - 7, y: py(tick) + 4 }, short(tick));
  }
  for (const tick of h.ticks) {
    make(svg, "path", { class: "grid", d: `M${px(tick)} ${top}V${bottom}` });
    make(svg, "text", { class: "mid", x: px(tick), y: bottom + 17 }, short(tick));
  }
  make(svg, "path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` });
  make(svg, "text", { class: "label mid", x: (left + right) / 2, y: height - 6 }, featureLabel(x));
  make(svg, "text", { class: "label mid", transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)` }, featureLabel(y));
  placed = [];
  let outside = 0, unknown = 0;
  const paths = new Map();
  for (let k = 0; k < features.oid.length; k++) {
    const number = features.class[k];
    if (hiddenClasses.has(number)) continue;
    const a = h.usable[k], b = v.usable[k];
    if (a === null || b === null) { unknown++; continue; }
    const sx = h.share(a), sy = v.share(b);
    if (sx < 0 || sx > 1 || sy < 0 || sy > 1) { outside++; continue; }
    placed.push({ k, x: px(a), y: py(b) });
    paths.set(number, (paths.get(number) || "") + `M${px(a)} ${py(b)}h0`);
  }
  for (const number of [...paths.keys()].sort((a, b) => a - b))
    make(svg, "path", { class: number < 0 ? "unknown" : `k${number}`, d: paths.get(number) });
  const ring = make(svg, "circle", { class: "pointed", r: 6, visibility: "hidden" });
  const told = document.getElementById("scatter-note");
  const base = `${count(placed.length)} objects` + (unknown ? `; not drawn: ${count(unknown)} without a value on these axes` : "")
    + (outside ? `; ${count(outside)} beyond the axes` : "");
  told.textContent = base;
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), scale = width / box.width;
    const mx = (event.clientX - box.left) * scale, my = (event.clientY - box.top) * scale;
    let best = null, least = 14 * 14;
    for (const one of placed) {
      const d = (one.x - mx) ** 2 + (one.y - my) ** 2;
      if (d < least) { least = d; best = one; }
    }
    return best;
  };
  svg.addEventListener("pointermove", (event) => {
    const one = nearest(event);
    ring.setAttribute("visibility", one ? "visible" : "hidden");
    if (!one) { told.textContent = base; return; }
    ring.setAttribute("cx", one.x);
    ring.setAttribute("cy", one.y);
    const info = data.classes[features.class[one.k]];
    told.textContent = `${features.oid[one.k]}${info ? `, ${info.name}` : ""}: ${short(features.values[x][one.k])}, ${short(features.values[y][one.k])}`;
  });
  svg.addEventListener("click", (event) => { const one = nearest(event); if (one) openViewer(features.oid[one.k]); });
  drawRidge(x, lx.checked);
}

// Histogram of one feature, a row for each class
function drawRidge(x, log) {
  const place = document.getElementById("ridge");
  document.getElementById("ridge-title").textContent = `${featureLabel(x)} by class`;
  place.replaceChildren();
  const groups = data.classes.length ? data.classes.map((info, k) => [k, info.name]) : [[-1, "all"]];
  const shown = groups.filter(([k]) => !hiddenClasses.has(k) && features.class.some((each) => each === k));
  const width = Math.max(280, place.clientWidth), each = 30, left = 106, right = width - 12, top = 6;
  const bottom = top + each * Math.max(shown.length, 1), bins = 40, axis = axisOf(x, log);
  const svg = make(place, "svg", {
    class: "chart", viewBox: `0 0 ${width} ${bottom + 42}`, role: "img",
    "aria-label": `Histograms of ${features.names[x]} for each class`,
  });
  const at = (share) => round(left + share * (right - left));
  for (const tick of axis.ticks) {
    make(svg, "path", { class: "grid", d: `M${at(axis.share(tick))} ${top}V${bottom}` });
    make(svg, "text", { class: "mid", x: at(axis.share(tick)), y: bottom + 17 }, short(tick));
  }
  shown.forEach(([number, name], line) => {
    const base = top + each * (line + 1), filled = new Array(bins).fill(0), known = [];
    for (let k = 0; k < features.oid.length; k++) {
      if (features.class[k] !== number || axis.usable[k] === null) continue;
      const share = axis.share(axis.usable[k]);
      known.push(share);
      if (share >= 0 && share < 1) filled[Math.floor(share * bins)]++;
    }
    make(svg, "text", { class: "label end", x: left - 9, y: base - 4 }, name);
    make(svg, "path", { class: "axis", d: `M${left} ${base}H${right}` });
    if (!known.length) return;
    const most = Math.max(...filled, 1);
    let path = `M${at(0)} ${base}`;
    filled.forEach((number_, bin) => { path += `V${round(base - number_ / most * (each - 5))}H${at((bin + 1) / bins)}`; });
    make(svg, "path", { class: `ridge ${number < 0 ? "all" : `k${number}`}`, d: `${path}V${base}Z` });
    const median = known.sort((a, b) => a - b)[known.length >> 1];
    if (median >= 0 && median <= 1) make(svg, "path", { class: "median", d: `M${at(median)} ${base}v-9` });
  });
  make(svg, "text", { class: "label mid", x: (left + right) / 2, y: bottom + 36 }, `${featureLabel(x)}; the stroke is the median`);
}

const [fx, fy, lx, ly] = ["fx", "fy", "lx", "ly"].map((id) => document.getElementById(id));

function setUpFeatures() {
  if (!fx || !features.names.length) return;
  features.names.forEach((name, k) => {
    for (const select of [fx, fy]) make(select, "option", { value: k }, name);
  });
  const first = (wanted, other) => Math.max(0, features.names.indexOf(wanted) < 0 ? Math.min(other, features.names.length - 1) : features.names.indexOf(wanted));
  fx.value = first("Multiband_period", 0);
  fy.value = first("Amplitude_1", 1);
  const choose = (select, box) => { box.checked = spansDecades(Number(select.value)); };
  choose(fx, lx);
  choose(fy, ly);
  fx.addEventListener("change", () => { choose(fx, lx); drawScatter(); });
  fy.addEventListener("change", () => { choose(fy, ly); drawScatter(); });
  for (const box of [lx, ly]) box.addEventListener("change", drawScatter);
  document.getElementById("feature-form").addEventListener("submit", (event) => event.preventDefault());
  const legend = document.getElementById("class-legend");
  data.classes.forEach((info, number) => {
    if (!features.class.includes(number)) return;
    const button = make(legend, "button", { type: "button", class: `k${number}`, "aria-pressed": "true" });
    make(button, "i", { class: "chip" });
    make(button, "span", {}, info.name);
    button.addEventListener("click", () => {
      if (!hiddenClasses.delete(number)) hiddenClasses.add(number);
      button.setAttribute("aria-pressed", String(!hiddenClasses.has(number)));
      drawScatter();
    });
  });
  drawScatter();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    requestAnimationFrame(drawScatter);
  });
}

// Table of objects

const CHUNK = 100;
const fixed = (digits) => (value) => (value === null ? "" : value.toFixed(digits));
const COLUMNS = [
  ["oid", "object", false], ["class", "class", false], ["probability", "probability", true, fixed(2)],
  ["ndet", "detections", true, (value) => (value === null ? "" : count(value))],
  ["period", "period (d)", true, (value) => (value === null ? "" : String(Number(value.toPrecision(6))))],
  ["g", "g (mag)", true, fixed(2)], ["r", "r (mag)", true, fixed(2)], ["match", "match (″)", true, fixed(2)],
  ["ra", "RA (°)", true, fixed(5)], ["dec", "Dec (°)", true, fixed(5)],
];
let sorting = null, rows = [], limit = CHUNK;

const classOf = (row) => (data.classes[objects.class[row]] ? data.classes[objects.class[row]].name : "");

function valueOf(row, name) {
  return name === "class" ? classOf(row) || null : objects[name][row];
}

function findRows(text) {
  const wanted = text.trim().toLowerCase();
  const exact = data.classes.some((info) => info.name.toLowerCase() === wanted);
  rows = [];
  for (let row = 0; row < objects.oid.length; row++) {
    const name = classOf(row).toLowerCase();
    if (!wanted || name === wanted || (!exact && (name.includes(wanted) || objects.oid[row].toLowerCase().includes(wanted)))) rows.push(row);
  }
  if (sorting) {
    const { name, down } = sorting;
    rows.sort((a, b) => {
      const x = valueOf(a, name), y = valueOf(b, name);
      if (x === null || y === null) return x === y ? a - b : x === null ? 1 : -1;
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1) || a - b;
    });
  }
  limit = CHUNK;
  drawRows();
}

function drawRows() {
  const body = document.querySelector("#object-table tbody");
  body.replaceChildren();
  for (const row of rows.slice(0, limit)) {
    const line = make(body, "tr");
    for (const [name, , right, format] of shownColumns) {
      const cell = make(line, name === "oid" ? "th" : "td", right ? { class: "n" } : {});
      if (name === "oid") {
        cell.setAttribute("scope", "row");
        if (curves.has(objects.oid[row])) opener(cell, objects.oid[row]);
        else cell.textContent = objects.oid[row];
      } else if (name === "class" && objects.class[row] >= 0) {
        make(cell, "i", { class: `chip k${objects.class[row]}` });
        cell.append(classOf(row));
      } else {
        const value = valueOf(row, name);
        cell.textContent = format ? format(value) : value === null ? "" : value;
      }
    }
  }
  const more = document.getElementById("more");
  more.hidden = rows.length <= limit;
  more.textContent = `show ${count(Math.min(CHUNK * 2, rows.length - limit))} more`;
  document.getElementById("found").textContent = `${count(Math.min(limit, rows.length))} of ${count(rows.length)} that fit`;
  page.dataset.found = rows.length;
}

let shownColumns = COLUMNS;

function setUpTable() {
  const table = document.getElementById("object-table");
  if (!table) return;
  shownColumns = COLUMNS.filter(([name]) => name === "oid" || objects.oid.some((_, row) => valueOf(row, name) !== null));
  const head = table.querySelector("thead tr");
  for (const [name, text, right] of shownColumns) {
    const cell = make(head, "th", { scope: "col", ...(right ? { class: "n" } : {}) });
    make(cell, "button", { type: "button" }, text).addEventListener("click", () => {
      // Numbers are looked at from the largest on.
      const down = sorting && sorting.name === name ? !sorting.down : right && !["period", "match", "g", "r"].includes(name);
      sorting = { name, down };
      head.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      findRows(query.value);
    });
  }
  const query = document.getElementById("query");
  const fromAddress = () => {
    const words = new URLSearchParams(location.hash.slice(1));
    if (words.has("q")) query.value = words.get("q");
    findRows(query.value);
    if (words.has("q")) document.getElementById("objects").scrollIntoView();
    if (words.has("o")) openViewer(words.get("o"));
  };
  query.addEventListener("input", () => {
    findRows(query.value);
    history.replaceState(null, "", query.value ? `#q=${encodeURIComponent(query.value)}` : location.pathname + location.search);
  });
  document.getElementById("more").addEventListener("click", () => { limit += CHUNK * 2; drawRows(); });
  addEventListener("hashchange", fromAddress);
  fromAddress();
}

drawGallery();
setUpFeatures();
setUpTable();
page.dataset.ready = "yes";
