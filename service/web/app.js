"use strict";
// No libraries, and no requests to other hosts. All text is set through textContent.

const $ = (id) => document.getElementById(id);
const PAGE_SIZE = 100;
const LONG_SECONDS = 20; // from here on the service looks at every shot by default
const MAX_CELLS = 240; // of a time bar
let video = null;
let lastId = null;
let listRequest = 0; // number of the latest list request; older responses are ignored

function element(tag, text, className) {
  const created = document.createElement(tag);
  if (text !== undefined) created.textContent = text;
  if (className) created.className = className;
  return created;
}

function setText(id, text) {
  $(id).textContent = text;
  $(id).hidden = !text;
}

function describe(problem) {
  const lines = [problem.detail || problem.title || "The request failed"];
  for (const error of problem.errors || []) {
    const line = `${error.pointer}: ${error.detail}`;
    if (!lines[0].includes(line)) lines.push(line);
  }
  if (problem.retry_after_ms) lines.push(`Try again in ${Math.ceil(problem.retry_after_ms / 1000)} s.`);
  return [...new Set(lines)].join("\n");
}

// A bidirectional control character in a name must not reorder the text after it.
const isolated = (name) => `\u2068${name}\u2069`;

// Session storage: the key is limited to this tab and, unlike a cookie, never sent by other sites.
function keyHeaders() {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function promptForKey(problem) {
  $("access").hidden = false;
  $("key-problem").textContent = sessionStorage.getItem("key") ? describe(problem) : "";
  $("sign-out").hidden = true;
  $("key").focus();
}

$("access").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  $("key").value = "";
  $("access").hidden = true;
  $("sign-out").hidden = false;
  loadLabels(true);
};

$("sign-out").hidden = !sessionStorage.getItem("key");
$("sign-out").onclick = () => {
  sessionStorage.removeItem("key");
  location.reload();
};

async function call(path, options = {}) {
  const headers = { ...keyHeaders(), ...(options.body ? { "Content-Type": "application/json" } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service is unreachable.");
  }
  if (response.status === 204) return null;
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) {
    promptForKey(body);
    throw new Error(""); // shown next to the key
  }
  if (!response.ok) throw new Error(describe(body));
  return body;
}

// --- state of the service

async function pollState() {
  let text = "Service unreachable; retrying";
  let ready = false;
  try {
    const body = await (await fetch("/readyz")).json();
    ready = body.status === "ready";
    const failing = Object.entries(body.checks).filter(([, check]) => !check.ok).map(([name, check]) => `${name}: ${check.detail}`);
    text = ready ? `Ready, model ${body.checks.model.detail}` : `${body.status} (${failing.join("; ")})`;
  } catch { /* unreachable: the default text */ }
  const wasReady = $("state").dataset.ready === "yes";
  $("state").textContent = text;
  $("state").dataset.ready = ready ? "yes" : "no";
  if (ready && !wasReady) loadLabels(true);
  setTimeout(pollState, ready ? 10000 : 1000);
}

// --- labels

async function loadLabels(fromStart) {
  const number = ++listRequest;
  const query = new URLSearchParams({ limit: PAGE_SIZE });
  if ($("search").value.trim()) query.set("q", $("search").value.trim());
  if (!fromStart && lastId) query.set("after", lastId);
  try {
    const page = await call(`/labels?${query}`);
    if (number !== listRequest) return;
    if (fromStart) $("labels").replaceChildren();
    for (const label of page.data) $("labels").append(labelRow(label));
    const message = query.has("q") ? "No matching labels." : "No labels yet.";
    setText("no-labels", $("labels").children.length ? "" : message);
    lastId = page.last_id || lastId;
    $("more").hidden = !page.has_more;
    $("count").textContent = page.has_more ? `(first ${$("labels").children.length})` : `(${$("labels").children.length})`;
    setText("label-problem", "");
  } catch (error) {
    if (number === listRequest) setText("label-problem", error.message);
  }
}

