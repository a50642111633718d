// Asks the JSON routes every two seconds and draws what they say. Text is only ever set as text, so
// that a function's name or a worker's last words cannot become markup.

const EVERY_MS = 2000;
const STARTS = ["warm", "resume", "snapshot", "cold"];
const HOLDING = (pod) => pod.object.status.vram_mb > 0;
const ENDED = ["Terminated", "Failed"];
const ENDED_SHOWN_MS = 10 * 60 * 1000;

class Refused extends Error {}

const at = (id) => document.getElementById(id);
let key = sessionStorage.getItem("inferx-key") ?? "";

function make(tag, classes = "", ...children) {
  const element = document.createElement(tag);
  element.className = classes;
  element.append(...children);
  return element;
}

async function ask(route) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(route, { headers, cache: "no-store" });
  if (answer.status === 401) throw new Refused((await answer.json()).error.message);
  return answer;
}

async function json(route) {
  const answer = await ask(route);
  if (answer.status === 403) return null; // not for this key; the rest is shown
  if (!answer.ok) throw new Error(`${route}: HTTP ${answer.status}`);
  return answer.json();
}

// Prometheus text to {name: [[labels, value]]}, of our own metrics.
function parseMetrics(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = /^(inferx_\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value;
    }
    (found[match[1]] ??= []).push([labels, Number(match[3])]);
  }
  return found;
}

function sum(metrics, name, labels = {}) {
  const wanted = Object.entries(labels);
  return (metrics[name] ?? [])
    .filter(([have]) => wanted.every(([label, value]) => have[label] === value))
    .reduce((total, [, value]) => total + value, 0);
}

