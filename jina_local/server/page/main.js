// The three views, the keys that work everywhere, and what is asked of the server when.
import { ask } from "./ask.js";
import { byId, say } from "./dom.js";
import * as compare from "./compare.js";
import * as search from "./search.js";
import * as status from "./status.js";

const VIEWS = ["search", "compare", "status"];
const STATUS_SECONDS = 2;
const HEALTH_SECONDS = 10;
let models = null; // once the server is ready

const view = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "search");

function turn() {
  for (const name of VIEWS) byId(name).hidden = name !== view();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view()}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view() === "status" && models !== null) status.show(models);
}

async function start() {
  models = (await ask("v1/models")).data;
  compare.open(models);
  await search.open();
  turn();
}

async function watch() {
  const soon = view() === "status" || models === null;
  try {
    if (!document.hidden) {
      const ready = await status.state();
      if (ready && models === null) await start();
      else if (ready && view() === "status") await status.show(models);
    }
  } catch (error) {
    for (const name of VIEWS) say(byId(`${name}-said`), error);
    return; // without a key there is nothing to watch
  }
  setTimeout(watch, 1000 * (soon ? STATUS_SECONDS : HEALTH_SECONDS));
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox]), textarea, select, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  location.hash = "search";
  turn();
  byId("question").focus();
  byId("question").select();
});
window.addEventListener("hashchange", turn);
turn();
watch();
