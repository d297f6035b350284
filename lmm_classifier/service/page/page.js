"use strict";
// Everything that comes from the service is put in as text, never as markup.

const $ = (id) => document.getElementById(id);
const COLOURS = ["#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2", "#ca8a04", "#db2777"];
const FIRST = ["classify_hybrid"];

function made(name, text, ...children) {
  const element = document.createElement(name);
  if (text !== undefined && text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

function headers() {
  return $("key").value ? { Authorization: `Bearer ${$("key").value}` } : {};
}

async function list() {
  const answer = await fetch("available_operations/", { headers: headers() });
  if (!answer.ok) { say("Give the key of the service.", true); return; }
  say("");
  const fields = $("operations");
  fields.querySelectorAll("label").forEach((label) => label.remove());
  for (const [name, operation] of Object.entries(await answer.json())) {
    const box = made("input");
    Object.assign(box, { type: "checkbox", name: "operation", value: name, checked: FIRST.includes(name) });
    const label = made("label", null, box, ` ${name}`);
    label.title = operation.description;
    fields.append(label);
  }
}

function say(text, wrong = false) {
  $("state").textContent = text;
  $("state").className = wrong ? "error" : "";
}

async function look(event) {
  event.preventDefault();
  const chosen = [...document.querySelectorAll("[name=operation]:checked")].map((box) => box.value);
  if (!chosen.length) { say("Choose something to do.", true); return; }
  const photo = $("photo").files[0];
  const body = new FormData();
  body.append("image_file", photo);
  body.append("tasks_json", JSON.stringify({ tasks: chosen.map((type) => ({ operation_id: type, type })) }));
  say("Looking ...");
  const started = performance.now();
  try {
    const answer = await fetch("analyze_image_upload/", { method: "POST", body, headers: headers() });
    const found = await answer.json();
    if (!answer.ok) { say(found.detail, true); return; }
    await show(photo, found.results);
    say(`${Math.round(performance.now() - started)} ms`);
  } catch (error) {
    say("The service cannot be reached.", true);
  }
}

async function show(photo, results) {
  const picture = await createImageBitmap(photo, { imageOrientation: "from-image" });
  const canvas = $("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  $("results").replaceChildren();
  let colour = 0;
  for (const [name, result] of Object.entries(results)) {
    if (result.cropped_image_bbox) frame(context, result.cropped_image_bbox, COLOURS[colour++ % 8], name);
    if (Array.isArray(result.data) && result.data.some((item) => item && item.mask)) {
      for (const item of result.data) {
        paint(context, item.mask, COLOURS[colour % 8]);
        frame(context, item.bbox, COLOURS[colour++ % 8], item.label);
      }
    }
    $("results").append(told(name, result));
  }
  $("shown").hidden = false;
}

function frame(context, [x0, y0, x1, y1], colour, label) {
  const width = Math.max(2, context.canvas.width / 300);
  Object.assign(context, { strokeStyle: colour, fillStyle: colour, lineWidth: width, font: `${8 * width}px sans-serif` });
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.fillText(label, x0 + 2 * width, y0 + 8 * width);
}

// COCO's compressed run lengths: numbers of 5 bits a character, differences to the one before the last
function runs(text) {
  const found = [];
  for (let i = 0; i < text.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const part = text.charCodeAt(i++) - 48;
      value |= (part & 31) << shift;
      more = (part & 32) !== 0;
      shift += 5;
      if (!more && part & 16) value |= -1 << shift;
    }
    if (found.length > 2) value += found[found.length - 2];
    found.push(value);
  }
  return found;
}

function paint(context, mask, colour) {
  const [height, width] = mask.size;
  const layer = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  let place = 0;
  runs(mask.counts).forEach((run, i) => {
    for (const end = place + run; place < end; place++) {
      if (i % 2) pixels.data.set([r, g, b, 110], 4 * ((place % height) * width + Math.floor(place / height)));
    }
  });
  layer.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(layer, 0, 0);
}

function told(name, result) {
  const article = made("article", null, made("h2", name));
  if (result.status !== "success") {
    article.append(made("p", `${result.status}: ${result.error_message}`));
    article.lastChild.className = "error";
    return article;
  }
  if (result.region && result.region.fallback) article.append(made("p", `whole image: ${result.region.fallback}`));
  article.append(result.data && result.data.retrieval_label ? decision(result.data) : plain(result.data));
  return article;
}

function decision(data) {
  const part = made("div", null, made("p", `${data.label} (${data.status}, ${data.score.toFixed(3)})`), made("p", data.reason));
  for (const mark of [data.degraded, data.rerank_skipped]) if (mark) part.append(made("p", mark));
  part.append(table(["label", "evidence", "model"], data.candidates.map((c) => [c.label, gauge(c.score), c.probability === null ? "" : gauge(c.probability)])));
  part.append(table(["neighbour", "label", "similarity"], data.neighbours.map((n) => [n.path, n.label, gauge(n.similarity)])));
  part.append(table(["step", "ms"], Object.entries(data.timings).map(([step, s]) => [step, (1000 * s).toFixed(1)])));
  return part;
}

function gauge(value) {
  const meter = made("meter");
  meter.value = value;
  meter.title = value.toFixed(3);
  return made("span", `${value.toFixed(3)} `, meter);
}

function table(head, rows) {
  const line = (cells, kind) => made("tr", null, ...cells.map((cell) => (cell instanceof Node ? made(kind, null, cell) : made(kind, cell))));
  return made("table", null, made("thead", null, line(head, "th")), made("tbody", null, ...rows.map((row) => line(row, "td"))));
}

function plain(data) {
  if (Array.isArray(data) && typeof data[0] === "number" && data.length > 4) return made("p", `${data.length} numbers: ${data.slice(0, 4).map((x) => x.toFixed(4)).join(", ")}, ...`);
  if (Array.isArray(data) && data[0] && data[0].score !== undefined) return table(["label", "score"], data.map((item) => [item.label, gauge(item.score)]));
  return made("p", data === null ? "none found" : typeof data === "string" ? data : JSON.stringify(data));
}

$("ask").addEventListener("submit", look);
$("key").addEventListener("change", list);
const drop = $("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) $("photo").files = event.dataTransfer.files;
  });
}
list();
