// The three views, the key that works everywhere, and what is asked of the server when.
import { ask } from "./ask.js";
import { byId, say } from "./dom.js";
import * as compare from "./compare.js";
import * as search from "./search.js";
import * as status from "./status.js";

const VIEWS = ["search", "compare", "status"];
let models = null; // once the server is ready

const view = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "search");

function turn() {
  for (const name of VIEWS) byId(name).hidden = name !== view();
  for (const link of document.querySelectorAll("nav a")) {
    link.setAttribute("aria-current", link.hash === `#${view()}` ? "page" : "false");
  }
  document.title = `jina_local: ${view()}`;
  if (models && view() === "status") refresh();
}

async function start() {
  models = (await ask("v1/models")).data;
  compare.open(models);
  await search.open();
}

async function refresh() {
  try {
    const ready = !document.hidden && (await status.isReady());
    if (ready && models === null) await start();
    if (ready && view() === "status") await status.show(models);
    say(byId("status-said"), "");
    return true;
  } catch (error) {
    say(byId(`${view()}-said`), error);
    return models !== null; // without models, because no key was given, there is nothing to watch
  }
}

async function watch() {
  const on = await refresh();
  if (on) setTimeout(watch, view() === "status" || models === null ? 2000 : 10_000);
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
