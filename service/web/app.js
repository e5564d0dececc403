"use strict";
// The page's whole script: no library, no network beyond this service. Text goes in by textContent alone.

const $ = (id) => document.getElementById(id);
const PAGE = 100;
let video = null;
let lastId = null;
let listing = 0; // the newest request for the list; older answers are dropped

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function show(id, text) {
  $(id).textContent = text;
  $(id).hidden = !text;
}

function explain(problem) {
  const lines = [problem.detail || problem.title || "The request failed"];
  for (const error of problem.errors || []) {
    const line = `${error.pointer}: ${error.detail}`;
    if (!lines[0].includes(line)) lines.push(line);
  }
  if (problem.retry_after_ms) lines.push(`Try again in ${Math.ceil(problem.retry_after_ms / 1000)} s.`);
  return [...new Set(lines)].join("\n");
}

// The key stays in this tab: gone with it, and never in a cookie that other pages could have sent.
function keyHeaders() {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function askForKey(problem) {
  $("access").hidden = false;
  $("key-problem").textContent = sessionStorage.getItem("key") ? explain(problem) : "";
  $("forget").hidden = true;
  $("key").focus();
}

$("access").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  $("key").value = "";
  $("access").hidden = true;
  $("forget").hidden = false;
  list(true);
};

$("forget").hidden = !sessionStorage.getItem("key");
$("forget").onclick = () => {
  sessionStorage.removeItem("key");
  location.reload();
};

async function call(path, options = {}) {
  const headers = { ...keyHeaders(), ...(options.body ? { "Content-Type": "application/json" } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer.");
  }
  if (answer.status === 204) return null;
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) {
    askForKey(body);
    throw new Error(""); // said beside the key
  }
  if (!answer.ok) throw new Error(explain(body));
  return body;
}

// --- state of the service

async function watch() {
  let text = "the service does not answer; trying again";
  let ready = false;
  try {
    const body = await (await fetch("/readyz")).json();
    ready = body.status === "ready";
    const bad = Object.entries(body.checks).filter(([, check]) => !check.ok).map(([name, check]) => `${name}: ${check.detail}`);
    text = ready ? `ready, model ${body.checks.model.detail}` : `${body.status} (${bad.join("; ")})`;
  } catch { /* said by the text above */ }
  const wasReady = $("state").dataset.ready === "yes";
  $("state").textContent = text;
  $("state").dataset.ready = ready ? "yes" : "no";
  if (ready && !wasReady) list(true);
  setTimeout(watch, ready ? 10000 : 1000);
}

// --- labels

async function list(fromStart) {
  const mine = ++listing;
  const query = new URLSearchParams({ limit: PAGE });
  if ($("search").value.trim()) query.set("q", $("search").value.trim());
  if (!fromStart && lastId) query.set("after", lastId);
  try {
    const page = await call(`/labels?${query}`);
    if (mine !== listing) return;
    if (fromStart) $("labels").replaceChildren();
    for (const label of page.data) $("labels").append(row(label));
    const searched = query.has("q") ? "No label has this in its name." : "There are no labels yet: add what to look for.";
    show("none", $("labels").children.length ? "" : searched);
    lastId = page.last_id || lastId;
    $("more").hidden = !page.has_more;
    $("count").textContent = page.has_more ? `(first ${$("labels").children.length})` : `(${$("labels").children.length})`;
    show("label-problem", "");
  } catch (error) {
    if (mine === listing) show("label-problem", error.message);
  }
}

function row(label) {
  const item = element("li", label.name);
  const remove = element("button", "\u00d7");
  remove.title = remove.ariaLabel = `Remove ${label.name}`;
  remove.onclick = async () => {
    try {
      await call(`/labels/${encodeURIComponent(label.id)}`, { method: "DELETE" });
      list(true);
    } catch (error) {
      show("label-problem", error.message);
    }
  };
  item.append(remove);
  return item;
}

$("add").onsubmit = async (event) => {
  event.preventDefault();
  const names = $("name").value.split(",").map((name) => name.trim()).filter(Boolean);
  if (!names.length) return;
  $("adder").disabled = true; // the language model may need seconds for a label
  $("adder").textContent = "Adding ...";
  try {
    const labels = names.map((name) => ({ name }));
    const answer = await call("/labels", { method: "POST", body: JSON.stringify({ labels }) });
    const bad = answer.data.filter((item) => item.error);
    $("name").value = bad.map((item) => names[item.index]).join(", ");
    await list(true);
    show("label-problem", bad.map((item) => `${names[item.index]}: ${explain(item.error)}`).join("\n"));
  } catch (error) {
    show("label-problem", error.message);
  } finally {
    $("adder").disabled = false;
    $("adder").textContent = "Add";
  }
};

