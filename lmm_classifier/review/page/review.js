// The queue, one question after another. A key press is answered when the server has it on its disk.

import { chip, make } from "/elements.js";
import { askLabel } from "./label.js";
import { ask, onHeard, query, Refused, tell } from "./server.js";
import {
  candidatesOf, choices, evidence, gallery, key, named, photo, pictureOf, prepare, sentence, verdict, verdicts,
} from "./show.js";

const $ = (id) => document.getElementById(id);
const PAGE = 20; // questions that are fetched at once
const LOOK_MS = 3000; // between two looks at what others have said
const TABS = { open: "To do", skipped: "Skipped", mine: "Mine", others: "Others’", conflict: "Conflicts" };
const KEYS = [
  ["Enter", "accept the suggestion"], ["1 – 9", "give the label with that number"],
  ["L or /", "type a label"], ["N", "new label"], ["X", "reject: the photo is not wanted"],
  ["S", "skip: say nothing"], ["U", "undo"], ["→ ←", "next and previous question"],
  ["G", "group: answer for all of it, or for one photo"], ["↓ ↑", "group: next and previous photo"],
  ["Space", "group: leave the photo out, or take it in"], ["?", "these keys"],
];
const DONE = { accept: "Accepted", relabel: "Labelled", new: "New label", reject: "Rejected", skip: "Skipped" };

let about = null; // what does not change
let overview = null; // how far the review has come
let order = 0; // of the queue that `list` is of: it is made anew as answers come
let show = "open"; // which questions are listed
let list = []; // those that were fetched
let at = -1; // which of them is asked
let members = []; // photos of the group, if it is one
let selected = null; // number of the photo that is looked at
let seen = null; // what is known of it
let out = new Set(); // members that are left out
let whole = true; // whether an answer is for the whole group
let busy = false; // while a press is not answered, or a question is not shown, others do nothing
let offered = []; // labels that the digits give

// Questions -----------------------------------------------------------------------------------------------

const fetched = (after) => ask(`queue?${query({ show, after, limit: PAGE })}`);

async function open(wanted) {
  show = wanted;
  order = overview.order;
  [list, at] = [await fetched(null), 0];
  await display();
}

async function reorder() { // what is left comes as it stands in the new queue
  order = overview.order;
  const before = list.slice(0, at + 1);
  const known = new Set(before.map((entry) => entry.key));
  list = [...before, ...(await fetched(null)).filter((entry) => !known.has(entry.key))];
}

async function display() {
  const entry = list[at];
  [members, out, whole, seen, selected] = [[], new Set(), true, null, null];
  if (entry) {
    selected = entry.rows[0];
    if (entry.kind === "group") {
      members = await ask(`members?${query({ item: entry.key })}`);
      out = new Set(members.filter((each) => each.state !== "open" && entry.state === "open").map((each) => each.row));
      if (out.has(selected)) selected = members.find((each) => !out.has(each.row))?.row ?? selected;
    }
    seen = await ask(`photos/${selected}`);
  }
  draw();
  const ahead = list.slice(at + 1).find((each) => each.state === show);
  if (ahead) prepare(pictureOf(ahead.rows[0], "large"));
}

async function select(row) {
  [selected, seen] = [row, await ask(`photos/${row}`)];
  draw();
  document.querySelector(".gallery [aria-current]")?.scrollIntoView({ block: "nearest" });
}

async function next() {
  if (overview.order !== order) await reorder();
  const open = (entry, i) => i > at && entry.state === show;
  let found = list.findIndex(open);
  if (found < 0) {
    const more = await fetched(list.at(-1)?.key ?? null);
    const known = new Set(list.map((entry) => entry.key));
    list.push(...more.filter((entry) => !known.has(entry.key)));
    found = list.findIndex(open);
  }
  if (found < 0 && (show === "open" || show === "skipped" || show === "conflict")) { // those passed over
    const again = await fetched(null);
    if (!again.some((entry) => entry.key === list[at]?.key && again.length === 1)) [list, found] = [again, 0];
  }
  if (found >= 0) at = found;
  else say(`${$("state").textContent} That was the last one.`.trim());
  await display();
}

async function move(step) {
  if (step > 0 && at + 1 >= list.length) list.push(...(await fetched(list.at(-1)?.key ?? null)));
  if (!list[at + step]) return say(step > 0 ? "That is the last one." : "That is the first one.");
  at += step;
  say("");
  return display();
}

// Answers -------------------------------------------------------------------------------------------------

async function decide(action, label = null) {
  const entry = list[at];
  const single = entry.kind === "photo" || !whole;
  const rows = single ? [selected] : members.map((each) => each.row).filter((row) => !out.has(row));
  if (!rows.length) return say("Every photo of the group is left out.", true);
  const item = single ? `photo-${selected}` : entry.key;
  const done = await tell("decisions", { review: about.review, item, action, rows, label });
  overview = done.overview;
  const told = `${DONE[done.action]}${done.label ? `: ${done.label}` : ""}${photos(rows.length)}.`;
  const others = done.entry.said.filter((each) => each.reviewer !== overview.reviewer && each.action !== "skip");
  const differ = done.entry.state === "conflict";
  const says = others.map((each) => `${each.reviewer} ${verdict(each)}`).join(", ");
  say(differ ? `${told} Conflict: ${says}.` : told, differ);
  if (single && entry.kind === "group") return onward(entry);
  list.splice(at, 1, done.entry, ...done.rest.filter((each) => each.state === show));
  return next();
}

