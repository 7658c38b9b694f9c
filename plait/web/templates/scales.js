"use strict";
// scales.js, panel.js and charts.js, joined in this order, draw the charts of this page from their data
// (plait/web/charts.py): values under the pointer, series switched on and off by the legend, and every chart as PNG and
// CSV. Text goes in through textContent only.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

function html(name, text, parent, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  parent.append(made);
  return made;
}

const DASHES = ["", "5 4", "1.5 4", "9 3 2 3", "3 2"];
const AXES = { step: "training step", tokens: "tokens", seconds: "time" };
const chosen = { axis: "step", scale: "linear" };  // by the controls of the page

function colour(series) {
  const neutral = isReference(series) ? "--soft" : "--ink";
  return `--c: var(${series.colour < 0 ? neutral : "--c" + (series.colour % 10)})`;
}

// A line to compare with: it has no colour of its own, and its values are not read.
function isReference(series) { return series.dash > 0 && series.colour < 0; }

function lineStyle(series) {
  return { class: `line${series.faint ? " faint" : series.dash ? " dashed" : ""}`, style: colour(series),
    "stroke-dasharray": DASHES[series.dash % DASHES.length] };
}

// ---- numbers ----

function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e15)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"]])
    if (size >= unit) return +(value / unit).toPrecision(3) + " " + letter;
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
}

function clock(seconds) {
  if (seconds >= 36000) return +(seconds / 3600).toFixed(1) + " h";
  if (seconds >= 3600) return Math.floor(seconds / 3600) + " h " + Math.round((seconds % 3600) / 60) + " min";
  return seconds >= 60 ? +(seconds / 60).toFixed(1) + " min" : +seconds.toFixed(1) + " s";
}

function ticks(low, high, wanted, least = 0, isTime = false) {
  const raw = Math.max((high - low) / wanted, least), power = 10 ** Math.floor(Math.log10(raw || 1));
  const times = isTime && raw > 20 ? [30, 60, 120, 300, 600, 1200, 3600, 7200, 18000, 36000] : [];
  const step = times.find((t) => t >= raw) ?? [1, 2, 2.5, 5, 10].find((b) => b * power >= raw) * power, found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high, wanted) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) all.push(factor * 10 ** power);
  const inside = all.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  const decades = inside.filter((t) => Math.abs(Math.log10(t) % 1) < 1e-9);
  if (inside.length <= wanted) return inside.length >= 2 ? inside : ticks(low, high, 4);
  return decades.length >= 2 ? decades : inside;
}

// Move places, which go downwards, so that each is a gap below the one before and all lie between two ends.
function apart(places, gap, first, last) {
  const moved = [];
  places.forEach((place, i) => moved.push(Math.max(place, i ? moved[i - 1] + gap : first)));
  for (let i = moved.length - 1, end = last; i >= 0; i--, end = moved[i + 1] - gap) moved[i] = Math.min(moved[i], end);
  return moved;
}
