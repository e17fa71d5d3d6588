"use strict";
(() => {
  const byValue = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.sort !== undefined) {
      const number = Number(cell.dataset.sort);
      return Number.isNaN(number) ? cell.dataset.sort : number;
    }
    const text = cell.textContent.trim();
    return text === "" || text === "–" ? null : text;
  };

  const sort = (table, column, header) => {
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const order = (a, b) => {
      const x = valueOf(a, column), y = valueOf(b, column);
      const sign = x === null || y === null ? 1 : down ? -1 : 1;
      return sign * byValue(x, y);
    };
    table.tBodies[0].append(...rows.sort(order));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[table.tHead.rows.length - 1].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, column, header));
      header.append(button);
    });
  }

  // On a phone the contents would fill the screen.
  const contents = document.querySelector(".toc details");
  if (contents && matchMedia("(max-width:48rem)").matches) contents.open = false;

  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // A table worth searching gets a search field, and a choice of its domains where it has some.
  const filter = (table) => {
    const rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const column = heads.findIndex((head) => head.textContent.trim() === "Domain");
    const domains = column < 1 ? [] : [...new Set(rows.map((row) => row.cells[column].textContent))];
    const input = make("input", { type: "search", autocomplete: "off", spellcheck: false });
    const select = make("select", {}, make("option", { value: "" }, "all domains"),
      ...domains.map((name) => make("option", { value: name }, name)));
    const output = make("output", {});
    output.setAttribute("aria-live", "polite");
    const update = () => {
      const wanted = input.value.toLowerCase();
      for (const row of rows) {
        const other = select.value && row.cells[column].textContent !== select.value;
        row.hidden = other || !row.textContent.toLowerCase().includes(wanted);
      }
      const shown = rows.filter((row) => !row.hidden).length;
      output.textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
    };
    input.addEventListener("input", update);
    select.addEventListener("input", update);
    const caption = table.parentElement.ariaLabel;
    input.setAttribute("aria-label", `Filter the rows of: ${caption}`);
    select.setAttribute("aria-label", `Domain of the rows of: ${caption}`);
    input.placeholder = "filter rows";
    const bar = make("p", { className: "filter" }, input);
    if (domains.length > 1) bar.append(select);
    bar.append(output);
    table.parentElement.before(bar);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    if (table.tBodies[0].rows.length >= 10) filter(table);
  }

  for (const button of document.querySelectorAll("button.copy")) {
    const code = button.parentElement.querySelector("code");
    const text = button.dataset.copy ?? code.textContent;
    button.hidden = false;
    button.title = text;
    button.addEventListener("click", () => {
      navigator.clipboard.writeText(text).then(
        () => { button.dataset.state = "copied"; },
        () => {
          if (code) getSelection().selectAllChildren(code);
          else button.textContent = text;
        },
      );
    });
  }

  // The data behind a figure travels packed; a click saves it as plain CSV.
  const unpack = async (link) => {
    const packed = Uint8Array.from(atob(link.href.split(",")[1]), (c) => c.charCodeAt(0));
    const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const text = await new Response(plain, { headers: { "Content-Type": "text/csv" } }).blob();
    link.href = URL.createObjectURL(text);
    link.download = link.download.replace(/\.gz$/, "");
    link.click();
  };
  for (const link of document.querySelectorAll("a.csv")) {
    if (!("DecompressionStream" in window)) break;
    link.addEventListener("click", (event) => {
      if (link.href.startsWith("blob:")) return;
      event.preventDefault();
      unpack(link);
    });
  }

  // The pointer, or the arrow keys, tell what is behind each token of a text map.
  for (const map of document.querySelectorAll(".text-map")) {
    const told = map.querySelector(".told");
    told.hidden = false;
    for (const text of map.querySelectorAll(".tokens")) {
      const tokens = [...text.children];
      let now = -1;
      const show = (index) => {
        tokens[now]?.classList.remove("now");
        now = index;
        tokens[now].classList.add("now");
        told.textContent = tokens[now].title;
      };
      text.tabIndex = 0;
      text.setAttribute("role", "group");
      text.setAttribute("aria-label", "Text; arrow keys move from token to token");
      text.addEventListener("pointerover", (event) => {
        const index = tokens.indexOf(event.target);
        if (index >= 0) show(index);
      });
      text.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step || !tokens.length) return;
        event.preventDefault();
        show(Math.min(Math.max(now + step, 0), tokens.length - 1));
      });
    }
  }

  const search = document.querySelector("#sample-search");
  if (search) {
    const samples = [...document.querySelectorAll(".sample")];
    search.parentElement.hidden = false;
    search.addEventListener("input", () => {
      const wanted = search.value.toLowerCase();
      for (const sample of samples) sample.hidden = !(sample.dataset.task + sample.textContent).toLowerCase().includes(wanted);
      for (const task of document.querySelectorAll(".task")) {
        const hit = task.querySelector(".sample:not([hidden])") !== null;
        task.hidden = !hit;
        if (wanted && hit) task.open = true;
      }
      const shown = samples.filter((sample) => !sample.hidden).length;
      search.parentElement.querySelector("output").textContent = `${shown} of ${samples.length}`;
    });
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll(".samples details:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
