// Typing a label: the known ones that match are offered, and what Enter will do is said before it is done.

import { make } from "/elements.js";

const MOST = 8; // labels that are offered at once

const $ = (id) => document.getElementById(id);
const same = (a, b) => a.localeCompare(b, undefined, { sensitivity: "accent" }) === 0; // but for case

let known = []; // labels that there are
let fresh = false; // whether a new one is wanted
let options = []; // what is offered: { label, isNew }
let chosen = -1; // which of them
let given = () => {}; // takes what was typed: label, and whether it is new

export function askLabel(labels, wantsNew, take) {
  [known, fresh, given] = [labels, wantsNew, take];
  $("asks").textContent = wantsNew ? "New label" : "Label";
  $("text").value = "";
  offer();
  $("labels").showModal();
  $("text").focus();
}

function typed() {
  return $("text").value.replace(/\s+/g, " ").trim();
}

function offer() {
  const text = typed();
  const lower = text.toLowerCase();
  const rank = (label) => (label.toLowerCase().startsWith(lower) ? 0 : 1);
  const matching = known.filter((label) => label.toLowerCase().includes(lower))
    .sort((a, b) => rank(a) - rank(b) || a.localeCompare(b)).slice(0, MOST);
  const exact = known.find((label) => same(label, text));
  options = matching.map((label) => ({ label, isNew: false }));
  if (text && !exact) options.push({ label: text, isNew: true });
  if (exact) chosen = options.findIndex(({ label }) => label === exact);
  else chosen = !text ? -1 : fresh ? options.length - 1 : 0;
  list();
}

function list() {
  $("known").replaceChildren(...options.map(({ label, isNew }, i) => {
    const item = make("li", { id: `option-${i}`, className: isNew ? "new" : "" }, isNew ? "New label: " : "", label);
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", i === chosen);
    item.addEventListener("click", () => { chosen = i; give(); });
    return item;
  }));
  const option = options[chosen];
  $("text").setAttribute("aria-activedescendant", option ? `option-${chosen}` : "");
  $("take").disabled = !option;
  $("means").classList.toggle("note", Boolean(option?.isNew));
  $("means").textContent = !option ? "Type a label." : option.isNew
    ? `Enter makes a new label: “${option.label}”. No photo has it yet.`
    : `Enter gives the known label “${option.label}”.`;
  document.getElementById(`option-${chosen}`)?.scrollIntoView({ block: "nearest" });
}

function give() {
  const option = options[chosen];
  $("labels").close();
  if (option) given(option.label, option.isNew);
}

function press(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !options.length) return;
  event.preventDefault();
  chosen = (chosen + step + options.length) % options.length;
  list();
}

$("text").addEventListener("input", offer);
$("text").addEventListener("keydown", press);
$("leave").addEventListener("click", () => $("labels").close());
$("give").addEventListener("submit", (event) => { event.preventDefault(); give(); });
