// Text into the page's elements. Nothing here makes markup of it, and what has not changed stays as
// it is, so that nobody's place on the page is lost.

export const byId = (id) => document.getElementById(id);

export function write(node, text, level = "") {
  if (node.textContent !== text) node.textContent = text;
  if ((node.dataset.level ?? "") !== level) node.dataset.level = level;
}

/** As many children as there are `items`: those that are there are filled again, not replaced. */
export function fill(parent, tag, items, each) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(document.createElement(tag));
  items.forEach((item, i) => each(parent.children[i], item));
}

const cell = (value) => (value && typeof value === "object" ? value : { text: String(value) });

/** Rows of cells, a text or {text, level} each; `none` is said where there are no rows. */
export function table(id, columns, rows, none) {
  const element = byId(id);
  if (!element.tHead) {
    // Roles, since a narrow page lays rows out as cards, and then they would lose them.
    element.setAttribute("role", "table");
    const head = element.createTHead();
    head.setAttribute("role", "rowgroup");
    const line = head.insertRow();
    line.setAttribute("role", "row");
    for (const name of columns) {
      const title = document.createElement("th");
      title.scope = "col";
      title.setAttribute("role", "columnheader");
      title.textContent = name;
      line.append(title);
    }
    element.createTBody().setAttribute("role", "rowgroup");
    const empty = document.createElement("p");
    empty.className = "empty";
    element.after(empty);
  }
  element.hidden = rows.length === 0;
  write(element.nextElementSibling, rows.length ? "" : none);
  fill(element.tBodies[0], "tr", rows, (row, cells) => {
    row.setAttribute("role", "row");
    fill(row, "td", cells.map(cell), (td, { text, level }) => write(td, text, level));
    [...row.cells].forEach((td, i) => {
      td.setAttribute("role", "cell");
      td.dataset.label = columns[i];
    });
  });
}

/** Terms and what is true of them: [term, text, level?]. */
export function facts(id, pairs) {
  fill(byId(id), "div", pairs, (div, [term, text, level]) => {
    if (!div.children.length) {
      div.append(document.createElement("dt"), document.createElement("dd"));
    }
    write(div.children[0], term);
    write(div.children[1], text, level);
  });
}
