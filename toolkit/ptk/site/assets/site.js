"use strict";
// Everything on a page can be read without this; it adds search and copying.
(() => {
  const search = document.querySelector(".search");
  if (search) {
    const input = search.querySelector("input");
    const status = search.querySelector("[role=status]");
    const items = [...document.getElementById(search.dataset.search).children];
    const texts = items.map((item) => (item.dataset.words || item.textContent).toLowerCase());
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      items.forEach((item, index) => {
        const fits = words.every((word) => texts[index].includes(word));
        item.hidden = !fits;
        shown += fits ? 1 : 0;
      });
      status.textContent = words.length ? `${shown} of ${items.length} fit` : "";
    };
    search.hidden = false;
    input.addEventListener("input", filter);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        input.value = "";
        filter();
      }
    });
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest("input, textarea, select");
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        input.focus();
      }
    });
    filter();
  }

  const open = () => {
    const row = location.hash && document.getElementById(location.hash.slice(1));
    if (row && row.tagName === "DETAILS") row.open = true;
  };
  window.addEventListener("hashchange", open);
  open();

  for (const graph of document.querySelectorAll(".graph")) {
    const here = graph.querySelector(".this");
    const middle = here.getBBox().x + here.getBBox().width / 2;
    graph.parentElement.scrollLeft = middle - graph.parentElement.clientWidth / 2;
  }

  for (const code of document.querySelectorAll(".code")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const text = code.querySelector("code").textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        const range = document.createRange();
        range.selectNodeContents(code.querySelector("code"));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    code.append(button);
  }
})();
