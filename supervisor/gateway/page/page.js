// The team as it is, and one question to one of them. One stream of events tells of the team, however many there are; an
// answer has a second one while it comes. What an answer is made of is text and stays text: nothing here reads it as HTML.

const TONES = {
  ready: "well", degraded: "worse", starting: "worse", backing_off: "worse", stopping: "worse", draining: "worse",
  failed: "wrong", hung: "wrong", stopped: "away",
};
const KEPT_EVENTS = 8;
const AGAIN_AFTER = 5000; // milliseconds until a stream that was refused is tried once more
const UNDER_WAY = "chorus.answer"; // in sessionStorage: the answer that is being given, for a page that is loaded anew

const $ = (id) => document.getElementById(id);

// -- the team --------------------------------------------------------------------------------------------------------

const team = new Map(); // by name, in the roster's order
let supervisor = null; // its state, null where none tells
let backend = null;
let isConnected = false;

function row(value, name, about, state, tone) {
  const label = document.createElement("label");
  const radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: "who", value });
  label.append(radio);
  for (const [kind, text] of [["dot", ""], ["name", name], ["for", about], ["state", state]]) {
    const part = document.createElement("span");
    part.className = kind;
    part.textContent = text;
    label.append(part);
  }
  label.dataset.tone = tone;
  label.title = about;
  return label;
}

function drawTeam() {
  const chosen = new FormData($("asking")).get("who") ?? "";
  const hadFocus = document.activeElement?.name === "who";
  const rows = [row("", "anybody", "Whoever the rules choose, or the one with the least to do.", "", "away")];
  for (const one of team.values()) {
    rows.push(row(one.id, one.name, one.description ?? "", one.state.replaceAll("_", " "), TONES[one.state] ?? "worse"));
  }
  $("team").replaceChildren(...rows);
  const radio = $("team").querySelector(`input[value="${CSS.escape(chosen)}"]`) ?? $("team").querySelector("input");
  radio.checked = true;
  if (hadFocus) radio.focus();
}

function drawRow(one) {
  const radio = $("team").querySelector(`input[value="${CSS.escape(one.id)}"]`);
  if (!radio) return drawTeam();
  const label = radio.parentElement;
  label.dataset.tone = TONES[one.state] ?? "worse";
  label.querySelector(".state").textContent = one.state.replaceAll("_", " ");
}

function drawSummary() {
  const all = [...team.values()];
  const answering = all.filter((one) => one.state === "ready" || one.state === "degraded").length;
  const parts = [`${answering} of ${all.length} answer`];
  const models = [...new Set(all.map((one) => one.model).filter(Boolean))];
  if (models.length === 1 && backend && models[0] !== backend.kind) parts.push(`${models[0]} on ${backend.kind}`);
  else if (backend) parts.push(backend.kind);
  if (supervisor === null) parts.push("no supervisor: chorus up");
  else if (supervisor !== "running") parts.push(`the team is ${supervisor}`);
  $("summary").textContent = isConnected ? parts.join(" · ") : "the gateway is not there; trying again";
}

function takePicture(picture) {
  team.clear();
  for (const one of picture.specialists) team.set(one.name, one);
  backend = picture.backend;
  supervisor = picture.note === null ? picture.supervisor?.state ?? null : null;
  drawTeam();
  drawSummary();
}

async function look() {
  const response = await fetch("api/specialists");
  if (response.ok) takePicture(await response.json());
}

function takeTransition(event) {
  const one = team.get(event.name);
  if (event.name === "supervisor") supervisor = event.to;
  else if (one && event.to !== "absent") Object.assign(one, { state: event.to, pid: event.pid ?? null });
  else if (event.name !== "gateway") look(); // somebody came or went
  if (one) drawRow(one);
  drawSummary();
  tell(event);
}

function tell(event) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  const at = new Date(event.at * 1000);
  time.dateTime = at.toISOString();
  time.textContent = at.toLocaleTimeString([], { hour12: false });
  const who = document.createElement("b");
  who.textContent = event.name;
  const what = document.createElement("span");
  what.textContent = `${event.to.replaceAll("_", " ")}: ${event.cause}`;
  item.append(time, who, what);
  $("events").prepend(item);
  while ($("events").children.length > KEPT_EVENTS) $("events").lastElementChild.remove();
}

function watch() {
  const stream = new EventSource("api/events");
  const read = (take) => (message) => take(JSON.parse(message.data));
  stream.addEventListener("snapshot", read((told) => takePicture(told.picture)));
  stream.addEventListener("stream_reset", read((told) => takePicture(told.snapshot.picture)));
  stream.addEventListener("transition", read(takeTransition));
  stream.addEventListener("open", () => {
    isConnected = true;
    drawSummary();
  });
  stream.addEventListener("error", () => {
    isConnected = false;
    drawSummary();
    if (stream.readyState === EventSource.CLOSED) setTimeout(begin, AGAIN_AFTER); // refused: perhaps a key is needed now
  });
}

// -- coming in -------------------------------------------------------------------------------------------------------

