// A photo and operations go to analyze_image_upload/; photo.js draws what comes back, results.js tells it.

import { make, words } from "./elements.js";
import { draw, photo, placeOf, take } from "./photo.js";
import { card } from "./results.js";

const $ = (id) => document.getElementById(id);
const FIRST = "classify_hybrid"; // listed first, and chosen where nothing is remembered
const REMEMBERED = "lmm-classifier operations";
const HINT = "A click into the photo adds a point, with Shift a negative one.";
const LARGE = 20e6; // bytes of a photo that may be the reason why a connection broke
const NO_COLLECTION = [["", "there is none", true]];
const LEFT_OUT = new Set( // parameters for the HTTP interface only
  ["include_crop", "prominence", "padding", "crop_policy", "on_missing", "box", "box_format", "prompts"]);

let offered = null; // operation -> what it takes, as the service lists it
let request = null; // the one that is under way
let shown = Promise.resolve(); // settles when it is known whether this browser can show the photo

// Operations and their parameters -------------------------------------------------------------------------

async function list() {
  const answer = await fetch("available_operations/");
  if (!answer.ok) throw await refusal(answer);
  const operations = await answer.json();
  const answered = await fetch("collections/");
  const known = answered.ok ? await answered.json() : [];
  const collections = known.length ? known.map(described) : NO_COLLECTION;
  const names = Object.keys(operations).sort((a, b) => (b === FIRST) - (a === FIRST));
  const chosen = remembered() ?? [FIRST];
  const rows = names.map((name) => row(name, operations[name], collections, chosen.includes(name)));
  $("operations").replaceChildren(...rows);
  offered = operations;
}

function row(name, operation, collections, checked) {
  const id = `operation-${name}`;
  const box = make("input", { type: "checkbox", name: "operation", id, value: name, checked });
  box.setAttribute("aria-describedby", `${id}-about`);
  const late = operation.loaded ? null : make("small", {}, " (opens its model first)");
  const about = make("p", { id: `${id}-about` }, operation.description, late);
  const properties = Object.entries(operation.parameters.properties ?? {})
    .sort(([a], [b]) => (b === "target") - (a === "target"));
  const fields = properties.map(([key, schema]) => field(operation, key, schema, collections));
  const whole = make("div", { className: "operation" },
    box, make("label", { htmlFor: id }, words(name)), about, make("div", { className: "parameters" }, fields));
  if (whole.querySelector("[data-kind=array]")) whole.lastChild.append(make("small", {}, HINT));
  whole.addEventListener("input", () => unfold(whole));
  unfold(whole);
  return whole;
}

function unfold(whole) { // parameters show where they matter
  whole.querySelector(".parameters").hidden = !whole.querySelector("[name=operation]").checked;
  const context = whole.querySelector("[data-key=face_context]");
  const target = whole.querySelector("[data-key=target]");
  if (context) context.parentNode.hidden = target?.value !== "prominent_face";
  mark();
}

function field(operation, key, schema, collections) {
  const kind = (schema.anyOf ?? [schema]).find((each) => each.type !== "null");
  const places = operation.allowed_targets;
  const settled = places.length < 2 || "collection_id" in operation.parameters.properties; // where it looks
  if (LEFT_OUT.has(key) || (settled && ["target", "face_context"].includes(key))) return null;
  const input = key === "collection_id" ? choice(collections)
    : entry(key === "target" ? { enum: places } : kind);
  if (input === null) return null;
  if (input.type === "checkbox") input.checked = schema.default;
  else if (kind.type !== "array") input.value = schema.default ?? input.value;
  Object.assign(input.dataset, { key, kind: kind.type });
  return make("label", {}, make("span", {}, words(key)), input);
}

function entry(kind) {
  if (kind.enum) return choice(kind.enum.map((value) => [value, words(value)]));
  if (kind.type === "boolean") return make("input", { type: "checkbox" });
  if (kind.type === "string") return make("input", { type: "text" });
  if (kind.type === "array") return make("input", { type: "text", placeholder: "x, y; x, y" });
  if (!["integer", "number"].includes(kind.type)) return null;
  const step = kind.type === "integer" ? 1 : "any";
  return make("input", { type: "number", min: kind.minimum ?? "", max: kind.maximum ?? "", step });
}

function choice(values) {
  return make("select", {}, values.map(([value, text, disabled]) => make("option", { value, disabled }, text)));
}

function described({ collection_id: id, name, usable, derivative_type: where }) {
  return [id, usable ? `${name || id} (${words(where)})` : `${id} (cannot be used)`, !usable];
}

function tasks() {
  return [...document.querySelectorAll("[name=operation]:checked")].map(({ value: type, parentNode }) => {
    const inputs = [...parentNode.querySelectorAll("[data-key]")].filter((input) => !input.parentNode.hidden);
    const params = Object.fromEntries(inputs.map((input) => [input.dataset.key, valueOf(input)]));
    // the photo shows where was looked; where the browser cannot show it, the crop does
    if ("include_crop" in (offered[type].parameters.properties ?? {})) params.include_crop = !photo.picture;
    return { operation_id: type, type, params }; // JSON leaves out what is undefined
  });
}

function valueOf(input) {
  if (input.type === "checkbox") return input.checked;
  if (input.dataset.kind === "array") return points(input.value);
  if (!input.value.trim()) return undefined;
  return input.type === "number" ? Number(input.value) : input.value;
}

const pairs = (text) => text.split(";").map((pair) => pair.trim()).filter(Boolean);
const points = (text) => pairs(text).map((pair) => pair.split(",").map(Number));

function remembered() {
  try {
    const names = JSON.parse(localStorage.getItem(REMEMBERED));
    return Array.isArray(names) ? names : null;
  } catch {
    return null;
  }
}

