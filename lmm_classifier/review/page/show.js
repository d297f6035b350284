// A question as elements: the photo or the group, its evidence, and what reviewers said of it.

import { chip, decimal, facts, gauge, make, table, words } from "/elements.js";

const DIGITS = 9; // candidates that have a key
const SHOWN = 6; // neighbours with a picture

export const key = (name) => make("kbd", {}, name);
export const named = (path) => path.split("/").at(-1);

let ahead = null; // the next photo, which is fetched while this one is looked at

export function prepare(url) {
  ahead = { url, image: fetched(url, "", false) };
}

export function picture(url, alt, lazy = false) {
  const image = ahead?.url === url ? ahead.image : null;
  if (!image || (image.complete && !image.naturalWidth)) return fetched(url, alt, lazy);
  return Object.assign(image, { alt });
}

function fetched(url, alt, lazy) { // a picture, or why there is none
  const image = make("img", { alt, loading: lazy ? "lazy" : "eager", decoding: "async" });
  image.addEventListener("error", async () => {
    const answer = await fetch(url).catch(() => null);
    const said = answer && !answer.ok ? await answer.json().catch(() => ({})) : {};
    image.replaceWith(make("p", { className: "missing" }, said.detail ? sentence(said.detail) : "No picture."));
  });
  image.src = url;
  return image;
}

export const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;
export const pictureOf = (row, size) => `photos/${row}/picture?size=${size}`;

// What reviewers said -------------------------------------------------------------------------------------

const VERBS = { reject: "rejects it", skip: "skipped it" };

export const verdict = ({ action, label }) => VERBS[action] ?? `says “${label}”`;

export function verdicts(said, state, me) {
  if (!said.length) return null;
  const lines = said.map((each) => {
    const who = each.reviewer === me ? `${each.reviewer} (you)` : each.reviewer;
    return make("li", {}, make("b", {}, who), ` ${verdict(each)}`);
  });
  const list = make("ul", { className: "said" }, lines);
  if (state !== "conflict") return list;
  const title = make("strong", {}, "Conflict. ");
  return make("div", { className: "conflict" },
    make("p", {}, title, "Reviewers differ; it ends when they say the same."), list);
}

// Photo and group -----------------------------------------------------------------------------------------

export function photo(row, path) {
  const caption = make("figcaption", {}, path);
  return make("figure", { className: "photo" }, picture(pictureOf(row, "large"), `Photo ${named(path)}`), caption);
}

export function gallery(members, { selected, out, onSelect, onToggle }) {
  return make("ul", { className: "gallery", ariaLabel: "Photos of the group" }, members.map((member) => {
    const { row, path, state, said } = member;
    const box = make("input", { type: "checkbox", checked: !out.has(row), title: "part of the group" });
    box.setAttribute("aria-label", `${named(path)} is part of the group`);
    box.addEventListener("change", () => onToggle(row));
    const show = make("button", { type: "button", title: path }, picture(pictureOf(row, "small"), named(path), true));
    if (row === selected) show.setAttribute("aria-current", "true");
    show.addEventListener("click", () => onSelect(row));
    const told = state === "open" ? null : make("small", {}, said.map(verdict).join(", "));
    const item = make("li", { className: out.has(row) ? "out" : "" }, show, box, told);
    item.dataset.row = row;
    return item;
  }));
}

// Evidence ------------------------------------------------------------------------------------------------

export function candidatesOf(answer, suggestion) { // those that the digits give
  const ranked = answer.candidates.toSorted((a, b) => likely(b) - likely(a));
  const labels = ranked.map((candidate) => candidate.label).filter((label) => label !== "unknown");
  const rest = answer.possible.filter((label) => label !== "unknown" && !labels.includes(label));
  return [...labels, ...rest].filter((label) => label !== suggestion).slice(0, DIGITS);
}

const likely = ({ probability, score }) => probability ?? score;

export function choices(labels, answer, onChoose) {
  if (!labels.length) return null;
  const found = new Map(answer.candidates.map((each) => [each.label, likely(each)]));
  return make("div", { className: "choices", role: "group", ariaLabel: "Other labels" }, labels.map((label, i) => {
    const button = make("button", { type: "button" }, key(i + 1), make("span", {}, label), gauge(found.get(label)));
    button.setAttribute("aria-keyshortcuts", i + 1);
    button.addEventListener("click", () => onChoose(label));
    return button;
  }));
}

export function evidence({ row, answer }, pictured, told) {
  const badge = make("span", { className: `badge ${answer.status}` }, answer.status);
  const shown = answer.status === "unknown" ? null : make("strong", {}, answer.label);
  const notes = [answer.degraded, answer.rerank_skipped].filter(Boolean);
  return make("article", {}, make("h2", {}, "What the classifier says"),
    make("p", { className: "label" }, shown, badge),
    answer.reason === told ? null : make("p", {}, answer.reason),
    notes.map((text) => make("p", { className: "note" }, text)),
    facts([
      ["decided by", words(answer.stage)],
      ["score", decimal(answer.score)],
      ["looks known", decimal(answer.closeness)],
      ["p-value", decimal(answer.p_value)],
      ["certainty", decimal(answer.certainty)],
      ["without the reranker", answer.used_reranker ? answer.retrieval_label : null],
    ]),
    answer.possible.length ? make("p", {}, "Possible: ", answer.possible.map(chip)) : null,
    make("h2", {}, "Nearest photos of the corpus"), pictured ? near(row, answer.neighbours) : null,
    nearTable(answer.neighbours.slice(pictured ? SHOWN : 0)));
}

function near(row, neighbours) {
  return make("ul", { className: "near" }, neighbours.slice(0, SHOWN).map((each, i) =>
    make("li", { title: each.path }, picture(`photos/${row}/neighbours/${i}/picture`, named(each.path), true),
      make("span", {}, each.label), make("small", {}, decimal(each.similarity)))));
}

function nearTable(neighbours) {
  if (!neighbours.length) return null;
  return table("", ["photo", "similarity"], neighbours.map((each) =>
    [make("span", {}, each.label, make("small", {}, each.path)), gauge(each.similarity)]));
}
