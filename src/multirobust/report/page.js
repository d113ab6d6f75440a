"use strict";
// Without this script every table is a plain table in the order in which it was written.
(() => {
  const names = new Intl.Collator("en", { numeric: true });
  const opposite = { ascending: "descending", descending: "ascending" };
  const said = document.getElementById("said");

  const number = (cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : NaN);

  // What has no number stays last, whatever the direction.
  function compare(a, b, column, sign) {
    if (column === 0) {
      return sign * names.compare(a.cells[0].textContent.trim(), b.cells[0].textContent.trim());
    }
    const [x, y] = [number(a.cells[column]), number(b.cells[column])];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return sign * (x - y);
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const written = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];

    function sort(heading) {
      const { first } = heading.dataset;
      const now = heading.getAttribute("aria-sort");
      const next = now === null ? first : now === first ? opposite[first] : null;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      const sign = next === "ascending" ? 1 : -1;
      const column = headings.indexOf(heading);
      const rows = next === null ? written
        : [...written].sort((a, b) => compare(a, b, column, sign));
      body.append(...rows);
      if (next !== null) heading.setAttribute("aria-sort", next);
      said.textContent = next === null ? "Rows in their first order."
        : `Sorted by ${heading.textContent.trim()}, ${next}.`;
    }

    for (const heading of headings) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sort(heading));
      heading.append(button);
    }
  }

  function offerDownload(figure) {
    const image = figure.querySelector(".drawing img");
    const link = document.createElement("a");
    link.href = image.src;
    link.download = `${figure.id}.svg`;
    link.textContent = "Download this figure (SVG)";
    const line = document.createElement("p");
    line.className = "tools";
    line.append(link);
    figure.querySelector("figcaption").after(line);
  }

  document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
  document.querySelectorAll("figure[id]").forEach(offerDownload);

  // On paper nothing can be unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));
})();
