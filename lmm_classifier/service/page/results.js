// What the service says, as elements. Whatever it says is put in as text, never as markup.

import { chip, decimal, facts, gauge, make, table, words } from "./elements.js";
import { draw, light, regionOf } from "./photo.js";

export function card(name, result) {
  const done = result.status === "success";
  const told = done ? [place(result), content(result)] : refused(result);
  return make("article", { className: done ? "" : "refused" }, make("h2", {}, words(name)), told);
}

function content({ data, encoder }) {
  if (data === null || (Array.isArray(data) && !data.length)) return make("p", {}, "Nothing was found.");
  if (typeof data === "string") return make("blockquote", {}, data);
  if (data.retrieval_label !== undefined) return decision(data);
  if (data.is_in_collection !== undefined) return membership(data);
  if (!Array.isArray(data)) return make("pre", {}, JSON.stringify(data, null, 2));
  if (data[0].bbox) return list(data.map((item) => regionOf(item.bbox, item.label, item.score, item.mask)));
  if (data[0].label !== undefined) return ranking(data);
  return encoder ? vector(data, encoder) : null; // four numbers are a box, which `place` has told
}

function refused({ status, error_message: message, error_code: code }) {
  const text = message ? `${message[0].toUpperCase()}${message.slice(1)}. ` : "";
  const badge = make("span", { className: `badge ${status}` }, status);
  return make("p", {}, badge, ` ${text}`, make("code", {}, code ?? ""));
}

// Where an operation looked -------------------------------------------------------------------------------

function place({ region, cropped_image_bbox: box, cropped_image_base64: crop }) {
  if (region?.fallback) return make("p", {}, `The whole image was looked at: ${region.fallback}.`);
  if (!box) return null;
  const what = words(region.requested).replace("prominent ", "");
  const source = { src: `data:image/png;base64,${crop}`, alt: `What was looked at: ${what}` };
  return make("div", {}, list([regionOf(box, what, region.score)]), crop ? make("img", source) : null);
}

function list(regions) {
  return make("ul", { className: "regions" }, regions.map((region) => {
    const box = make("input", { type: "checkbox", checked: !region.hidden });
    const swatch = make("span", { className: "swatch" });
    swatch.style.backgroundColor = region.colour;
    const [x0, y0, x1, y1] = region.box;
    const where = make("small", {}, `${x1 - x0} × ${y1 - y0} px at ${x0}, ${y0}`);
    const [label, score] = [region.label, decimal(region.score) ?? ""].map((text) => make("span", {}, text));
    const line = make("li", {}, make("label", {}, box, swatch, label, where, score));
    box.addEventListener("change", () => { region.hidden = !box.checked; draw(); });
    for (const event of ["mouseenter", "focusin"]) line.addEventListener(event, () => light(region));
    for (const event of ["mouseleave", "focusout"]) line.addEventListener(event, () => light(null));
    return line;
  }));
}

// The decision of the classifier --------------------------------------------------------------------------

function decision(data) {
  const notes = [data.degraded, data.rerank_skipped].filter(Boolean);
  const badge = make("span", { className: `badge ${data.status}` }, data.status);
  const asked = data.candidates.some((candidate) => candidate.probability !== null);
  return make("div", { className: "decision" },
    make("p", { className: "label" }, make("strong", {}, data.label), badge),
    make("p", {}, data.reason), notes.map((text) => make("p", { className: "note" }, text)),
    facts([
      ["decided by", words(data.stage)],
      ["score", decimal(data.score)],
      ["without the reranker", data.used_reranker ? data.retrieval_label : null],
      ["looks known", decimal(data.closeness)],
      ["p-value", decimal(data.p_value)],
      ["certainty", decimal(data.certainty)],
      ["route", data.route],
    ]),
    data.possible.length ? make("p", {}, "Possible: ", data.possible.map(chip)) : null,
    table("Candidates", ["label", "evidence", ...(asked ? ["reranker"] : [])],
      data.candidates.map((c) => [c.label, gauge(c.score), ...(asked ? [gauge(c.probability)] : [])])),
    table("Neighbours", ["photo", "similarity"], data.neighbours.map((n) =>
      [make("span", {}, n.label, make("small", {}, n.path)), gauge(n.similarity)])),
    times(data.timings));
}

function times(timings) {
  const all = Object.values(timings).reduce((sum, seconds) => sum + seconds, 0);
  const ms = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;
  const rows = Object.entries(timings).map(([step, seconds]) => [words(step), gauge(seconds / all, ms(seconds))]);
  const told = table("", ["step", "time"], rows, rows.length);
  return make("details", {}, make("summary", {}, `Time: ${ms(all)}`), told);
}

// The other results ---------------------------------------------------------------------------------------

function ranking(items) {
  return table("", ["label", "score"], items.map((item) => [item.label, gauge(item.score)]));
}

function membership({ is_in_collection: is, probability }) { // null: too close to the threshold
  const verb = is === null ? "may belong" : is ? "belongs" : "does not belong";
  return make("p", {}, make("strong", {}, `It ${verb} to the collection`), gauge(probability));
}

function vector(numbers, { name, dim, normalized, fingerprint }) {
  const first = numbers.slice(0, 4).map((number) => number.toFixed(4)).join(", ");
  const length = normalized ? ", of length 1" : "";
  return make("div", {}, make("p", {}, `${dim} numbers${length}: `, make("code", {}, `${first}, …`)),
    make("p", {}, `Encoder ${name}, `, make("code", {}, fingerprint)));
}
