"use strict";
// Draws the curves of this page and runs its players. Text goes in through textContent only.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "1.5 4", "9 3 2 3", "4 2"];

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

// ---- numbers ----

function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e15)) return value.toExponential(1).replace(".0e", "e").replace("-", "−");
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= unit) return +(value / (letter === "k" ? 1e3 : unit)).toPrecision(3) + " " + letter;
  }
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
}

function clock(seconds) {
  if (seconds >= 36000) return +(seconds / 3600).toFixed(1) + " h";
  if (seconds >= 3600) return Math.floor(seconds / 3600) + " h " + Math.round((seconds % 3600) / 60) + " min";
  return seconds >= 60 ? +(seconds / 60).toFixed(1) + " min" : +seconds.toFixed(1) + " s";
}

function along(axis, value) {
  if (axis === "seconds") return clock(value);
  return (axis === "step" ? "step " : "") + shortNumber(Math.round(value)) + (axis === "tokens" ? " tokens" : "");
}

function ticks(low, high, wanted, axis) {
  let raw = (high - low) / wanted, bases = [1, 2, 5, 10];
  if (axis === "seconds" && raw > 20) bases = raw > 1200 ? [3600, 7200, 18000, 36000] : [30, 60, 120, 300, 600, 1200];
  let step = bases.find((b) => b >= raw);
  if (axis !== "seconds" || raw <= 20 || !step) {
    const power = 10 ** Math.floor(Math.log10(raw || 1));
    step = [1, 2, 2.5, 5, 10].find((b) => b * power >= raw) * power;
  }
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) found.push(factor * 10 ** power);
  const inside = found.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  return inside.length > 6 ? inside.filter((t) => Math.abs(Math.log10(t) % 1) < 1e-9) : inside;
}

// ---- curves ----

const panels = [];
const view = { axis: "step", scale: "linear" };

class Panel {
  constructor(root) {
    this.root = root;
    this.plot = root.querySelector(".plot");
    this.readout = root.querySelector(".readout");
    this.data = JSON.parse(root.querySelector("script").textContent);
    this.isLoss = Boolean(this.data.modality);
    this.plot.addEventListener("pointermove", (event) => this.hover(event));
    this.plot.addEventListener("pointerdown", (event) => this.hover(event));
    this.plot.addEventListener("pointerleave", () => panels.forEach((panel) => panel.mark(null)));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  points(series) {
    const x = series[view.axis];
    const points = [];
    for (let i = 0; i < series.y.length; i++) if (x[i] !== null) points.push([x[i], series.y[i]]);
    return points;
  }

  draw() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight;
    if (!width) return;
    const every = this.data.series.map((series) => this.points(series));
    const shown = every.flat().filter((p) => p[1] !== null);
    this.plot.replaceChildren();
    if (!shown.length) return;
    const log = this.isLoss && view.scale === "log" && shown.every((p) => p[1] > 0);
    this.frame(shown, width, height, log);
    const svg = this.svg = element("svg", { width, height, "aria-hidden": "true" }, this.plot);
    this.grid(svg);
    this.data.series.forEach((series, i) => this.line(svg, series, every[i]));
    this.cursor = element("g", {}, svg);
    this.mark(null);
    const last = this.data.series.map((s) => `${s.name || "value"} ${shortNumber(s.y.findLast((y) => y !== null))}`);
    this.plot.setAttribute("aria-label", `Curve of ${this.data.title}, last values: ${last.join(", ")}`);
  }

  frame(shown, width, height, log) {
    let xs = shown.map((p) => p[0]), ys = shown.map((p) => p[1]);
    let x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
    if (x0 > 0 && x0 < x1 / 5) x0 = 0;
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    if (!this.isLoss && y0 > 0) y0 = 0;
    if (y0 === y1) { y0 -= Math.abs(y0) / 10 || 0.5; y1 += Math.abs(y1) / 10 || 0.5; }
    const f = log ? Math.log : (v) => v;
    const pad = (f(y1) - f(y0)) * 0.06, top = f(y1) + pad, bottom = y0 === 0 && !log ? 0 : f(y0) - pad;
    this.range = { x0, x1, y0: log ? Math.exp(bottom) : bottom, y1: log ? Math.exp(top) : top };
    this.ticks = log ? logTicks(this.range.y0, this.range.y1) : ticks(this.range.y0, this.range.y1, 5);
    const longest = Math.max(4, ...this.ticks.map((tick) => shortNumber(tick).length));
    const box = this.box = { left: 12 + 7 * longest, right: width - 4, top: 8, bottom: height - 24 };
    this.x = (v) => box.left + (box.right - box.left) * (v - x0) / (x1 - x0);
    this.y = (v) => box.bottom - (box.bottom - box.top) * (f(v) - bottom) / (top - bottom);
  }