function labelRow(label) {
  const item = element("li", label.name);
  const remove = element("button", "\u00d7");
  remove.title = remove.ariaLabel = `Remove ${label.name}`;
  remove.onclick = async () => {
    try {
      await call(`/labels/${encodeURIComponent(label.id)}`, { method: "DELETE" });
      loadLabels(true);
    } catch (error) {
      setText("label-problem", error.message);
    }
  };
  item.append(remove);
  return item;
}

$("add").onsubmit = async (event) => {
  event.preventDefault();
  const names = $("name").value.split(",").map((name) => name.trim()).filter(Boolean);
  if (!names.length) return;
  $("add-button").disabled = true; // encoding a label may take seconds
  $("add-button").textContent = "Adding ...";
  try {
    const labels = names.map((name) => ({ name }));
    const response = await call("/labels", { method: "POST", body: JSON.stringify({ labels }) });
    const failed = response.data.filter((item) => item.error);
    $("name").value = failed.map((item) => names[item.index]).join(", ");
    await loadLabels(true);
    setText("label-problem", failed.map((item) => `${isolated(names[item.index])}: ${describe(item.error)}`).join("\n"));
  } catch (error) {
    setText("label-problem", error.message);
  } finally {
    $("add-button").disabled = false;
    $("add-button").textContent = "Add";
  }
};

let typing;
$("search").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(() => loadLabels(true), 200);
};
$("more").onclick = () => loadLabels(false);

// --- video

function selectVideo(file) {
  if (!file) return;
  video = file;
  const size = file.size < 1e6 ? `${Math.ceil(file.size / 1e3)} kB` : `${(file.size / 1e6).toFixed(1)} MB`;
  $("drop").textContent = `${file.name} (${size})`;
  $("classify-button").disabled = false;
  if ($("player").src) URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(file);
  $("player").hidden = false;
  clearResults();
}

function clearResults() {
  $("results").replaceChildren();
  for (const id of ["problem", "warnings"]) setText(id, "");
  $("facts").textContent = "";
  $("legend").hidden = true;
}

$("player").onerror = () => { $("player").hidden = true; }; // the browser cannot play it, but the service may decode it
$("file").onchange = () => selectVideo($("file").files[0]);
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") selectVideo(event.dataTransfer.files[0]);
  });
}

$("classify").onsubmit = (event) => {
  event.preventDefault();
  if (!video) return;
  const params = { top_k: Number($("top-k").value) };
  if ($("timeline").checked) {
    params.aggregate_by = "timestamps";
    if ($("player").duration > LONG_SECONDS) params.frame_policy = "shots"; // as without the timeline
  }
  const form = new FormData();
  form.append("params", JSON.stringify(params));
  form.append("file", video);
  const request = new XMLHttpRequest(); // fetch does not report upload progress
  request.open("POST", "/classify");
  for (const [name, value] of Object.entries(keyHeaders())) request.setRequestHeader(name, value);
  request.responseType = "json";
  request.upload.onprogress = (e) => { if (e.lengthComputable) $("progress").value = (100 * e.loaded) / e.total; };
  request.upload.onload = () => $("progress").removeAttribute("value"); // processing: indeterminate
  request.onerror = () => setText("problem", "The upload failed: the service is unreachable, or the file has changed or is too large.");
  request.onload = () => {
    if (request.status === 401) promptForKey(request.response || {});
    else if (request.status === 200) renderResult(request.response);
    else setText("problem", describe(request.response || {}));
  };
  request.onloadend = () => {
    $("progress").hidden = true;
    $("classify-button").disabled = false;
  };
  $("classify-button").disabled = true;
  $("progress").value = 0;
  $("progress").hidden = false;
  clearResults();
  request.send(form);
};

