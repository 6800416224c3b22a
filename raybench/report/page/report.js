"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  // Tables: any heading sorts, what has no figure stays last.
  const key = (row, index) => {
    const text = row.cells[index].dataset.sort;
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true }));
  for (const table of all("table.sortable")) {
    all("th", table).forEach((heading, index) => heading.querySelector("button").addEventListener("click", () => {
      const numbers = table.tBodies[0].rows.length && all("tbody tr", table).some((r) => typeof key(r, index) === "number");
      const before = heading.getAttribute("aria-sort");
      const up = before === "none" ? !numbers : before === "descending";
      all("th", table).forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = all("tbody tr", table).map((row) => [key(row, index), row]);
      rows.sort(([a], [b]) => (a === "") - (b === "") || (up ? compare(a, b) : compare(b, a)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  }

  // Long tables: a choice for each column of a few words.
  for (const choice of all("form.filters")) {
    const lines = all("tbody tr", choice.nextElementSibling);
    const show = () => {
      const wanted = [...new FormData(choice)].filter(([, text]) => text);
      for (const line of lines) line.hidden = wanted.some(([column, text]) => line.cells[Number(column)].textContent.trim() !== text);
      choice.querySelector("output").textContent = `${lines.filter((line) => !line.hidden).length} of ${lines.length} rows`;
    };
    choice.addEventListener("change", show);
    choice.addEventListener("submit", (event) => event.preventDefault());
    show();
  }

  // The leaderboard: filters, and groups of columns.
  const board = document.getElementById("board-controls");
  const showBoard = () => {
    const form = new FormData(board);
    const [backbone, rule, groups] = [form.get("backbone"), form.get("rule"), new Set(form.getAll("group"))];
    const fits = (node) => (!backbone || node.dataset.backbone === backbone || node.classList.contains("supervised"))
      && (!rule || node.dataset.rule === rule);
    for (const node of all(".board tbody tr, .words li")) node.hidden = !fits(node);
    for (const node of all(".board [data-group]")) {
      node.hidden = node.dataset.group !== "" && !groups.has(node.dataset.group);
    }
  };
  board.addEventListener("change", showBoard);
  showBoard();

  // The browser of images.
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const form = document.getElementById("image-controls");
  if (!form) return;
  const browser = document.getElementById("browser");
  const unique = (values) => [...new Set(values)];
  const fill = (name, values) => form.elements[name].append(...values.map((v) => make("option", { value: v }, v)));
  const titles = unique(rows.flatMap((row) => row.tiles.map((tile) => tile.title)));
  const rules = unique(rows.flatMap((row) => row.tiles.flatMap((tile) => Object.keys(tile.scores))));
  fill("sweep", unique(rows.map((row) => row.sweep)));
  fill("backbone", unique(rows.map((row) => row.backbone)));
  fill("predicted", unique(rows.map((row) => row.predicted)));
  fill("rule", rules);
  const main = form.elements.rule.dataset.main;
  if (rules.includes(main)) form.elements.rule.value = main;
  form.elements.sort.append(make("option", { value: "name" }, "name"), make("option", { value: "disagreement" }, "disagreement"),
    ...titles.map((title) => make("option", { value: `iou:${title}` }, `IoU of ${title}`)));
  if (rows.some((row) => row.disagreement !== null)) form.elements.sort.value = "disagreement";
  document.getElementById("explainers").append(...titles.map((title) => {
    const box = make("input", { type: "checkbox", name: "explainer", value: title, checked: "" });
    return make("label", {}, box, ` ${title}`);
  }));

  const outlines = (xray) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("preserveAspectRatio", "none");
    for (const kind of ["lungs", "infection"]) {
      if (!xray[kind]) continue;
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", xray[kind]);
      path.setAttribute("class", kind);
      svg.append(path);
    }
    return svg;
  };
  const shown = (value) => (value === undefined || value === null ? "–" : value.toFixed(2));
  const captions = (tile, rule, whole) => {
    const scores = tile.scores[rule] || {};
    const names = { iou: "IoU", dice: "Dice", hausdorff: "Hausdorff", hit_rate: "hit rate", pixel_auroc: "pixel AUROC" };
    const wanted = whole ? Object.keys(names) : ["iou", "dice"];
    return wanted.filter((name) => name in scores).map((name) => `${names[name]} ${shown(scores[name])}`).join(", ") || "no figure";
  };
  const picture = (row, source, title, caption, open) => {
    const figure = make("figure", { class: "tile" });
    if (source) {
      const image = make("img", { src: source, loading: "lazy", decoding: "async", alt: `${title} of ${row.name}` });
      const button = make("button", { type: "button", "aria-label": `${title} of ${row.name}, large` }, image, outlines(row.xray));
      button.style.aspectRatio = String(row.xray.ratio);
      button.addEventListener("click", open);
      figure.append(button);
    } else {
      figure.append(make("div", { class: "none" }, "no map"));
    }
    figure.append(make("figcaption", {}, make("strong", {}, title), make("br"), caption));
    return figure;
  };
  const pictures = (row, state, whole, open) => {
    const found = [picture(row, row.xray.source, "X-ray", row.label, open)];
    for (const tile of row.tiles.filter((t) => state.explainers.has(t.title))) {
      found.push(picture(row, tile.map, tile.title, captions(tile, state.rule, whole), open));
      if (tile.regions) found.push(picture(row, tile.regions, `${tile.title} regions`, "green for, red against", open));
    }
    return found;
  };
  const large = document.getElementById("large");
  const enlarge = (row, state) => {
    const heading = make("h3", {}, row.name);
    large.lastElementChild.replaceChildren(heading, make("div", { class: "tiles" }, ...pictures(row, state, true, () => {})));
    large.showModal();
  };

  const fill_row = (node, row, state) => {
    const sure = row.confidence === null ? "" : ` (${shown(row.confidence)})`;
    const right = row.predicted === row.label ? "right" : `wrong, it is ${row.label}`;
    const apart = row.disagreement === null ? "" : `, disagreement ${shown(row.disagreement)}`;
    node.replaceChildren(make("header", {}, make("b", {}, row.name), ` ${row.backbone}: ${row.predicted}${sure}, ${right}${apart}`),
      ...pictures(row, state, false, () => enlarge(row, state)));
    node.dataset.filled = "yes";
  };
  let state, watcher;
  const show = () => {
    const data = new FormData(form);
    state = { rule: data.get("rule"), explainers: new Set(data.getAll("explainer")) };
    const fits = (row) => (!data.get("sweep") || row.sweep === data.get("sweep")) && row.backbone === data.get("backbone")
      && (!data.get("predicted") || row.predicted === data.get("predicted"))
      && (!data.get("right") || (row.predicted === row.label) === (data.get("right") === "yes"));
    const by = data.get("sort");
    const value = (row) => {
      if (by === "name") return row.name;
      if (by === "disagreement") return row.disagreement;
      const tile = row.tiles.find((t) => `iou:${t.title}` === by);
      return tile ? (tile.scores[state.rule] || {}).iou : null;
    };
    const none = (v) => v === null || v === undefined;
    const sign = data.get("order") === "up" ? 1 : -1;
    const chosen = rows.filter(fits).map((row) => [value(row), row]);
    chosen.sort(([a], [b]) => none(a) - none(b) || (none(a) ? 0 : sign * compare(a, b)));
    if (watcher) watcher.disconnect();
    // A row is filled as it comes near the window, so that hundreds cost nothing at first.
    watcher = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting && !target.dataset.filled) fill_row(target, chosen[Number(target.dataset.index)][1], state);
      }
    }, { rootMargin: "600px" });
    browser.classList.toggle("without-outlines", data.get("outlines") === null);
    browser.replaceChildren(...chosen.map((_, index) => make("article", { class: "row", "data-index": index })));
    all(".row", browser).forEach((node) => watcher.observe(node));
    const mine = rows.filter((row) => row.backbone === data.get("backbone"));
    document.getElementById("count").textContent = `${chosen.length} of ${mine.length} images`;
  };
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();