  grid(svg) {
    const { left, right, bottom } = this.box, { x0, x1 } = this.range;
    for (const tick of this.ticks) {
      element("line", { class: "grid", x1: left, x2: right, y1: this.y(tick), y2: this.y(tick) }, svg);
      element("text", { x: left - 8, y: this.y(tick) + 4, "text-anchor": "end" }, svg).textContent = shortNumber(tick);
    }
    const wanted = Math.max(2, Math.floor((right - left) / 90));
    for (const tick of ticks(x0, x1, wanted, view.axis)) {
      const anchor = this.x(tick) > right - 20 ? "end" : "middle";
      const text = element("text", { x: this.x(tick), y: bottom + 18, "text-anchor": anchor }, svg);
      text.textContent = view.axis === "seconds" ? clock(tick) : shortNumber(tick);
    }
  }

  line(svg, series, points) {
    let path = "", down = false;
    for (const [x, y] of points) {
      if (y === null) { down = false; continue; }
      path += `${down ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
      down = true;
    }
    const dash = DASHES[series.dash % DASHES.length];
    element("path", { class: `line ${series.kind}`, d: path, "stroke-dasharray": dash }, svg);
    if (points.length === 1 && points[0][1] !== null)
      element("circle", { class: "dot", cx: this.x(points[0][0]), cy: this.y(points[0][1]), r: 4 }, svg);
  }

  hover(event) {
    if (!this.box) return;
    const { left, right } = this.box, { x0, x1 } = this.range;
    const share = (event.clientX - this.plot.getBoundingClientRect().left - left) / (right - left);
    const x = x0 + Math.min(1, Math.max(0, share)) * (x1 - x0);
    panels.forEach((panel) => panel.mark(x));
  }

  // Show the values nearest to x, or the last ones where x is null.
  mark(x) {
    if (!this.cursor || !this.plot.clientWidth) return;
    this.cursor.replaceChildren();
    this.readout.replaceChildren();
    const nearest = this.data.series.map((series) => {
      const points = this.points(series).filter((p) => p[1] !== null);
      if (x === null) return points.at(-1);
      return points.reduce((a, b) => (!a || Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a), undefined);
    });
    const at = nearest.find(Boolean);
    if (!at) return;
    if (x !== null) {
      const { top, bottom } = this.box, place = this.x(at[0]);
      element("line", { class: "cursor", x1: place, x2: place, y1: top, y2: bottom }, this.cursor);
    }
    const where = document.createElement("span");
    where.className = "at";
    where.textContent = along(view.axis, at[0]);
    this.readout.append(where);
    this.data.series.forEach((series, i) => nearest[i] && this.entry(series, nearest[i], x !== null));
  }

  entry(series, point, dotted) {
    if (dotted) element("circle", { class: "dot", cx: this.x(point[0]), cy: this.y(point[1]), r: 4 }, this.cursor);
    const entry = document.createElement("span");
    if (series.name) {
      const key = element("svg", { viewBox: "0 0 20 8", "aria-hidden": "true" });
      element("path", { class: `line ${series.kind}`, d: "M1 4H19", "stroke-dasharray": DASHES[series.dash % DASHES.length] }, key);
      entry.append(key, series.name + " ");
    }
    const value = document.createElement("b");
    value.textContent = shortNumber(point[1]);
    entry.append(value);
    this.readout.append(entry);
  }
}

document.querySelectorAll(".panel").forEach((root) => panels.push(new Panel(root)));
document.querySelectorAll(".controls input").forEach((input) => input.addEventListener("change", () => {
  view[input.name] = input.value;
  panels.forEach((panel) => panel.draw());
}));

// ---- players ----

document.querySelectorAll(".player").forEach((player) => {
  const [audio, button, wave] = ["audio", "button", ".wave"].map((name) => player.querySelector(name));
  const slider = wave.querySelector("input");
  const played = wave.querySelector("svg").cloneNode(true);
  played.classList.add("played");
  wave.insertBefore(played, slider);
  audio.controls = false;
  audio.hidden = true;
  button.hidden = wave.hidden = false;

  const name = button.getAttribute("aria-label").replace("Play ", "");
  const show = () => {
    const share = audio.duration ? audio.currentTime / audio.duration : 0;
    slider.value = share;
    wave.style.setProperty("--done", 100 * share + "%");
    if (!audio.paused) requestAnimationFrame(show);
  };
  button.addEventListener("click", () => (audio.paused ? audio.play().catch(() => {}) : audio.pause()));
  slider.addEventListener("input", () => { audio.currentTime = slider.value * (audio.duration || 0); show(); });
  audio.addEventListener("play", () => {
    document.querySelectorAll("audio").forEach((other) => other !== audio && other.pause());
    player.classList.add("playing");
    button.setAttribute("aria-label", "Pause " + name);
    show();
  });
  for (const event of ["pause", "ended"]) audio.addEventListener(event, () => {
    player.classList.remove("playing");
    button.setAttribute("aria-label", "Play " + name);
    if (event === "ended") { audio.currentTime = 0; show(); }
  });
});