function remember(names) {
  try {
    localStorage.setItem(REMEMBERED, JSON.stringify(names));
  } catch { /* a browser that keeps nothing */ }
}

// Points to segment: typed, or clicked into the photo -----------------------------------------------------

const pointFields = () => [...document.querySelectorAll(".parameters:not([hidden]) [data-kind=array]")];

function mark() {
  $("canvas").classList.toggle("pointing", pointFields().length > 0);
  photo.marks = pointFields().flatMap((input) =>
    points(input.value).map(([x, y]) => ({ x, y, inside: input.dataset.key === "points" })));
  draw();
}

function point(event) {
  const key = event.shiftKey ? "negative_points" : "points";
  const input = pointFields().find((each) => each.dataset.key === key);
  if (!input) return;
  input.value = [...pairs(input.value), placeOf(event).join(", ")].join("; ");
  mark();
}

// The photo: chosen, dropped or pasted --------------------------------------------------------------------

function photoFrom(files) {
  if (!files.length) return;
  stop();
  $("results").replaceChildren();
  shown = take(files[0]);
  for (const input of document.querySelectorAll("[data-kind=array]")) input.value = "";
  if (files.length > 1) say(`Of ${files.length} files only the first is taken.`);
  mark();
}

function receive(files) {
  if (!files.length) return;
  $("photo").files = files;
  photoFrom(files);
}

function drag(event) {
  event.preventDefault(); // or the browser would open what is dropped in place of this page
  $("drop").classList.toggle("over", event.type === "dragover");
  if (event.type !== "drop") return;
  if (event.dataTransfer.files.length) receive(event.dataTransfer.files);
  else say("That was no file. Drop a photo, or choose one.", true);
}

// Asking the service --------------------------------------------------------------------------------------

async function look(event) {
  event.preventDefault();
  stop(); // what was asked before is of no interest any more
  const mine = (request = new AbortController());
  busy(true);
  try {
    if (!offered) await list();
    await shown;
    await ask(mine);
  } catch (error) {
    if (request === mine) say(explained(error), true);
  }
  if (request === mine) busy(false);
}

async function ask(mine) {
  const asked = tasks();
  if (!photo.file) throw new Refused("Choose a photo first.");
  if (!asked.length) throw new Refused("Choose something to do with the photo.");
  remember(asked.map((task) => task.type));
  show([], {});
  say("Looking …");
  const started = performance.now();
  const body = new FormData();
  body.append("image_file", photo.file);
  body.append("tasks_json", JSON.stringify({ tasks: asked }));
  const answer = await fetch("analyze_image_upload/", { method: "POST", body, signal: mine.signal });
  if (!answer.ok) throw await refusal(answer);
  const { results } = await answer.json();
  if (request !== mine) return;
  show(asked, results);
  const undone = asked.filter((task) => results[task.type].status !== "success").length;
  const decision = results[FIRST]?.data;
  say([decision ? `${[...new Set([decision.label, decision.status])].join(", ")}.` : "", // unknown, but once
    `Done in ${((performance.now() - started) / 1000).toFixed(1)} s.`,
    undone ? `${undone} of ${asked.length} could not be done.` : ""].join(" ").trim());
}

function show(asked, results) {
  Object.assign(photo, { regions: [], lit: null });
  $("results").replaceChildren(...asked.map(({ type }) => card(type, results[type])));
  draw();
  const far = $("stage").getBoundingClientRect().top > 0.7 * window.innerHeight;
  if (asked.length && far) $("stage").scrollIntoView();
}

function stop() {
  request?.abort();
  request = null;
  busy(false);
  say("");
}

function busy(is) {
  if (!is && document.activeElement === $("stop")) $("look").focus(); // or the keyboard would be nowhere
  $("stop").hidden = !is;
  $("results").setAttribute("aria-busy", is);
}

function say(text, wrong = false) {
  $("state").textContent = text;
  $("state").classList.toggle("error", wrong);
}

class Refused extends Error {}

function explained(error) {
  if (error instanceof Refused) return error.message;
  if (error instanceof SyntaxError) return "The answer cannot be understood: is this really the service?";
  if (error.name === "AbortError") return "";
  const large = photo.file?.size > LARGE ? ", and is the photo too large for it" : "";
  return `The service does not answer: is it running${large}?`;
}

async function refusal(answer) {
  const { detail = `status ${answer.status}`, code = "" } = await answer.json().catch(() => ({}));
  const told = detail.replace("the image cannot be read: ", "")
    .replace(/(\d+) bytes/, (_, bytes) => `${(bytes / 1e6).toFixed(1)} MB`);
  const wait = Number(answer.headers.get("retry-after"));
  const again = wait > 1 ? `Try again in ${wait} seconds.` : "Try again in a moment.";
  const busyFor = { not_ready: "is still opening its models", out_of_time: "did not finish in time" };
  const sentences = {
    401: "The service wants a key. Load this page again, and give the key as the password.",
    408: "The photo took too long to arrive. Try again, or take a smaller one.",
    413: `The photo is too large: ${told}.`,
    429: `The service was asked too often. ${again}`,
    503: `The service ${busyFor[code] ?? "is at its limits"}. ${again}`,
  };
  return new Refused(sentences[answer.status] ?? `The service refused: ${told}.`);
}

// The start -----------------------------------------------------------------------------------------------

$("ask").addEventListener("submit", look);
$("stop").addEventListener("click", () => { stop(); say("Stopped."); });
$("photo").addEventListener("change", () => photoFrom($("photo").files));
$("canvas").addEventListener("click", point);
document.addEventListener("paste", (event) => receive(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, drag);
new ResizeObserver(() => requestAnimationFrame(draw)).observe($("stage"));
list().catch((error) => say(explained(error), true));
