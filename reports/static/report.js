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

  for (const button of document.querySelectorAll("button.copy")) {
    const code = button.parentElement.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", () => {
      navigator.clipboard.writeText(code.textContent).then(
        () => { button.dataset.state = "copied"; },
        () => { getSelection().selectAllChildren(code); },
      );
    });
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
