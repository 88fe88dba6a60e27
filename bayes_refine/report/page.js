"use strict";
// Sortable tables; a table of images and the points of the same images in the pictures, linked.
const PRINTED_ROWS = 60;
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

for (const table of all("table.sortable")) {
  const body = table.tBodies[0];
  const headers = all("thead th", table);
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.v;
      const text = header.classList.contains("text");
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // nothing to sort by: last
        const by = text ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
        return up ? by : -by;
      };
      const rows = [...body.rows].sort(order);
      body.append(...rows);
      rows.forEach((row, k) => row.classList.toggle("unprinted", k >= PRINTED_ROWS));
    });
  });
}

const images = document.getElementById("image-table");
if (images) {
  const rows = new Map(all("tbody tr", images).map((row) => [row.dataset.image, row]));
  const headers = all("thead th", images);
  const points = new Map();
  const tip = document.getElementById("tip");
  const light = (image, on) => {
    rows.get(image)?.classList.toggle("on", on);
    for (const point of points.get(image) ?? []) point.classList.toggle("on", on);
  };
  for (const group of all('svg g[id^="images-"]')) {
    const name = group.id.slice("images-".length);
    const order = JSON.parse(group.closest("figure").dataset.images);
    all("use", group).forEach((point, k) => {
      const image = String(order[k]);
      points.set(image, [...(points.get(image) ?? []), point]);
      point.addEventListener("mouseenter", (event) => {
        light(image, true);
        const row = rows.get(image);
        const header = headers.find((one) => one.dataset.name === name);
        const value = header ? row?.cells[header.cellIndex].textContent : "";
        tip.textContent = `image ${image}, ${row?.dataset.identifier}`;
        if (value) tip.textContent += `: ${value} ${header.dataset.unit}`.trimEnd();
        tip.hidden = false;
        tip.style.left = `${Math.min(event.clientX + 12, innerWidth - 300)}px`;
        tip.style.top = `${event.clientY + 14}px`;
      });
      point.addEventListener("mouseleave", () => {
        light(image, false);
        tip.hidden = true;
      });
      point.addEventListener("click", () => rows.get(image)?.scrollIntoView({ block: "center" }));
    });
  }
  for (const [image, row] of rows) {
    row.addEventListener("mouseenter", () => light(image, true));
    row.addEventListener("mouseleave", () => light(image, false));
  }
  const [search, failed] = [document.getElementById("search"), document.getElementById("failed")];
  const filter = () => {
    const word = search.value.toLowerCase();
    for (const row of rows.values()) {
      const text = `${row.dataset.image} ${row.dataset.identifier} ${row.dataset.status}`;
      const kept = text.toLowerCase().includes(word) && (!failed.checked || row.className);
      row.hidden = !kept;
    }
  };
  search.addEventListener("input", filter);
  failed.addEventListener("change", filter);
}

addEventListener("beforeprint", () => all("details").forEach((part) => { part.open = true; }));
