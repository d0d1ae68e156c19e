"use strict";
// Items that pass the filters, some at a time. All text goes in as text, never as HTML.
const AT_ONCE = 50;
const KINDS = { harmful: "harmful now", worse: "worse", better: "better", same: "unchanged", unknown: "not judged" };
const data = JSON.parse(document.getElementById("data").textContent);
const filters = document.getElementById("filters");
const list = document.getElementById("items");
const more = document.getElementById("more");
let found = [];

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function fill(name, values, label = (value) => value) {
  const select = filters.elements[name];
  const before = select.value;
  select.replaceChildren(new Option("all", ""), ...values.map((value) => new Option(label(value), value)));
  select.value = values.includes(before) ? before : "";
}

function distinct(items, key) {
  return [...new Set(items.map((item) => item[key]))].filter(Boolean);
}

function said(title, text) {
  const box = element("div", undefined, "said");
  box.append(element("span", title, "quiet"), element("pre", text));
  return box;
}

function card(item) {
  const box = element("details", undefined, "example");
  box.open = !item.folded;
  const summary = element("summary", `${item.benchmark} ${item.id} `);
  const facts = [item.category, `${item.verdict_a} → ${item.verdict_b}`, KINDS[item.kind]].filter(Boolean);
  summary.append(element("span", facts.join(" · "), "quiet"));
  if (item.folded) summary.append(element("span", "may be harmful", "warning"));
  const sides = element("div", undefined, "sides");
  sides.append(said(`A: ${item.verdict_a}`, item.response_a), said(`B: ${item.verdict_b}`, item.response_b));
  box.append(summary, said("request", item.prompt));
  if (item.target) box.append(said("target", item.target));
  box.append(sides);
  return box;
}

function show() {
  const start = list.childElementCount;
  list.append(...found.slice(start, start + AT_ONCE).map(card));
  more.hidden = list.childElementCount >= found.length;
}

function apply() {
  const wanted = Object.fromEntries(new FormData(filters));
  const text = wanted.text.toLowerCase();
  const chosen = ["benchmark", "category", "kind", "verdict_a", "verdict_b"].filter((key) => wanted[key]);
  found = data.filter(
    (item) =>
      chosen.every((key) => item[key] === wanted[key]) &&
      (!text || [item.prompt, item.response_a, item.response_b].some((one) => one.toLowerCase().includes(text))),
  );
  document.getElementById("count").textContent = `${found.length} of ${data.length} items`;
  list.replaceChildren();
  show();
}

function refill() {
  const benchmark = filters.elements.benchmark.value;
  const members = benchmark ? data.filter((item) => item.benchmark === benchmark) : data;
  for (const key of ["category", "verdict_a", "verdict_b"]) fill(key, distinct(members, key).sort());
  fill("kind", Object.keys(KINDS).filter((kind) => members.some((item) => item.kind === kind)), (kind) => KINDS[kind]);
}

fill("benchmark", distinct(data, "benchmark"));
refill();
filters.addEventListener("input", (event) => {
  if (event.target.name === "benchmark") refill();
  apply();
});
filters.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", show);
apply();