async function begin() {
  let entry;
  try {
    entry = await (await fetch("api/session")).json();
  } catch {
    setTimeout(begin, AGAIN_AFTER);
    return;
  }
  const needsKey = entry.scope === null;
  $("entry").hidden = !needsKey;
  $("asking").hidden = needsKey;
  if (needsKey) $("key").focus();
  else {
    watch();
    resume();
  }
}

$("entry").addEventListener("submit", async (event) => {
  event.preventDefault();
  const response = await post("api/session", { key: $("key").value });
  $("refused").textContent = response.ok ? "" : await sentence(response);
  $("key").value = "";
  if (response.ok) begin();
});

// -- asking ----------------------------------------------------------------------------------------------------------

let answering = null; // {id, who, question, stream} while an answer comes

function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function sentence(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `the gateway answered with ${response.status}`;
  }
}

async function ask() {
  const question = $("question").value;
  const who = new FormData($("asking")).get("who") ?? "";
  if (!question.trim() || answering) return;
  answering = { id: null, who: who || "anybody", question, stream: null };
  show(answering);
  const leave = new AbortController();
  const path = who ? `api/chat/${encodeURIComponent(who)}/stream` : "api/chat";
  try {
    // It says where the answer can be followed, and that is all that is taken of it: what follows can be resumed.
    const response = await post(path, { message: question, stream: true, resume: true }, leave.signal);
    if (!response.ok) {
      finish(await sentence(response));
      return;
    }
    answering.id = response.headers.get("X-Stream-Id");
  } catch {
    finish("the gateway is not there");
    return;
  }
  sessionStorage.setItem(UNDER_WAY, JSON.stringify({ ...answering, stream: undefined }));
  follow();
  leave.abort();
}

function resume() {
  const kept = sessionStorage.getItem(UNDER_WAY);
  if (!kept || answering) return;
  answering = JSON.parse(kept);
  show(answering);
  follow();
}

function follow() {
  const stream = new EventSource(`api/stream/events/${answering.id}`);
  answering.stream = stream;
  const text = document.createTextNode("");
  $("text").replaceChildren(text);
  const on = (name, take) => stream.addEventListener(name, (message) => take(JSON.parse(message.data), message));
  on("token", (told) => {
    if (answering?.who === "anybody") named(told.specialist_id);
    $("about").textContent = "";
    text.appendData(told.content);
  });
  on("thinking", () => { $("about").textContent = "thinking"; });
  on("status", (told) => {
    $("about").textContent = told.phase + (told.position ? `, ${told.position} before it` : "");
  });
  on("stream_reset", (told) => { text.data = told.snapshot.content; });
  on("complete", (told) => {
    named(told.specialist_id);
    text.data = told.content;
    finish("", about(told.summary));
  });
  stream.addEventListener("error", (message) => {
    if (message.data !== undefined) {
      const told = JSON.parse(message.data);
      if (told.partial) text.data = told.partial;
      finish(told.code === "cancelled" ? "" : told.error, told.code === "cancelled" ? "stopped" : "");
    } else if (stream.readyState === EventSource.CLOSED) {
      lookFor(answering); // refused; or this page is being left, and then nothing comes of it
    } // else it comes back by itself, and goes on where it was
  });
}

async function lookFor(one) {
  let status = 0;
  try {
    status = (await fetch(`api/stream/status/${one.id}`)).status;
  } catch {
    // the gateway is not there at this moment
  }
  if (answering !== one) return;
  if (status === 404) finish("this answer is gone: ask again");
  else setTimeout(() => answering === one && follow(), AGAIN_AFTER);
}

function about(summary) {
  const parts = [summary.model];
  if (summary.timing) parts.push(`${(summary.timing.total_ms / 1000).toFixed(1)} s`);
  if (summary.timing?.tokens_per_second) parts.push(`${Math.round(summary.timing.tokens_per_second)} tokens a second`);
  if (summary.done_reason && summary.done_reason !== "stop") parts.push(summary.done_reason);
  if (summary.context?.routed_by) parts.push(summary.context.routed_by.why);
  return parts.join(" · ");
}

function named(who) {
  $("who").textContent = who.replace(/[-_](ai|ci)$/, "");
}

function show({ who, question }) {
  $("answer").hidden = false;
  named(who);
  $("asked").textContent = question;
  $("text").replaceChildren();
  $("text").setAttribute("aria-busy", "true");
  $("trouble").textContent = "";
  $("about").textContent = "";
  $("ask").disabled = true;
  $("stop").hidden = false;
}

function finish(trouble, words = "") {
  answering?.stream?.close();
  answering = null;
  sessionStorage.removeItem(UNDER_WAY);
  $("text").removeAttribute("aria-busy");
  $("trouble").textContent = trouble;
  $("about").textContent = words;
  $("ask").disabled = false;
  $("stop").hidden = true;
}

async function stop() {
  if (answering?.id) await fetch(`api/stream/${answering.id}`, { method: "DELETE" });
}

$("asking").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  if (event.key === "Escape") stop();
});

begin();
