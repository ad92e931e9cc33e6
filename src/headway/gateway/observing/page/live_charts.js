"use strict";
// Charts of the live page: the last hour from `hour`, and the waiting requests by length and age from `state`.
const SVG = "http://www.w3.org/2000/svg";

function svgNode(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function htmlNode(name, text, className) {
  return Object.assign(document.createElement(name), { textContent: text, className: className || "" });
}

// Pieces of a line between gaps: [[x, y], …] where a value is known.
function stretches(values) {
  const found = [];
  let last = null;
  values.forEach((value, x) => {
    if (value === null) last = null;
    else if (last) last.push([x, value]);
    else found.push(last = [[x, value]]);
  });
  return found;
}

function linesOf(shown, most) {
  const lines = shown.map((line) => ({ values: line.values.slice(begin) }));
  const length = lines[0].values.length - 1;
  const svg = svgNode("svg", { viewBox: `0 0 ${length} 100`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(svgNode("path", { d: `M0 98H${length}`, class: "axis" }));
  lines.forEach((line, place) => {
    for (const points of stretches(line.values)) {
      const [first] = points;
      const d = points.length === 1 ? [[first[0] - 1, first[1]], first] : points;
      svg.append(svgNode("path", { d: `M${d.map(([x, y]) => `${x} ${98 - 94 * y / most}`).join("L")}`, class: `line s${place}` }));
    }
  });
  return svg;
}

// A gateway that began less than an hour ago shows the time since then, at least 15 slices.
const SLICES_MIN = 15;
let begin = 0;
let span = "1 hour";
function setSpan(hour) {
  const first = hour.waiting.findIndex((value) => value !== null);
  begin = Math.max(0, Math.min(first < 0 ? hour.waiting.length : first, hour.waiting.length - SLICES_MIN));
  const minutes = Math.round((hour.waiting.length - begin) * hour.slice_seconds / 60);
  span = minutes < 60 ? `${minutes} minutes` : "1 hour";
}

// One chart: title, highest value, picture, legend with the latest values. `figure` writes a value with its unit.
function chart(id, title, lines, figure) {
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const most = Math.max(...known, 0);
  const latest = (values) => values.findLast((value) => value !== null) ?? null;
  const picture = Object.assign(document.createElement("div"), { className: "picture" });
  picture.append(linesOf(lines, most || 1));
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `${title}, last ${span}: at most ${figure(most)}; `
    + lines.map((line) => `${line.name} now ${figure(latest(line.values))}`).join(", "));
  const times = htmlNode("p", "", "times");
  times.append(htmlNode("span", `${span} ago`), htmlNode("span", "now"));
  const legend = htmlNode("ul", "", "legend");
  lines.forEach((line, place) => {
    const key = svgNode("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" });
    key.append(svgNode("path", { d: "M0 4H24", class: `line s${place}` }));
    const entry = htmlNode("li", "");
    entry.append(key, htmlNode("span", `${line.name} ${figure(latest(line.values))}`));
    legend.append(entry);
  });
  byId(id).replaceChildren(htmlNode("h3", title), htmlNode("p", `at most ${figure(most)}`, "most"), picture, times, legend);
}

function spark(values) {
  const most = Math.max(1, ...values.map((value) => value ?? 0));
  const holder = htmlNode("div", "", "spark");
  holder.setAttribute("role", "img");
  holder.setAttribute("aria-label", `at most ${number(most)} in a slice, now ${number(values.at(-1))}`);
  holder.append(linesOf([{ values }], most));
  return holder;
}

const rate = (n) => n === null ? "–" : `${n < 10 ? n.toFixed(1) : number(n)}/s`;
const inWords = (name) => name || "(no name)";

function showHour(hour) {
  const { requests, tokens } = hour;
  setSpan(hour);
  chart("chart-requests", "Requests a second", [{ name: "answered", values: requests.completed }], rate);
  chart("chart-refusals", "Not answered, requests a second", ["refused", "failed", "cancelled"].map((name) =>
    ({ name, values: requests[name] })), rate);
  chart("chart-tokens", "Tokens a second", [{ name: "output", values: tokens.output }, { name: "input", values: tokens.input }], rate);
  chart("chart-waiting", "Requests waiting, the most in 20 s", [{ name: "waiting", values: hour.waiting }], number);
  const seen = hour.ttft.filter((one) => one.requests);
  chart("chart-ttft", "Median TTFT by prompt tokens", (seen.length ? seen : hour.ttft.slice(0, 1)).map((one) =>
    ({ name: one.class, values: one.medians })), seconds);
  rows("classes", seen.map((one) => [one.class, number(one.requests), seconds(one.median), seconds(one.p99)]),
    "no streamed answer in the last hour");
  for (const kind of ["replicas", "tenants"]) {
    rows(`hour-${kind}`, hour[kind].map((one) => [wraps(inWords(one.name)), number(one.requests), number(one.not_answered),
      number(one.output_tokens), { node: spark(one.by_slice) }]), "no request in the last hour");
  }
}

// Darker where more wait; the number is in each cell, so that no one needs the colour.
function showWaiting(picture) {
  const most = Math.max(1, ...picture.requests.flat());
  const total = picture.requests.flat().reduce((sum, n) => sum + n, 0);
  byId("waiting-words").textContent = total
    ? `${number(total)} requests wait${picture.counted_each > 1 ? `, counted from each ${picture.counted_each}th` : ""}; the oldest for ${seconds(picture.oldest_seconds)}.`
    : "No request waits.";
  byId("waiting-picture").hidden = !total;
  rows("waiting-cells", picture.requests.map((cells, place) => [picture.lengths[place], ...cells.map((n) =>
    ({ text: n ? number(n) : "·", classes: `cell heat${n ? Math.ceil(4 * n / most) : 0}` }))]), "");
}