async function onward(entry) { // one photo of a group was answered: to the next of it
  const before = members;
  members = await ask(`members?${query({ item: entry.key })}`);
  out.add(selected);
  const left = members.filter((each) => each.state === "open");
  if (!left.length) {
    entry.state = "mine";
    return next();
  }
  const place = before.findIndex((each) => each.row === selected);
  return select((members.slice(place + 1).find((each) => each.state === "open") ?? left[0]).row);
}

async function undo() {
  const done = await tell("undo", { review: about.review });
  overview = done.overview;
  if (!done.action) return say("There is nothing to undo.");
  say(`Taken back: ${DONE[done.action].toLowerCase()}${done.label ? ` ${done.label}` : ""}${photos(done.photos)}.`);
  if (!done.entry) return refresh();
  const keys = list.map((entry) => entry.key);
  const there = keys.indexOf(done.entry.key);
  if (there >= 0) [list[there], at] = [done.entry, there];
  else list.splice((at = Math.max(at, 0)), 0, done.entry);
  await display();
  const again = new Set(members.map((each) => `photo-${each.row}`)); // asked with their group once more
  list = list.filter((entry) => !again.has(entry.key));
  at = list.findIndex((entry) => entry.key === done.entry.key);
}

const photos = (number) => (number > 1 ? `, ${number} photos` : "");

function accept() {
  const { suggestion } = list[at];
  const own = whole || list[at].kind === "photo" ? suggestion : single();
  return own ? decide("accept", own) : say("Nothing is suggested: press a number, L or N.", true);
}

const single = () => (seen.answer.label === "unknown" ? list[at].suggestion : seen.answer.label);

function type(fresh) {
  askLabel(labels(), fresh, (label, isNew) => doing(() => decide(isNew ? "new" : "relabel", label)));
}

const labels = () => [...new Set([...about.labels, ...overview.new_labels])];

function toggle(row) {
  if (!out.delete(row)) out.add(row);
  draw();
}

function turn() {
  whole = !whole;
  say(whole ? "An answer is for the whole group." : "An answer is for one photo of the group.");
  draw();
}

// The page ------------------------------------------------------------------------------------------------

function draw() {
  refresh();
  const entry = list[at];
  $("actions").hidden = !entry && !overview.undoable;
  if (!entry) return empty();
  const group = entry.kind === "group";
  const path = seen.path;
  $("stage").replaceChildren(photo(selected, path), ...(group ? [gallery(members, {
    selected, out, onSelect: (row) => doing(() => select(row)), onToggle: toggle })] : []));
  const included = members.length - out.size;
  const title = group ? (whole ? `Group: ${included} of ${members.length} photos` : `Group: one photo, ${named(path)}`)
    : "One photo";
  const own = group && !whole ? single() : entry.suggestion;
  offered = candidatesOf(seen.answer, own);
  $("question").replaceChildren(make("article", { className: "question" }, make("h2", {}, title),
    make("p", { className: "label" }, own ? make("strong", {}, own) : make("span", {}, "No label is suggested.")),
    make("p", {}, entry.reason), verdicts(seen.said, seen.state, overview.reviewer) ?? ""));
  actions(group, own);
  $("evidence").replaceChildren(evidence(seen, about.pictured, entry.reason));
}

function button(name, keys, run, main = false) {
  const made = make("button", { type: "button", className: main ? "main" : "" }, key(keys), make("span", {}, name));
  made.setAttribute("aria-keyshortcuts", keys);
  made.addEventListener("click", () => doing(run));
  return made;
}

function actions(group, own) {
  const buttons = [
    own ? button(`Accept “${own}”`, "Enter", accept, true) : null,
    button("Label …", "L", () => type(false)), button("New label …", "N", () => type(true)),
    button("Reject", "X", () => decide("reject")), button("Skip", "S", () => decide("skip")),
    button("Undo", "U", undo),
    group ? button(whole ? "One photo only" : "Whole group", "G", turn) : null,
  ];
  const others = choices(offered, seen.answer, (label) => doing(() => decide("relabel", label)));
  const back = button("Previous", "←", () => move(-1)), on = button("Next", "→", () => move(1));
  $("actions").replaceChildren(...[...buttons, back, on, others].filter(Boolean));
}

