// Elements of which the pages are made. Whatever they are given is put in as text, never as markup.

const ROWS = 5; // of a long table that are shown at once

export function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

export const words = (name) => String(name).replaceAll("_", " ");

export const chip = (label) => make("span", { className: "chip" }, label);

export function facts(pairs) {
  const told = pairs.filter(([, value]) => value);
  return make("dl", {}, told.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

export const decimal = (value) => (typeof value === "number" ? value.toFixed(3) : null);

export function gauge(share, text = decimal(share)) {
  if (typeof share !== "number") return "";
  const bar = make("span", { className: "bar" });
  bar.setAttribute("aria-hidden", "true"); // the number says the same
  bar.style.setProperty("--share", `${100 * Math.min(Math.max(share, 0), 1)}%`);
  return make("span", { className: "gauge" }, make("span", {}, text), bar);
}

export function table(caption, head, rows, most = ROWS) {
  const cells = (line, kind) => make("tr", {}, line.map((cell) => make(kind, {}, cell)));
  const part = (title, some) => make("table", {}, title ? make("caption", {}, title) : null,
    make("thead", {}, cells(head, "th")), make("tbody", {}, some.map((line) => cells(line, "td"))));
  if (rows.length <= most + 1) return part(caption, rows);
  const rest = `${rows.length - most} more`;
  const more = make("details", {}, make("summary", {}, rest), part("", rows.slice(most)));
  return make("div", {}, part(caption, rows.slice(0, most)), more);
}
