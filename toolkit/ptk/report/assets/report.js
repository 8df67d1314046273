"use strict";
// Everything but most of the examples can be read without this; it shows, searches and narrows them.
(() => {
  const held = document.getElementById("examples-data");
  if (!held) return;
  const { items, filters } = JSON.parse(held.textContent);
  const PAGE = 20;
  const list = document.getElementById("examples-list");
  const tools = document.getElementById("examples-tools");
  const pages = document.getElementById("examples-pages");
  const status = document.getElementById("examples-status");
  const input = document.getElementById("examples-search");
  const selects = [...tools.querySelectorAll("select")];
  const [before, after] = pages.querySelectorAll("button");
  const where = pages.querySelector("span");
  let page = 0;
  let fitting = [];
  let texts = null;

  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  // Only what stands in texts is searched, not the names of columns.
  const gathered = (value) =>
    typeof value === "string" ? [value] : Array.isArray(value) ? value.flatMap(gathered)
      : value && typeof value === "object" ? Object.values(value).flatMap(gathered) : [];
  const has = (item, cell, name, value) =>
    (cell.of && cell.of[name] === value) || (cell.facts && cell.facts[name] === value) || (item.facts && item.facts[name] === value)
    || (cell.verdicts || []).some((one) => one.name === name && one.verdict === value)
    || (name === "flag" && (cell.flags || []).includes(value));

  const turns = (values) => values.map(([role, text]) =>
    make("div", { class: "turn" }, values.length > 1 && role ? make("span", { class: "role" }, role) : null, make("p", {}, text)));
  const persona = (name, text) => make("p", { class: "persona" }, make("span", { class: "role" }, name.replaceAll("_", " ")), ` ${text}`);
  const verdict = (one) => {
    const more = [one.margin === null ? null : `margin ${one.margin}`, one.flipped ? "changes with the order" : null].filter(Boolean);
    return make("li", {}, make("b", {}, one.verdict), ` ${one.name} · ${one.what}${more.length ? ` (${more.join("; ")})` : ""}`);
  };
  const pair = (sides, personas) => {
    const shown = ["chosen", "rejected"].filter((side) => sides[side]);
    if (!shown.length) return null;
    return make("div", { class: "two sides" }, ...shown.map((side) => make("div", { class: `side ${side}` }, make("h3", {}, side),
      personas[`${side}_persona`] ? persona("persona", personas[`${side}_persona`]) : null, ...turns(sides[side]))));
  };
  const card = (cell) => {
    const of = Object.entries(cell.of || {}).map(([name, value]) => `${name} ${value}`).join(" · ");
    const title = of || (cell.step ? `step ${cell.step}` : "");
    return make("div", { class: "cell" },
      title ? make("h4", {}, title) : null,
      ...(cell.flags || []).map((flag) => make("span", { class: "flag" }, flag)),
      cell.pair ? pair(cell.pair, cell.personas || {}) : null,
      ...Object.entries(cell.personas || {}).filter(([name]) => !cell.pair || !/^(chosen|rejected)_persona$/.test(name))
        .map(([name, text]) => persona(name, text)),
      ...(cell.answers || []).flatMap((one) => [make("h5", {}, `${one.name}, ${one.given}`), make("p", {}, one.text)]),
      cell.verdicts ? make("ul", { class: "verdicts" }, ...cell.verdicts.map(verdict)) : null);
  };
  const body = (item, cells) => {
    const personas = item.personas || {};
    const rest = Object.entries(personas).filter(([name]) => !item.pair || !/^(chosen|rejected)_persona$/.test(name));
    const facts = Object.entries(item.facts || {});
    return [
      make("div", { class: "prompt" }, ...turns(item.prompt || [])),
      item.pair ? pair(item.pair, personas) : null,
      rest.length ? make("div", {}, ...rest.map(([name, text]) => persona(name, text))) : null,
      make("div", { class: "cells" }, ...cells.map(card)),
      facts.length ? make("dl", { class: "rest" }, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))) : null,
    ].filter(Boolean);
  };
  const row = ({ item, number, cells }, open) => {
    const title = (item.prompt || []).map(([, text]) => text).join(" ").replace(/\s+/g, " ").trim().slice(0, 140) || "(no text)";
    const count = make("span", { class: "count", "aria-hidden": "true" }, String(number + 1));
    const made = make("details", { class: "row" }, make("summary", {}, count, make("span", {}, title)));
    let filled = false;
    const fill = () => { if (!filled && made.open) { made.append(...body(item, cells)); filled = true; } };
    made.addEventListener("toggle", fill);
    if (open) { made.open = true; fill(); }
    return made;
  };
  const show = () => {
    const last = Math.max(0, Math.ceil(fitting.length / PAGE) - 1);
    page = Math.min(Math.max(0, page), last);
    list.replaceChildren(...fitting.slice(page * PAGE, page * PAGE + PAGE).map((one, index) => row(one, index === 0)));
    where.textContent = fitting.length ? `${page * PAGE + 1} to ${Math.min(fitting.length, (page + 1) * PAGE)} of ${fitting.length}` : "";
    before.disabled = page === 0;
    after.disabled = page === last;
    pages.hidden = fitting.length <= PAGE;
  };
  const narrow = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.map((select) => [select.dataset.name, select.value]).filter(([, value]) => value);
    if (words.length && texts === null) texts = items.map((item) => gathered(item).join("\n").toLowerCase());
    fitting = [];
    items.forEach((item, number) => {
      if (!words.every((word) => texts[number].includes(word))) return;
      const all = item.cells.length ? item.cells : [{}];
      const cells = all.filter((cell) => wanted.every(([name, value]) => has(item, cell, name, value)));
      if (cells.length) fitting.push({ item, number, cells: item.cells.length ? cells : [] });
    });
    status.textContent = words.length || wanted.length ? `${fitting.length} of ${items.length} examples fit` : `${items.length} examples`;
    page = 0;
    show();
  };
  tools.hidden = false;
  input.addEventListener("input", narrow);
  input.addEventListener("keydown", (event) => { if (event.key === "Escape") { input.value = ""; narrow(); } });
  selects.forEach((select) => select.addEventListener("change", narrow));
  before.addEventListener("click", () => { page -= 1; show(); });
  after.addEventListener("click", () => { page += 1; show(); });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      input.focus();
    }
  });
  narrow();
})();
