"use strict";
// Shows /headway/state, once a second. Every text goes in as text, never as markup.
const byId = (id) => document.getElementById(id);
const seconds = (s) => s === null || s === undefined ? "–" : s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`;
const number = (n) => n === null || n === undefined ? "–" : Math.round(n).toLocaleString("en");
const waiting = [];
let paused = false;

const wraps = (text) => ({ text, classes: "wraps" });
const bad = (text) => ({ text, classes: "bad wraps" });

function rows(id, data, none) {
  const body = byId(id);
  body.replaceChildren(...data.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) {
      const { text, classes } = typeof cell === "object" && cell ? cell : { text: cell, classes: "" };
      Object.assign(row.insertCell(), { textContent: text, className: classes });
    }
    return row;
  }));
  if (!data.length) Object.assign(body.insertRow().insertCell(), { textContent: none, colSpan: 9 });
}

function draw() {
  const most = Math.max(1, ...waiting);
  const points = waiting.map((n, i) => `${i},${40 - 38 * n / most}`).join(" ");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 119 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true"); // the label around it says it in words
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points);
  svg.append(line);
  byId("history").replaceChildren(svg);
  byId("history").setAttribute("aria-label", `Requests waiting over the last two minutes: ${waiting.at(-1)} now, ${most} at most`);
}

// "a: 1, b: 2", which breaks into lines at the commas only.
const counted = (entries) => entries.map(([name, n]) => `${name}: ${n}`.replaceAll(" ", "\u00a0")).join(", ");

function perLane(lanes) {
  const entries = Object.entries(lanes);
  if (entries.length === 1 && entries[0][0] === "one") return "one lane";
  return counted(entries.map(([name, n]) => [/^-?\d+$/.test(name) ? `lane ${name}` : name, n]));
}

function ages(report) {
  const known = [["running", "running"], ["waiting", "waiting"], ["kv_share", "KV"]].filter(([key]) => key in report);
  const texts = known.map(([key]) => seconds(report[key]));
  if (!known.length) return "–";
  return new Set(texts).size === 1 ? texts[0] : known.map(([, name], i) => `${name}: ${texts[i]}`).join(", ");
}

function lengthClasses(stories) {
  const times = new Map();
  for (const s of stories.filter((story) => story.first_byte_seconds !== null)) {
    const key = s.prompt_tokens < 256 ? "below 256" : s.prompt_tokens < 2048 ? "256 to 2,047"
      : s.prompt_tokens < 16384 ? "2,048 to 16,383" : "16,384 and more";
    times.set(key, [...(times.get(key) || []), s.first_byte_seconds]);
  }
  return ["below 256", "256 to 2,047", "2,048 to 16,383", "16,384 and more"].filter((k) => times.has(k)).map((k) => {
    const sorted = times.get(k).sort((a, b) => a - b);
    return [k, sorted.length, seconds(sorted[sorted.length >> 1]), seconds(sorted.at(-1))];
  });
}

function show(state) {
  byId("policies").textContent = Object.entries(state.policies).map(([k, v]) => `${k}: ${v}`).join(" · ");
  byId("auto").hidden = !state.auto;
  byId("looks").replaceChildren(...(state.auto ? state.auto.sentences : []).toReversed().map((sentence) =>
    Object.assign(document.createElement("li"), { textContent: sentence })));
  const counts = { ...state.counts };
  if (state.fairness !== null) counts["Jain index"] = state.fairness.toFixed(2);
  if (state.batches) {
    counts["batches open"] = state.batches.open;
    counts["of batches waiting"] = state.batches.waiting;
    counts["of batches sent"] = state.batches.sent;
  }
  byId("counts").replaceChildren(...Object.entries(counts).map(([name, value]) => {
    const group = document.createElement("div");
    group.append(Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: typeof value === "number" ? number(value) : value }));
    return group;
  }));
  waiting.push(state.lines.reduce((sum, line) => sum + line.waiting, 0));
  if (waiting.length > 120) waiting.shift();
  draw();
  const waits = (l) => l.waiting_offline ? `${number(l.waiting)}, ${number(l.waiting_offline)} offline` : number(l.waiting);
  const there = (r) => r.offline_requests ? `${r.requests} (${r.offline_requests} offline)` : r.requests;
  rows("lines", state.lines.map((l) => [wraps(l.model), l.kind, waits(l), number(l.waiting_tokens),
    l.waiting ? seconds(l.drain_seconds) : "–", wraps(perLane(l.lanes)),
    wraps(counted(Object.entries(l.tenants).map(([t, n]) => [t || "(no name)", n])))]), "no request yet");
  rows("replicas", state.replicas.map((r) => [r.name,
    r.health === "leaving" ? "leaving: ends its requests"
      : r.health !== "up" ? bad(`${r.health}: ${r.last_failure || "not probed yet"}`)
      : r.drained ? "drained"
      : r.models_withheld ? bad(`up: ${r.models_withheld}`) : "up",
    `${there(r)} / ${r.requests_max}`, `${number(r.kv_tokens)} / ${number(r.kv_tokens_max)}`,
    `${number(r.says_running)}, ${number(r.says_waiting)}, ${r.says_kv_share === null ? "–" : Math.round(100 * r.says_kv_share) + " %"}`,
    ages(r.report_age_seconds), wraps(r.source)]), "no replica");
  rows("classes", lengthClasses(state.stories), "no streamed answer yet");
  rows("reasons", Object.entries(state.reasons).map(([r, n]) => [r, number(n)]), "none");
  rows("stories", [...state.stories].reverse().map((s) => [wraps(s.id), wraps(s.tenant || "–"), number(s.prompt_tokens),
    number(s.output_tokens), s.outcome === "completed" ? s.outcome : bad(s.outcome),
    seconds(s.first_byte_seconds), wraps(s.why)]), "none yet");
}

async function refresh() {
  if (!paused) {
    try {
      show(await (await fetch("/headway/state")).json());
      byId("news").textContent = "";
    } catch {
      byId("news").textContent = "The gateway does not answer.";
    }
  }
  setTimeout(refresh, 1000);
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = paused ? "Resume" : "Pause";
});
byId("find").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch(`/headway/why?id=${encodeURIComponent(byId("id").value.trim())}`);
  const story = await answer.json();
  byId("answer").textContent = answer.ok
    ? `${story.outcome} after ${seconds(story.seconds)}; ${story.why}; predicted wait ${seconds(story.predicted_wait_seconds)}; replica ${story.replica || "none"}`
    : story.error.message;
});
refresh();
