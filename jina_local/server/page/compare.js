// Compare: the same texts under several tasks and prompts, their cosines side by side, and their vectors as files.
import { ask } from "./ask.js";
import { byId, fill, make, onSubmit, say } from "./dom.js";
import { cosines, FORMATS } from "./vectors.js";

const MOST_TEXTS = 40; // in a map
const [form, texts, model, dimensions, sides] = ["compare-form", "texts", "model", "dimensions", "sides"].map(byId);
const readout = byId("cell").querySelector("output");

/** Offer the models that embed. */
export function open(models) {
  const embedding = models.filter((one) => one.kind === "embedding");
  const choose = () => {
    const chosen = embedding.find((one) => one.id === model.value);
    fill(dimensions, chosen.dimensions.toReversed());
    sides.replaceChildren(sides.querySelector("legend"), ...groups(chosen).map(offer));
  };
  fill(model, embedding.map((one) => one.id));
  if (embedding.length) choose();
  else say(byId("compare-said"), "No embedding model is in service.");
  model.addEventListener("change", choose);
  onSubmit(form, byId("compare-said"), compare);
  texts.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

/** Each task with the maps that make sense: of a side with itself, and of the two sides of a search. */
function groups(chosen) {
  const names = [...new Set(chosen.tasks.map((task) => task.split(".")[0]))];
  return names.map((group) => {
    const tasks = chosen.tasks.filter((task) => task.split(".")[0] === group);
    const all = chosen.prompts.length
      ? chosen.prompts.map((name) => ({ name, body: { task: group, prompt_name: name } }))
      : tasks.map((task) => ({ name: task.split(".")[1] ?? "", body: { task } }));
    const query = all.find((side) => side.name === "query");
    const pairs = query ? all.filter((side) => side !== query).map((side) => [query, side]) : [];
    return { group, maps: [...pairs, ...all.map((side) => [side, side]).reverse()] };
  });
}

function offer({ group, maps }, n) {
  return make("div", { role: "group", "aria-label": group }, make("span", { class: "task" }, group),
    maps.map(([a, b], i) => {
      const box = make("input", { type: "checkbox" });
      const name = a === b ? a.name : `${a.name} → ${b.name}`;
      box.map = { a, b, group, title: `${group} ${name}`.trim() };
      box.checked = (n === 0 && i === 0) || (n === 1 && i === maps.length - 1 - (maps.length > 1));
      return make("label", {}, box, name || "on");
    }));
}

async function compare(signal) {
  const lines = texts.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const maps = [...sides.querySelectorAll("input:checked")].map((box) => box.map);
  if (!lines.length) throw new Error("Give a text.");
  if (!maps.length) throw new Error("Choose a task.");
  const facts = { model: model.value, dimensions: Number(dimensions.value) };
  const wanted = new Map(maps.flatMap(({ a, b, group }) => [a, b].map((side) => [side, `${group} ${side.name}`.trim()])));
  const found = await Promise.all([...wanted].map(async ([side, label]) => {
    const { data } = await ask("v1/embeddings", { ...facts, ...side.body, input: lines }, signal);
    return { side, label, rows: data.map((one) => one.embedding) };
  }));
  const shown = (side) => found.find((one) => one.side === side).rows.slice(0, MOST_TEXTS);
  byId("maps").replaceChildren(...maps.map(({ a, b, title }) => heat(title, lines, cosines(shown(a), shown(b)))));
  byId("vectors").replaceChildren(...found.map((one) => downloads({ ...facts, ...one.side.body }, lines, one)));
  byId("vectors-title").hidden = false;
  readout.textContent = "Point at a square, or walk with the arrow keys.";
  return [`${lines.length} texts`, ...(lines.length > MOST_TEXTS ? [`the maps show the first ${MOST_TEXTS}`] : [])];
}

/** A table of cosines. One of its squares is in the order of Tab; arrows move among them. */
function heat(title, lines, values) {
  const square = (value, i, j) => {
    const number = value.toFixed(4);
    const cell = make("td", { role: "gridcell", tabindex: i + j ? -1 : 0, "data-value": number,
      "aria-label": `${number}: ${i + 1} ${lines[i]} / ${j + 1} ${lines[j]}` },
    values.length <= 12 ? value.toFixed(2) : "");
    cell.style.setProperty("--cosine", Math.max(0, Math.min(1, value)));
    cell.classList.toggle("hot", value > 0.75);
    return cell;
  };
  const header = values.map((_, j) => make("th", { scope: "col", title: lines[j] }, `${j + 1}`));
  const rows = values.map((row, i) => make("tr", {},
    make("th", { scope: "row", title: lines[i] }, make("span", {}, `${i + 1} ${lines[i]}`)),
    row.map((value, j) => square(value, i, j))));
  const show = ({ target }) => {
    if (!target.matches("[role=gridcell]")) return;
    const [number, ...texts] = target.getAttribute("aria-label").split(":");
    readout.replaceChildren(make("b", {}, number), `:${texts.join(":")}`);
  };
  return make("figure", {}, make("figcaption", {}, title),
    make("table", { role: "grid", "aria-label": `Cosines, ${title}`, mouseover: show, focusin: show, keydown: walk },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "text"), header)), make("tbody", {}, rows)));
}

function walk(event) {
  const { target: cell } = event;
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const next = cell.closest("table").rows[cell.parentElement.rowIndex + step[0]]?.cells[cell.cellIndex + step[1]];
  if (!next?.matches("[role=gridcell]")) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function downloads(facts, lines, { label, rows }) {
  const save = (format) => {
    const url = URL.createObjectURL(FORMATS[format](facts, lines, rows));
    const download = `${[facts.model, label, facts.dimensions].join("-").replaceAll(/[ .]/g, "-")}.${format}`;
    make("a", { href: url, download }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  };
  return make("li", {}, make("span", {}, `${label} (${rows.length} × ${facts.dimensions})`),
    Object.keys(FORMATS).map((format) =>
      make("button", { "aria-label": `${label} as ${format}`, click: () => save(format) }, format)));
}
