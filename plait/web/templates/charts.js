// One figure: its panels, the legend, and PNG and CSV of it.

class Chart {
  constructor(root) {
    this.root = root;
    this.data = JSON.parse(root.querySelector("script").textContent);
    this.hidden = new Set();
    this.legend = root.querySelector(".legend");
    const area = root.querySelector(".panels");
    area.classList.toggle("many", this.data.panels.length > 3);
    this.panels = [];
    for (const series of this.data.panels.flatMap((p) => p.series)) series.given = series.x;
    for (const panel of this.data.panels) this.panels.push(new Panel(this, panel, area));
    this.keys();
    root.querySelector(".png").addEventListener("click", () => this.png());
    root.querySelector(".csv").addEventListener("click", () => this.csv());
  }

  // A key for each name; where panels show it in several colours, it has none.
  keys() {
    const shown = new Map();
    for (const series of this.data.panels.flatMap((p) => p.series).filter((s) => s.name)) {
      const known = shown.get(series.name);
      shown.set(series.name, known && known.colour !== series.colour ? { ...known, colour: -1 } : series);
    }
    for (const series of [...shown.values()].sort((a, b) => (a.colour < 0) - (b.colour < 0))) this.key(series);
  }

  key(series) {
    const button = html("button", "", this.legend);
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    const sign = element("svg", { viewBox: "0 0 22 10", style: colour(series), "aria-hidden": "true" }, button);
    if (series.kind === "line") element("path", { ...lineStyle(series), d: "M1 5H21" }, sign);
    else element("rect", { class: "bar", x: 6, y: 0.5, width: 9, height: 9, rx: 2 }, sign);
    html("span", series.name, button);
    button.addEventListener("click", () => {
      const on = this.hidden.delete(series.name);
      if (!on) this.hidden.add(series.name);
      button.setAttribute("aria-pressed", String(on));
      this.panels.forEach((panel) => panel.draw());
    });
  }

  csv() {
    const quote = (v) => v === undefined || v === null ? "" : /[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : String(v);
    const others = this.data.axes.slice(1);
    const rows = [["panel", "series", "kind", "x label", "x", ...others, "y label", "y", "low", "high", "lower bound"]];
    for (const p of this.data.panels) for (const s of p.series) s.given.forEach((x, i) => rows.push(
      [p.title, s.name, s.kind, p.x_label, p.categories.length && s.kind === "bars" ? p.categories[x] : x,
        ...others.map((axis) => s.along[axis]?.[i]), p.y_label, s.y[i], s.low?.[i], s.high?.[i], s.is_bound?.[i] ? "yes" : ""]));
    save(new Blob([rows.map((r) => r.map(quote).join(",") + "\n").join("")], { type: "text/csv" }), `${this.data.name}.csv`);
  }

  // The figure as it stands, twice as large: title, legend and panels at their places in one image.
  async png() {
    const frame = this.root.getBoundingClientRect(), style = getComputedStyle(this.root);
    const whole = element("svg", { xmlns: SVG, width: frame.width, height: frame.height });
    element("rect", { width: "100%", height: "100%", fill: style.backgroundColor }, whole);
    const place = (node) => { const r = node.getBoundingClientRect(); return { x: r.left - frame.left, y: r.top - frame.top, r }; };
    for (const node of this.root.querySelectorAll("h3, .legend button:not([aria-pressed=false]) span")) {
      const { x, y, r } = place(node), s = getComputedStyle(node);
      const text = element("text", { x, y: y + r.height * 0.72, fill: s.color, style: `font: ${s.font}` }, whole);
      text.textContent = node.textContent;
    }
    for (const node of this.root.querySelectorAll(".panels svg, .legend button:not([aria-pressed=false]) svg")) {
      const { x, y, r } = place(node), copy = node.cloneNode(true);
      const [here, there] = [[node, ...node.querySelectorAll("*")], [copy, ...copy.querySelectorAll("*")]];
      here.forEach((original, i) => plain(original, there[i]));
      for (const [key, value] of Object.entries({ x, y, width: r.width, height: r.height })) copy.setAttribute(key, value);
      whole.append(copy);
    }
    const image = new Image();
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(new XMLSerializer().serializeToString(whole));
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * frame.width, 2 * frame.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(blob, `${this.data.name}.png`), "image/png");
  }
}

// Write what style sheets say into the element itself: an image of its own has no style sheets.
const KEPT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font", "text-anchor"];

function plain(original, copy) {
  const style = getComputedStyle(original);
  copy.setAttribute("style", KEPT.map((name) => `${name}: ${style.getPropertyValue(name)}`).join("; "));
  copy.removeAttribute("class");
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const charts = [...document.querySelectorAll("figure.chart")].map((root) => new Chart(root));
const redraw = () => charts.forEach((chart) => chart.panels.forEach((panel) => panel.draw()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.querySelectorAll(".controls input").forEach((input) => input.addEventListener("change", () => {
  chosen[input.name] = input.value;
  redraw();
}));
