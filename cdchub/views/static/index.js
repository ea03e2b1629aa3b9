// Fills the examples in with this hub's own address and first table.
for (const place of document.querySelectorAll(".origin")) place.textContent = location.origin;
const tables = await fetch("/cdc/tables").then((answer) => (answer.ok ? answer.json() : []));
if (tables.length > 0) {
  const name = encodeURIComponent(tables[0].table);
  for (const place of document.querySelectorAll(".table")) place.textContent = name;
}