function empty() {
  const done = show === "open" ? "Nothing is left to do." : `Nothing here: ${TABS[show].toLowerCase()}.`;
  const next = overview.conflicts ? "Reviewers contradict each other: see Conflicts." : "";
  const apply = show === "open" ? make("p", {}, "Put the answers into the corpus: ",
    make("code", {}, `lmm-classifier label apply ${about.folder}`)) : null;
  const body = [make("p", { className: "big" }, done), next ? make("p", {}, next) : null, apply];
  $("stage").replaceChildren(make("div", { className: "empty" }, body.filter(Boolean)));
  for (const id of ["question", "evidence"]) $(id).replaceChildren();
  $("actions").replaceChildren(button("Undo", "U", undo));
}

function refresh() { // how far it has come
  const { states, photos: all } = overview;
  const count = (state) => states[state] ?? 0;
  const done = all - count("open") - count("skipped");
  Object.assign($("bar"), { max: Math.max(all, 1), value: done });
  const skipped = count("skipped") ? `, ${count("skipped")} skipped` : "";
  $("done").textContent = `${done} of ${all} photos decided, ${count("open")} left${skipped}`;
  const numbers = { ...states, conflict: overview.conflicts };
  $("tabs").replaceChildren(...Object.entries(TABS).map(([state, name]) => {
    const tab = make("button", { type: "button", className: state }, `${name} `, make("b", {}, numbers[state] ?? 0));
    if (state === show) tab.setAttribute("aria-current", "true");
    tab.classList.toggle("some", Boolean(numbers[state]));
    tab.addEventListener("click", () => doing(() => { say(""); return open(state); }));
    return tab;
  }));
  const given = Object.entries(overview.labels);
  const rejected = overview.rejected ? [`rejected ${overview.rejected}`] : [];
  const strays = overview.strays ? [make("p", { className: "note" },
    `${overview.strays} photos that were decided are not in this run any more.`)] : [];
  const chips = [...given.map(([label, n]) => `${label} ${n}`), ...rejected].map(chip);
  $("sofar").replaceChildren(make("h2", {}, "Labels so far"),
    make("p", {}, ...(chips.length ? chips : ["none yet"])), ...strays);
}

function say(text, wrong = false) {
  $("state").textContent = text;
  $("state").classList.toggle("error", wrong);
}

async function doing(run) { // one thing at a time: a press is never for a question that was not seen yet
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    await run();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(sentence(error.message), true);
  } finally {
    busy = false;
    document.body.classList.remove("busy");
    if (!$("labels").open && !$("keys").open && !document.activeElement?.closest(".gallery, #tabs, #evidence")) {
      $("stage").focus({ preventScroll: true }); // or Enter would press the last button again
    }
  }
}

// Keys ----------------------------------------------------------------------------------------------------

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("labels").open || $("keys").open) return;
  const on = event.target.closest("button, a, input, summary");
  if (on && (event.key === "Enter" || event.key === " ")) return; // what has the focus is meant
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const run = name === "?" ? keys : name === "u" ? undo : list[at] && bound(name);
  if (!run) return;
  event.preventDefault();
  if (event.repeat && !name.startsWith("Arrow")) return; // a key that is held down decides once
  doing(run);
}

function bound(name) {
  const group = list[at].kind === "group";
  if (name >= "1" && name <= "9") {
    const label = offered[Number(name) - 1];
    return label === undefined ? null : () => decide("relabel", label);
  }
  const runs = {
    Enter: accept, l: () => type(false), "/": () => type(false), n: () => type(true),
    x: () => decide("reject"), s: () => decide("skip"),
    ArrowRight: () => move(1), ArrowLeft: () => move(-1),
  };
  if (group) Object.assign(runs, {
    g: turn, " ": () => toggle(selected), ArrowDown: () => step(1), ArrowUp: () => step(-1) });
  return runs[name];
}

function step(by) {
  const rows = members.map((each) => each.row);
  const row = rows[rows.indexOf(selected) + by];
  return row === undefined ? null : select(row);
}

function keys() {
  $("keys").querySelector("dl").replaceChildren(...KEYS.map(([name, what]) =>
    make("div", {}, make("dt", {}, key(name)), make("dd", {}, what))));
  $("keys").showModal();
}

// The start -----------------------------------------------------------------------------------------------

function heard(is) {
  $("gone").hidden = is;
  $("gone").textContent = is ? "" : "The review does not answer. What was answered before is stored. Start it again "
    + `with --port ${location.port}: this page then goes on, and sends your last answer if it was not stored.`;
}

async function look() { // what others have said meanwhile
  if (busy || document.hidden || !overview) return;
  const before = overview.conflicts;
  const now = await ask("overview");
  if (busy) return;
  overview = now;
  refresh();
  if (now.conflicts > before) say("A conflict has come up: see Conflicts.", true);
}

async function start() {
  about = await ask("run");
  overview = await ask("overview");
  document.title = `Review of ${about.run}`;
  $("title").textContent = `Review of ${about.run}`;
  $("who").textContent = `${overview.reviewer} answers${about.finished ? "" : "; the run is not finished"}`;
  await open("open");
}

onHeard(heard);
document.addEventListener("keydown", press);
$("help").addEventListener("click", keys);
doing(start);
const looking = () => look().finally(() => setTimeout(looking, LOOK_MS));
setTimeout(looking, LOOK_MS);