let typing;
$("search").oninput = () => {
  clearTimeout(typing);
  typing = setTimeout(() => list(true), 200);
};
$("more").onclick = () => list(false);

// --- video

function choose(file) {
  if (!file) return;
  video = file;
  const size = file.size < 1e6 ? `${Math.ceil(file.size / 1e3)} kB` : `${(file.size / 1e6).toFixed(1)} MB`;
  $("drop").textContent = `${file.name} (${size})`;
  $("go").disabled = false;
  if ($("player").src) URL.revokeObjectURL($("player").src);
  $("player").src = URL.createObjectURL(file);
  $("player").hidden = false;
  forget();
}

function forget() {
  $("answer").replaceChildren();
  for (const id of ["problem", "warnings"]) show(id, "");
  $("facts").textContent = "";
  $("legend").hidden = true;
}

$("player").onerror = () => { $("player").hidden = true; }; // the browser cannot show it; the service may read it
$("file").onchange = () => choose($("file").files[0]);
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}

$("classify").onsubmit = (event) => {
  event.preventDefault();
  if (!video) return;
  const params = { top_k: Number($("top").value), aggregate_by: $("parts").checked ? "timestamps" : "video" };
  const form = new FormData();
  form.append("params", JSON.stringify(params));
  form.append("file", video);
  const request = new XMLHttpRequest(); // fetch cannot tell how much is uploaded
  request.open("POST", "/classify");
  for (const [name, value] of Object.entries(keyHeaders())) request.setRequestHeader(name, value);
  request.responseType = "json";
  request.upload.onprogress = (e) => { if (e.lengthComputable) $("progress").value = (100 * e.loaded) / e.total; };
  request.upload.onload = () => $("progress").removeAttribute("value"); // now it computes, for an unknown time
  request.onerror = () => show("problem", "The upload broke off: the service went away, or the file has changed or is larger than it takes.");
  request.onload = () => {
    if (request.status === 401) askForKey(request.response || {});
    else if (request.status === 200) present(request.response);
    else show("problem", explain(request.response || {}));
  };
  request.onloadend = () => {
    $("progress").hidden = true;
    $("go").disabled = false;
  };
  $("go").disabled = true;
  $("progress").value = 0;
  $("progress").hidden = false;
  forget();
  request.send(form);
};

function present(answer) {
  const { video: facts, usage } = answer;
  const seconds = (facts.duration_ms / 1000).toFixed(1);
  const work = usage.decode_ms + usage.encode_ms + usage.match_ms + usage.queue_ms;
  const size = `${seconds} s, ${facts.width}\u00d7${facts.height}, ${facts.codec}`;
  const frames = `${answer.coverage.frames_decoded} frames${usage.cached ? ", remembered from before" : ""}`;
  $("facts").textContent = `${size}; ${frames}; model ${answer.model.id}; ${work} ms of work`;
  const empty = "There are no labels yet: add some, then classify again.";
  const texts = answer.warnings.map((warning) => (warning.code === "vocabulary_empty" ? empty : warning.detail));
  show("warnings", texts.join("\n"));
  $("answer").replaceChildren(...answer.labels.map(bar));
  $("legend").hidden = !answer.labels.length;
}

function bar(label) {
  const item = element("li", undefined, label.matched ? "matched" : "");
  const head = element("div", undefined, "head");
  head.append(element("span", label.name, "name"), element("span", `${(100 * label.score).toFixed(1)} %`, "quiet"));
  const meter = element("div", undefined, "meter");
  const fill = element("div", undefined, "fill");
  const line = element("div", undefined, "line");
  fill.style.width = `${100 * label.score}%`;
  line.style.left = `${100 * label.threshold}%`;
  meter.title = `threshold ${(100 * label.threshold).toFixed(1)} %, similarity ${label.similarity.toFixed(3)}`;
  meter.append(fill, line);
  item.append(head, meter);
  if (label.segments.length) {
    const times = element("div", undefined, "times");
    for (const part of label.segments) {
      const jump = element("button");
      jump.style.opacity = 0.08 + 0.92 * part.score;
      jump.title = jump.ariaLabel = `${(part.start_ms / 1000).toFixed(1)} s: ${(100 * part.score).toFixed(1)} %`;
      jump.onclick = () => { $("player").currentTime = part.start_ms / 1000; };
      times.append(jump);
    }
    item.append(times);
  }
  return item;
}

watch();
