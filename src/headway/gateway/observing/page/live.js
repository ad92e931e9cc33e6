"use strict";
// Shows `state`, once a second, and `hour`. Addresses are relative: a proxy may put a path before them.
// Every text goes in as text, never as markup.
const byId = (id) => document.getElementById(id);
const seconds = (s) => s === null || s === undefined ? "–" : s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`;
const number = (n) => n === null || n === undefined ? "–" : Math.round(n).toLocaleString("en");
const HOUR_SECONDS = 10; // between two looks at the hour
let paused = false;
let hourAt = 0;

const wraps = (text) => ({ text, classes: "wraps" });
const bad = (text) => ({ text, classes: "bad wraps" });

// Cells: a text, {text, classes} or {node}. Each row repeats its heads in data-head, which a narrow screen shows.
function rows(id, data, none) {
  const body = byId(id);
  const heads = [...body.closest("table").tHead.rows[0].cells].map((head) => head.textContent.trim());
  body.replaceChildren(...data.map((cells) => {
    const row = roled(document.createElement("tr"), "row");
    cells.forEach((cell, place) => {
      const { text, classes, node } = typeof cell === "object" && cell ? cell : { text: cell };
      const made = roled(row.insertCell(), "cell");
      made.className = classes || "";
      made.dataset.head = heads[place];
      if (node) made.append(node);
      else made.textContent = text;
    });
    return row;
  }));
  if (!data.length) Object.assign(roled(roled(body.insertRow(), "row").insertCell(), "cell"), { textContent: none, colSpan: 9 });
}

// A table that is laid out as blocks would be no table to a screen reader without its roles.
function roled(node, role) {
  node.setAttribute("role", role);
  return node;
}
for (const table of document.querySelectorAll("table")) {
  roled(table, "table");
  roled(table.tHead, "rowgroup");
  roled(table.tBodies[0], "rowgroup");
  for (const row of table.tHead.rows) [...roled(row, "row").cells].forEach((cell) => roled(cell, "columnheader"));
}

// "a: 1, b: 2", which breaks into lines at the commas only.
const counted = (entries) => entries.map(([name, n]) => `${name}: ${n}`.replaceAll(" ", "\u00a0")).join(", ");

function perLane(queue) {
  if (queue.lanes_in_all === 1 && !queue.lanes[0].name) return "one lane";
  const told = queue.lanes.map(({ name, requests, first_prompt_tokens: tokens }) =>
    `${number(requests)}${name ? ` of ${name}` : ""}${tokens === null ? "" : `, the first of ${number(tokens)} tokens`}`);
  const more = queue.lanes_in_all - queue.lanes.length;
  return told.join("; ") + (more > 0 ? `; ${number(more)} more lanes` : "");
}

function ages(report) {
  const known = [["running", "running"], ["waiting", "waiting"], ["kv_share", "KV"]].filter(([key]) => key in report);
  const texts = known.map(([key]) => seconds(report[key]));
  if (!known.length) return "–";
  return new Set(texts).size === 1 ? texts[0] : known.map(([, name], i) => `${name}: ${texts[i]}`).join(", ");
}

function show(state) {
  byId("policies").textContent = Object.entries(state.policies).map(([k, v]) => `${k}: ${v}`).join(" · ");
  byId("auto").hidden = !state.auto;
  const looks = state.auto ? state.auto.sentences.map((sentence, at) =>
    `${new Date(1000 * state.auto.said_at[at]).toLocaleTimeString([], { timeStyle: "short" })}: ${sentence}`) : [];
  if (state.auto && !looks.length) {
    looks.push(`No look yet: it begins with ${state.auto.requests_min} requests, by ${state.auto.objective}.`);
  }
  byId("looks").replaceChildren(...looks.toReversed().map((sentence) =>
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
  showWaiting(state.waiting_picture);
  const waits = (l) => l.waiting_offline ? `${number(l.waiting)}, ${number(l.waiting_offline)} offline` : number(l.waiting);
  const there = (r) => r.offline_requests ? `${r.requests} (${r.offline_requests} offline)` : r.requests;
  rows("lines", state.lines.map((l) => [wraps(l.model), l.kind, waits(l), number(l.waiting_tokens),
    l.waiting ? seconds(l.drain_seconds) : "–", wraps(perLane(l)),
    wraps(counted(Object.entries(l.tenants).map(([t, n]) => [t || "(no name)", n])))]), "no request yet");
  rows("replicas", state.replicas.map((r) => [r.name,
    r.health === "leaving" ? "leaving: ends its requests"
      : r.health !== "up" ? bad(`${r.health}: ${r.last_failure || "not probed yet"}`)
      : r.drained ? "drained"
      : r.models_withheld ? bad(`up: ${r.models_withheld}`) : "up",
    `${there(r)} / ${r.requests_max}`, `${number(r.kv_tokens)} / ${number(r.kv_tokens_max)}`,
    `${number(r.says_running)}, ${number(r.says_waiting)}, ${r.says_kv_share === null ? "–" : Math.round(100 * r.says_kv_share) + " %"}`,
    ages(r.report_age_seconds), wraps(r.source)]), "no replica");
  rows("reasons", Object.entries(state.reasons).map(([r, n]) => [r, number(n)]), "none");
  rows("stories", [...state.stories].reverse().map((s) => [wraps(s.id), wraps(s.tenant || "–"), number(s.prompt_tokens),
    number(s.output_tokens), s.outcome === "completed" ? s.outcome : bad(s.outcome),
    seconds(s.first_byte_seconds), wraps(s.why)]), "none yet");
}

async function refresh() {
  if (!paused) {
    try {
      show(await (await fetch("state")).json());
      if (Date.now() - hourAt >= 1000 * HOUR_SECONDS) {
        showHour(await (await fetch("hour")).json());
        hourAt = Date.now();
      }
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
  const answer = await fetch(`why?id=${encodeURIComponent(byId("id").value.trim())}`);
  const story = await answer.json();
  byId("answer").textContent = answer.ok
    ? `${story.outcome} after ${seconds(story.seconds)}; ${story.why}; predicted wait ${seconds(story.predicted_wait_seconds)}; replica ${story.replica || "none"}`
    : story.error.message;
});
refresh();