function renderResult(result) {
  const { video: info, coverage, usage } = result;
  const ms = usage.decode_ms + usage.encode_ms + usage.match_ms + usage.queue_ms;
  const size = `${(info.duration_ms / 1000).toFixed(1)} s, ${info.width}\u00d7${info.height}, ${info.codec}`;
  const frames = `${coverage.frames_decoded} frames (${coverage.frame_policy})${usage.cached ? ", cached" : ""}`;
  $("facts").textContent = `${size}; ${frames}; model ${result.model.id}; ${ms} ms`;
  const empty = "No labels yet: add labels, then classify again.";
  const texts = result.warnings.map((warning) => (warning.code === "vocabulary_empty" ? empty : warning.detail));
  setText("warnings", texts.join("\n"));
  $("results").replaceChildren(...result.labels.map((label) => resultRow(label, info)));
  $("legend").hidden = !result.labels.length;
}

function resultRow(label, info) {
  const item = element("li", undefined, label.matched ? "matched" : "");
  const head = element("div", undefined, "head");
  head.append(element("span", label.name, "name"), element("span", percent(label.score), "quiet"));
  const meter = element("div", undefined, "meter");
  const fill = element("div", undefined, "fill");
  const line = element("div", undefined, "line");
  fill.style.width = `${100 * label.score}%`;
  line.style.left = `${100 * label.threshold}%`;
  meter.title = `threshold ${percent(label.threshold)}, similarity ${label.similarity.toFixed(3)}`;
  meter.append(fill, line);
  item.append(head, meter);
  const isWhole = label.stretches.every((part) => part.end_ms - part.start_ms >= info.duration_ms);
  if (label.segments.length) item.append(timeBar(cells(label.segments, info.duration_ms), info));
  else if (!isWhole) item.append(timeBar(strongest(label.stretches), info));
  return item;
}

// --- time

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function clock(ms) {
  const seconds = Math.floor(ms / 1000);
  const two = (number) => String(number).padStart(2, "0");
  if (seconds < 60) return `${(ms / 1000).toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}:${two(seconds % 60)}`;
  return `${Math.floor(seconds / 3600)}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
}

// Times of an answer count from the first frame, those of most players by the file's clock; others begin at 0.
function jump(ms, info) {
  const player = $("player");
  const rest = player.duration - info.duration_ms / 1000; // of the player's time without a picture
  const start = Number.isFinite(rest) ? Math.max(0, Math.min(info.start_ms / 1000, rest)) : info.start_ms / 1000;
  player.currentTime = start + ms / 1000;
}

// Single frames last until the next one. Of many segments, the best ones of neighbours stand for them.
function cells(segments, durationMs) {
  const parts = segments.map((segment, i) => {
    const next = i + 1 < segments.length ? segments[i + 1].start_ms : durationMs;
    const end = segment.end_ms > segment.start_ms ? segment.end_ms : Math.max(next, segment.start_ms);
    return { start_ms: segment.start_ms, end_ms: end, score: segment.score, peak_ms: segment.start_ms };
  });
  const each = Math.ceil(parts.length / MAX_CELLS);
  const merged = [];
  for (let i = 0; i < parts.length; i += each) {
    const group = parts.slice(i, i + each);
    const best = group.reduce((a, b) => (b.score > a.score ? b : a));
    merged.push({ ...best, start_ms: group[0].start_ms, end_ms: group[group.length - 1].end_ms });
  }
  return merged;
}

function strongest(stretches) {
  if (stretches.length <= MAX_CELLS) return stretches;
  const kept = [...stretches].sort((a, b) => b.score - a.score).slice(0, MAX_CELLS);
  return kept.sort((a, b) => a.start_ms - b.start_ms);
}

function timeBar(parts, info) {
  const bar = element("div", undefined, "times");
  for (const part of parts) {
    const button = element("button");
    button.type = "button";
    button.style.left = `${(100 * part.start_ms) / info.duration_ms}%`;
    button.style.width = `${(100 * (part.end_ms - part.start_ms)) / info.duration_ms}%`;
    button.style.opacity = 0.08 + 0.92 * part.score;
    button.title = button.ariaLabel = `${clock(part.start_ms)} to ${clock(part.end_ms)}: ${percent(part.score)}`;
    button.onclick = () => jump(part.peak_ms, info);
    bar.append(button);
  }
  return bar;
}

pollState();
