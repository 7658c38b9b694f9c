// One pair of axes.

class Panel {
  constructor(chart, data, parent) {
    this.chart = chart;
    this.data = data;
    this.root = html("div", "", parent, "panel");
    this.svg = element("svg", { class: "plot", tabindex: 0, role: "img" }, this.root);
    this.place = -1;
    this.svg.addEventListener("pointermove", (event) => this.hover(event));
    this.svg.addEventListener("pointerdown", (event) => this.hover(event));
    this.svg.addEventListener("pointerleave", () => this.mark(null));
    this.svg.addEventListener("blur", () => this.mark(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  get series() { return this.data.series.filter((s) => !this.chart.hidden.has(s.name)); }

  // The axis that the page's controls chose, "" where this chart has one axis alone.
  get axis() { return this.chart.data.axes.includes(chosen.axis) ? chosen.axis : this.chart.data.axes[0] ?? ""; }

  xLabel() { return this.axis ? AXES[this.axis] : this.data.x_label; }

  number(x) { return this.axis === "seconds" ? clock(x) : short(this.axis ? Math.round(x) : x); }

  draw() {
    const width = this.root.clientWidth, height = this.svg.clientHeight;
    if (!width) return;
    for (const s of this.data.series) s.x = this.axis in s.along ? s.along[this.axis] : s.given;
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const names = [...new Set(this.data.series.map((s) => s.name))];
    this.svg.setAttribute("aria-label", `${this.chart.data.title}, ${this.data.title}: ${names.join(", ")}. ` +
      "Left and right arrows read the values.");
    this.frame(width, height);
    this.axes(width, height);
    const clip = this.clip = `clip-${this.chart.data.name}-${this.chart.panels.indexOf(this)}`;
    const { left, right, top, bottom } = this.box;
    const area = element("clipPath", { id: clip }, element("defs", {}, this.svg));
    element("rect", { x: left, y: top, width: right - left, height: bottom - top }, area);
    this.body = element("g", { "clip-path": `url(#${clip})` }, this.svg);
    const bars = this.series.filter((s) => s.kind === "bars");
    for (const series of this.series) {
      if (series.kind === "line") this.line(series);
      else if (series.kind === "bars") this.bars(series, bars.indexOf(series), bars.length);
      else this.points(series);
    }
    this.ends();
    this.cursor = element("g", {}, this.svg);
    this.mark(null);
  }

  frame(width, height) {
    const shown = this.series.length ? this.series : this.data.series;
    const known = (values) => values.filter((v) => v !== null);
    const ys = known(shown.flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]));
    this.logX = this.data.log;
    this.logY = this.data.log || (this.chart.data.scales && chosen.scale === "log" && ys.every((y) => y > 0));
    const range = (given, values, log, wide) => {
      if (given) return given;
      let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
      if (!values.length) return log ? [1, 10] : [0, 1];
      if (log) return [low / 1.15, high * 1.15];
      if (wide && low > 0 && low < high / 3) low = 0;
      const pad = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
      return [low === 0 && wide ? 0 : low - pad, high + pad];
    };
    const bars = shown.some((s) => s.kind === "bars"), xs = known(shown.flatMap((s) => s.x));
    const fitted = this.axis && new Set(xs).size > 1 ? [xs.reduce((a, b) => Math.min(a, b)), xs.reduce((a, b) => Math.max(a, b))] : null;
    if (fitted && fitted[0] > 0 && fitted[0] < fitted[1] / 5) fitted[0] = 0;
    const [x0, x1] = range(this.data.x_range ?? fitted, xs, this.logX, false);
    const [y0, y1] = range(this.data.y_range, bars ? [0, ...ys] : ys, this.logY, bars);
    const scale = (log) => log ? Math.log : (v) => v, f = scale(this.logX), g = scale(this.logY);
    this.yTicks = this.logY ? logTicks(y0, y1, 6) : ticks(y0, y1, 5);
    const longest = Math.max(3, ...this.yTicks.map((t) => short(t).length));
    const room = this.data.series.some((s) => s.end_label) ? 54 : 6;
    const box = this.box = { left: (this.data.y_label ? 26 : 12) + 7 * longest, right: width - room, top: 24, bottom: height - 40 };
    this.range = { x0, x1, y0, y1 };
    this.x = (v) => box.left + (box.right - box.left) * (f(v) - f(x0)) / (f(x1) - f(x0));
    this.y = (v) => box.bottom - (box.bottom - box.top) * (g(v) - g(y0)) / (g(y1) - g(y0));
  }

  axes(width, height) {
    const { left, right, top, bottom } = this.box, { x0, x1 } = this.range, d = this.data;
    element("text", { class: "title", x: left, y: 13 }, this.svg).textContent = d.title;
    for (const tick of this.yTicks) {
      element("line", { class: "grid", x1: left, x2: right, y1: this.y(tick), y2: this.y(tick) }, this.svg);
      element("text", { x: left - 7, y: this.y(tick) + 4, "text-anchor": "end" }, this.svg).textContent = short(tick);
    }
    const wanted = Math.max(2, Math.floor((right - left) / 64));
    const whole = d.series.every((s) => s.x.every(Number.isInteger)) ? 1 : 0;
    const numbers = this.logX ? logTicks(x0, x1, wanted) : ticks(x0, x1, wanted, whole, this.axis === "seconds");
    const xs = d.categories.length ? d.categories.map((_, i) => i) : numbers;
    for (const tick of xs) {
      if (!d.categories.length) element("line", { class: "axis", x1: this.x(tick), x2: this.x(tick), y1: bottom, y2: bottom + 4 }, this.svg);
      const text = element("text", { x: this.x(tick), y: bottom + 17, "text-anchor": "middle" }, this.svg);
      text.textContent = d.categories.length ? d.categories[tick] : this.number(tick);
    }
    element("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }, this.svg);
    element("text", { x: (left + right) / 2, y: height - 5, "text-anchor": "middle" }, this.svg).textContent = this.xLabel();
    const middle = (top + bottom) / 2;
    const label = element("text", { x: 11, y: middle, "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` }, this.svg);
    label.textContent = d.y_label;
  }

  line(series) {
    const at = (values) => series.x.map((x, i) => `${this.x(x).toFixed(1)} ${this.y(values[i]).toFixed(1)}`);
    if (series.low) {
      const edge = `M${at(series.low).join("L")}L${at(series.high).reverse().join("L")}Z`;
      element("path", { class: "band", style: colour(series), d: edge }, this.body);
    }
    let path = "", isDown = false;
    series.x.forEach((x, i) => {
      const isGap = x === null || series.y[i] === null;
      if (!isGap) path += `${isDown ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(series.y[i]).toFixed(1)}`;
      isDown = !isGap;
    });
    element("path", { ...lineStyle(series), d: path }, this.body);
    const known = series.y.flatMap((y, i) => y === null || series.x[i] === null ? [] : [i]);
    if (known.length === 1) this.dot(series, known[0], this.body);
  }

  dot(series, i, parent, className = "dot") {
    const hollow = series.is_bound?.[i] ? " hollow" : "";
    const place = { cx: this.x(series.x[i]).toFixed(1), cy: this.y(series.y[i]).toFixed(1) };
    element("circle", { class: className + hollow, style: colour(series), ...place, r: className === "chosen" ? 6 : 3 }, parent);
  }

  points(series) {
    series.x.forEach((_, i) => this.dot(series, i, this.body));
    if (series.low) series.x.forEach((x, i) => this.whisker(series, i, this.x(x)));
  }

  bars(series, number, count) {
    const group = (this.x(1) - this.x(0)) * 0.8, width = Math.min(group / count, 46);
    series.middle = [];
    series.x.forEach((x, i) => {
      const middle = series.middle[i] = this.x(x) + (number - (count - 1) / 2) * width, top = this.y(series.y[i]);
      const shape = { x: middle - width * 0.44, y: top, width: width * 0.88, height: Math.max(0, this.box.bottom - top) };
      element("rect", { class: series.is_bound?.[i] ? "bar hollow" : "bar", style: colour(series), ...shape, rx: 1.5 }, this.body);
      if (series.low && series.low[i] !== series.high[i]) this.whisker(series, i, middle);
    });
  }

  whisker(series, i, x) {
    const [low, high] = [this.y(series.low[i]), this.y(series.high[i])];
    element("path", { class: "whisker", d: `M${x} ${low}V${high}M${x - 3} ${low}h6M${x - 3} ${high}h6` }, this.body);
  }

  // What stands at the ends of lines, none over another and none outside.
  ends() {
    const said = this.series.filter((s) => s.end_label).sort((a, b) => b.y.at(-1) - a.y.at(-1));
    const at = apart(said.map((s) => this.y(s.y.at(-1))), 14, this.box.top + 4, this.box.bottom);
    said.forEach((series, i) => {
      const text = element("text", { class: "end", style: colour(series), x: this.box.right + 5, y: at[i] + 4 }, this.svg);
      text.textContent = series.end_label;
    });
  }

  // Everything that can be read: [pixel x, pixel y, series, number], from left to right.
  stops() {
    const found = [];
    for (const s of this.series) {
      if (isReference(s)) continue;
      s.x.forEach((x, i) => x !== null && s.y[i] !== null && found.push([s.middle?.[i] ?? this.x(x), this.y(s.y[i]), s, i]));
    }
    return found.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  }

  hover(event) {
    const box = this.svg.getBoundingClientRect(), [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const byX = this.series.every((s) => s.kind !== "points");
    const far = (stop) => byX ? Math.abs(stop[0] - x) + Math.abs(stop[1] - y) * 1e-3 : Math.hypot(stop[0] - x, stop[1] - y);
    const stops = this.stops();
    this.mark(stops.length ? stops.reduce((a, b) => far(b) < far(a) ? b : a) : null, stops);
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Escape: 0 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const stops = this.stops();
    if (!step || !stops.length) return this.mark(null);
    const next = Math.min(stops.length - 1, Math.max(0, this.place + step));
    this.mark(stops[next], stops);
  }

  // The number of the point of a series at x; of a line that was measured elsewhere, of the nearest one around x.
  nearest(series, x) {
    const exact = series.x.indexOf(x);
    if (exact >= 0 || series.kind !== "line" || isReference(series)) return series.y[exact] === null ? -1 : exact;
    const known = series.x.map((_, i) => i).filter((i) => series.x[i] !== null && series.y[i] !== null);
    if (!known.length || x > series.x[known.at(-1)] || x < series.x[known[0]]) return -1;
    return known.reduce((a, b) => Math.abs(series.x[b] - x) < Math.abs(series.x[a] - x) ? b : a);
  }

  // Show what stands at a stop: of lines, every one at this x; of points and bars, the one that is nearest.
  mark(stop, stops = []) {
    this.cursor?.replaceChildren();
    this.root.querySelector(".tip")?.remove();
    this.place = stops.indexOf(stop);
    if (!stop) return;
    const [x, y, series, i] = stop, { top, bottom, left, right } = this.box;
    const tip = html("div", "", this.root, "tip");
    const at = this.data.categories.length ? this.data.categories[series.x[i]] : `${this.xLabel()} ${this.number(series.x[i])}`;
    html("div", at, tip, "at");
    if (series.kind === "line") element("line", { class: "cursor", x1: x, x2: x, y1: top, y2: bottom }, this.cursor);
    const together = this.series.every((s) => s.kind !== "points") && (series.kind === "line" || series.kind === "bars");
    for (const s of together ? this.series.filter((s) => s.kind === series.kind || isReference(s)) : [series]) {
      const k = s === series ? i : this.nearest(s, series.x[i]);
      const value = k >= 0 ? s.y[k] : isReference(s) && s.x.length === 2 ? s.y[0] + (s.y[1] - s.y[0]) * (series.x[i] - s.x[0]) / (s.x[1] - s.x[0]) : null;
      if (value === null) continue;
      this.entry(tip, s, k, value);
      if (k >= 0 && s.kind === "line" && this.y(value) >= top) this.dot(s, k, this.cursor);
    }
    if (series.kind === "bars") element("circle", { class: "chosen", cx: x, cy: y, r: 3 }, this.cursor);
    else if (y >= top) this.dot(series, i, this.cursor, "chosen");  // the first losses may lie above the frame
    const width = tip.offsetWidth, room = this.root.clientWidth;
    tip.style.left = `${x + 14 + width > room ? Math.max(0, x - 14 - width) : x + 14}px`;
    tip.style.top = `${Math.max(0, Math.min(y - tip.offsetHeight / 2, bottom - tip.offsetHeight))}px`;
  }

  entry(tip, series, k, value) {
    const row = html("div", "", tip);
    row.setAttribute("style", colour(series));
    html("i", "", row);
    html("span", series.name || this.data.title, row);
    html("b", (series.is_bound?.[k] ? "≥ " : "") + short(value) + (this.chart.data.axes.length && this.data.y_label ? ` ${this.data.y_label}` : ""), row);
    if (series.low && k >= 0 && series.low[k] !== series.high[k]) html("span", `${short(series.low[k])} to ${short(series.high[k])}`, row, "range");
  }
}
