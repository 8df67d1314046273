"use strict";
(() => {
  const { study, kind, questions, items } = JSON.parse(document.getElementById("study-data").textContent);
  const at = (id) => document.getElementById(id);
  let rater = "";
  let order = [];
  let answers = {};
  let place = 0;

  // A number from a text, the same on every machine (FNV-1a, 32 bits, with a last mix).
  const number = (text) => {
    let hash = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
    hash = Math.imul(hash ^ (hash >>> 16), 0x45d9f3b) >>> 0;
    return (hash ^ (hash >>> 16)) >>> 0;
  };
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const memory = () => `ptk-study-${study}-${rater}`;
  const keep = () => { try { localStorage.setItem(memory(), JSON.stringify(answers)); } catch { /* it is in the page all the same */ } };
  const kept = () => { try { return JSON.parse(localStorage.getItem(memory())) || {}; } catch { return {}; } };
  // For half of the items A and B change places, others for each person; answers are kept by the names of the file.
  const turned = (item) => kind === "choices" && number(`${rater}|${item.item}|place`) % 2 === 1;
  const other = { A: "B", B: "A" };
  const placed = (item, name) => (turned(item) && other[name]) || name;
  const isAnswered = (item) => questions.every((one) => (answers[item.item] || {})[one.name] !== undefined);

  const text = (title, shown, marked) => make("div", { class: marked ? "shown marked" : "shown" }, make("h3", {}, title), make("p", {}, shown));
  const texts = (item) => {
    const parts = [text("Request", item.prompt)];
    if (kind === "personas") {
      const both = [text("Marked response", item.marked, true), text("Other response", item.unmarked)];
      if (number(`${rater}|${item.item}|sides`) % 2) both.reverse();
      parts.push(make("div", { class: "two" }, ...both), text("Description", item.persona));
      return parts;
    }
    if (item.persona) parts.push(text("The person who asks", item.persona));
    if (kind === "choices") {
      parts.push(make("div", { class: "two" }, text("Response A", item[placed(item, "A")]), text("Response B", item[placed(item, "B")])));
    }
    if (kind === "ratings") parts.push(text("Response", item.response));
    return parts;
  };
  const set = (item, name, value) => {
    const given = answers[item.item] || (answers[item.item] = {});
    if (value === "") delete given[name]; else given[name] = value;
    keep();
    tell();
  };
  const asked = (item, one) => {
    const given = (answers[item.item] || {})[one.name];
    const box = make("fieldset", {}, make("legend", {}, one.text));
    if (one.form === "text") {
      const area = make("textarea", { "aria-label": one.text, maxlength: "600" });
      area.value = given || "";
      area.addEventListener("input", () => set(item, one.name, area.value.trim()));
      box.append(area);
      return box;
    }
    const choices = one.form === "scale" ? [1, 2, 3, 4, 5].map((n) => [n, n === 1 ? `1 ${one.low}` : n === 5 ? `5 ${one.high}` : `${n}`])
      : [[placed(item, "A"), "Response A"], [placed(item, "B"), "Response B"], ["tie", "Neither is better"]];
    const row = make("div", { class: "answers" });
    for (const [value, label] of choices) {
      const radio = make("input", { type: "radio", name: one.name, value });
      radio.checked = given === value;
      radio.addEventListener("change", () => set(item, one.name, value));
      row.append(make("label", {}, radio, label));
    }
    box.append(row);
    return box;
  };
  const tell = () => {
    const count = order.filter(isAnswered).length;
    at("done").max = order.length;
    at("done").value = count;
    at("status").textContent = count === order.length ? `All ${count} are answered. Save them as a file.` : `${count} of ${order.length} are answered.`;
  };
  const show = (focus) => {
    const item = order[place];
    at("asking-h").textContent = `${place + 1} of ${order.length}`;
    at("item").replaceChildren(...texts(item));
    at("questions").replaceChildren(...questions.map((one) => asked(item, one)));
    at("back").disabled = place === 0;
    at("next").disabled = place === order.length - 1;
    tell();
    if (focus) at("asking-h").focus();
  };
  const save = (name, type, content) => {
    const url = URL.createObjectURL(new Blob([content], { type }));
    const link = make("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  const file = () => `study-${study}-${rater.replace(/[^\p{L}\p{N}_-]+/gu, "-")}`;
  const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;

  at("begin").addEventListener("submit", (event) => {
    event.preventDefault();
    rater = at("rater").value.trim();
    if (!rater) return;
    answers = kept();
    order = [...items].sort((one, two) => number(`${rater}|${one.item}`) - number(`${rater}|${two.item}`) || (one.item < two.item ? -1 : 1));
    place = Math.max(0, order.findIndex((item) => !isAnswered(item)));
    at("begin").hidden = true;
    at("asking").hidden = false;
    show(true);
  });
  at("questions").addEventListener("submit", (event) => event.preventDefault());
  at("back").addEventListener("click", () => { place -= 1; show(true); });
  at("next").addEventListener("click", () => { place += 1; show(true); });
  at("save-json").addEventListener("click", () =>
    save(`${file()}.json`, "application/json", JSON.stringify({ study, rater, order: order.map((item) => item.item), answers }, null, 1)));
  at("save-csv").addEventListener("click", () => {
    const lines = [["study", "rater", "item", ...questions.map((one) => one.name)]];
    for (const item of order) {
      const given = answers[item.item] || {};
      lines.push([study, rater, item.item, ...questions.map((one) => given[one.name] ?? "")]);
    }
    save(`${file()}.csv`, "text/csv", lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n");
  });
})();