function age(ms) {
  const seconds = Math.max(0, ms) / 1000;
  for (const [limit, unit, size] of [[60, "s", 1], [3600, "min", 60], [86400, "h", 3600]]) {
    if (seconds < limit) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.floor(seconds / 86400)} d`;
}

const gigabytes = (mb) => `${(mb / 1024).toFixed(mb < 10240 ? 1 : 0)} GB`;
const count = (number) => number.toLocaleString("en");
const nameOf = (pod) => `${pod.namespace}/${pod.object.spec.funcname}`;

function tile(title, value, note) {
  const list = make("dl", "tile", make("dt", "", title), make("dd", "", value));
  list.append(make("p", "", note));
  return list;
}

function drawTiles({ functions, pods, nodes, metrics }) {
  const live = pods.filter((pod) => !ENDED.includes(pod.object.status.state));
  const states = {};
  for (const pod of live) {
    const { state } = pod.object.status;
    states[state] = (states[state] ?? 0) + 1;
  }
  const gpus = (nodes ?? []).flatMap((node) => node.object.spec.resources.GPUs);
  const total = gpus.reduce((mb, gpu) => mb + gpu.vram_mb, 0);
  const used = pods.reduce((mb, pod) => mb + pod.object.status.vram_mb, 0);
  const parts = Object.entries(states).map(([state, number]) => `${number} ${state}`);
  const tiles = [
    tile("Functions", count(functions.length), `${new Set(live.map(nameOf)).size} with a worker`),
    tile("Workers", count(live.length), parts.join(", ") || "none runs"),
  ];
  if (nodes) {
    const ready = nodes.filter((node) => node.object.status.state === "Ready").length;
    const share = total ? Math.round((100 * used) / total) : 0;
    tiles.push(tile("Nodes", `${ready}/${nodes.length}`, `ready, ${gpus.length} GPUs`));
    tiles.push(tile("GPU memory", `${share} %`, `${gigabytes(used)} of ${gigabytes(total)}`));
  }
  if (metrics) {
    const calls = sum(metrics, "inferx_calls_total");
    const waiting = sum(metrics, "inferx_function_parked");
    const active = sum(metrics, "inferx_function_active");
    tiles.push(tile("Calls", count(calls), `${active} active, ${waiting} waiting, this gateway`));
  }
  at("tiles").replaceChildren(...tiles);
}

function drawGpu(gpu, pods) {
  const bar = make("div", "bar");
  let used = 0;
  for (const pod of pods) {
    const { state, vram_mb: all, gpus } = pod.object.status;
    const mb = all / gpus.length;
    const slice = make("div", `slice ${state}`, pod.object.spec.funcname);
    slice.style.flex = `0 0 ${(100 * mb) / gpu.vram_mb}%`;
    slice.title = `${nameOf(pod)}: ${gigabytes(mb)}, ${state}`;
    used += mb;
    bar.append(slice);
  }
  const label = make("span", "", `${gpu.index} ${gpu.type}`);
  const amount = make("span", "", `${(used / 1024).toFixed(1)} / ${gigabytes(gpu.vram_mb)}`);
  return make("div", "gpu", label, bar, amount);
}

function drawNodes({ nodes, pods }) {
  if (!nodes) {
    at("nodes").replaceChildren(make("div", "node empty", "Nodes are shown to administrators."));
    return;
  }
  const cards = nodes.map((node) => {
    const { state, reason } = node.object.status;
    const pill = make("span", `pill ${state}`, reason ? `${state}: ${reason}` : state);
    const card = make("article", "node", make("header", "", make("h3", "", node.name), pill));
    const here = pods.filter((pod) => pod.object.spec.node === node.name && HOLDING(pod));
    for (const gpu of node.object.spec.resources.GPUs) {
      card.append(drawGpu(gpu, here.filter((pod) => pod.object.status.gpus.includes(gpu.index))));
    }
    return card;
  });
  if (!cards.length) cards.push(make("div", "node empty", "No node agent has registered yet."));
  at("nodes").replaceChildren(...cards);
}

function drawTable(id, columns, rows, empty) {
  const head = make("tr", "", ...columns.map(([title, classes]) => make("th", classes, title)));
  const body = rows.map((cells) =>
    make("tr", "", ...cells.map((cell, column) => make("td", columns[column][1], cell))));
  if (!rows.length) {
    const cell = make("td", "empty", empty);
    cell.colSpan = columns.length;
    body.push(make("tr", "", cell));
  }
  at(id).replaceChildren(make("thead", "", head), make("tbody", "", ...body));
}

function title(namespace, name) {
  return make("span", "", make("i", "", `${namespace}/`), make("b", "", name));
}

function drawStarts(metrics, labels) {
  const bar = make("div", "starts");
  const calls = sum(metrics, "inferx_calls_total", labels);
  const counts = Object.fromEntries(
    STARTS.map((kind) => [kind, sum(metrics, "inferx_starts_total", { ...labels, kind })]));
  const started = counts.resume + counts.snapshot + counts.cold;
  counts.warm = Math.max(0, calls - started); // every other call found a worker that ran
  bar.title = STARTS.map((kind) => `${kind} ${count(counts[kind])}`).join(", ");
  for (const kind of STARTS.filter((one) => counts[one] > 0)) {
    const part = make("div", kind);
    part.style.flex = `${counts[kind]} 0 4px`;
    bar.append(part);
  }
  return bar;
}

function drawFunctions({ functions, pods, metrics }) {
  const starts = make("span", "", "Calls by start");
  for (const kind of STARTS) starts.append(make("span", `key ${kind}`, kind));
  const columns = [["Function", ""], ["Workers", "number"], ["GPU memory each", "number"]];
  if (metrics) {
    columns.push(["Active", "number"], ["Waiting", "number"], ["Calls", "number"],
      ["Errors", "number"], [starts, ""]);
  }
  const rows = functions.map((one) => {
    const labels = { tenant: one.tenant, namespace: one.namespace, function: one.name };
    const workers = pods.filter((pod) => !ENDED.includes(pod.object.status.state)
      && pod.tenant === one.tenant && nameOf(pod) === `${one.namespace}/${one.name}`);
    const gpu = one.object.spec.resources?.GPU;
    const memory = gpu?.vRam ? `${gpu.Count > 1 ? `${gpu.Count} × ` : ""}${gigabytes(gpu.vRam)}` : "–";
    const cells = [title(one.namespace, one.name), count(workers.length), memory];
    if (metrics) {
      const errors = (metrics.inferx_calls_total ?? []).filter(([have]) =>
        have.status >= "400" && Object.entries(labels).every(([k, v]) => have[k] === v));
      cells.push(
        count(sum(metrics, "inferx_function_active", labels)),
        count(sum(metrics, "inferx_function_parked", labels)),
        count(sum(metrics, "inferx_calls_total", labels)),
        count(errors.reduce((total, [, value]) => total + value, 0)),
        drawStarts(metrics, labels));
    }
    return cells;
  });
  drawTable("functions", columns, rows, "No function is deployed: inferx apply -f examples/");
}

function drawPods({ pods, nodes }) {
  const now = Date.now();
  const shown = pods.filter(({ object: { status } }) =>
    !ENDED.includes(status.state) || now - status.since_ms < ENDED_SHOWN_MS);
  const rows = shown.map((pod) => {
    const { spec, status } = pod.object;
    const memory = status.vram_mb ? gigabytes(status.vram_mb) : "–";
    const place = status.gpus.length ? `${spec.node} · GPU ${status.gpus.join(", ")}` : spec.node;
    return [
      title(pod.namespace, spec.funcname), make("span", `pill ${status.state}`, status.state),
      age(now - status.since_ms), status.start, place, memory,
      status.error ?? status.reason ?? "", make("i", "", pod.name),
    ];
  });
  const columns = [["Function", ""], ["State", ""], ["For", "number"], ["Start", ""], ["On", ""],
    ["GPU memory", "number"], ["Reason", "reason"], ["Worker", ""]];
  drawTable("pods", columns, rows, "No worker runs; the next call starts one.");
}

function show(part) {
  at("main").hidden = part !== "main";
  at("login").hidden = part !== "login";
  at("leave").hidden = part !== "main" || !key;
}

function say(text, classes) {
  at("state").textContent = text;
  at("state").className = `state ${classes}`;
}

async function refresh() {
  const [functions, pods, nodes, metrics] = await Promise.all([
    json("/objects/function/"), json("/pods/"), json("/nodes/"),
    ask("/metrics").then((answer) => (answer.ok ? answer.text() : null)),
  ]);
  const order = (one) => `${one.tenant}/${one.namespace}/${one.object.spec.funcname ?? one.name}`;
  const sorted = (all) => (all ?? []).sort((a, b) => order(a).localeCompare(order(b)));
  const seen = {
    functions: sorted(functions), pods: sorted(pods), nodes,
    metrics: metrics && parseMetrics(metrics),
  };
  for (const draw of [drawTiles, drawNodes, drawFunctions, drawPods]) draw(seen);
  show("main");
  say(`live, ${new Date().toLocaleTimeString()}`, "live");
}

async function run() {
  try {
    if (!document.hidden) await refresh();
  } catch (error) {
    if (error instanceof Refused) {
      at("refusal").textContent = key ? error.message : "";
      show("login");
      say("waiting for a key", "");
      return; // until a key is given
    }
    say(`not answering: ${error.message}`, "lost");
  }
  setTimeout(run, EVERY_MS);
}

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  sessionStorage.setItem("inferx-key", key);
  at("key").value = "";
  run();
});
at("leave").addEventListener("click", () => {
  sessionStorage.removeItem("inferx-key");
  location.reload();
});
run();
