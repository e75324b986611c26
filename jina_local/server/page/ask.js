// Requests to this server. If it wants a key, the page asks for it, and keeps it in memory alone.
import { byId } from "./dom.js";

let key = null;
let asking = null; // one dialog for all requests that wait for a key

/** The answer of a path, as JSON or as text; with a body it is a POST. Throws an Error with the server's words. */
export async function ask(path, body, signal) {
  const sent = key;
  const headers = sent === null ? {} : { authorization: `Bearer ${sent}` };
  const request = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(request, { method: "POST", body: JSON.stringify(body) });
  }
  const answer = await fetch(path, request).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached. Is it still running?");
  });
  if (answer.status === 401) {
    if (key === sent) await newKey();
    return ask(path, body, signal);
  }
  const isJson = answer.headers.get("content-type")?.startsWith("application/json");
  const found = await (isJson ? answer.json() : answer.text());
  if (answer.ok) return found;
  const { param, message } = found.error ?? { message: `The server answered with status ${answer.status}.` };
  const wait = answer.headers.get("retry-after");
  throw new Error(`${param ? `${param} ` : ""}${message}${wait ? ` Try again in ${wait} s.` : ""}`);
}

/** Ask for a key. Throws an Error if none is given. */
function newKey() {
  asking ??= new Promise((resolve, reject) => {
    const [dialog, form, field] = ["key-dialog", "key-form", "key"].map(byId);
    if (key !== null) byId("key-said").textContent = "This key is not valid here.";
    key = null;
    form.onsubmit = (event) => {
      event.preventDefault();
      key = field.value.trim();
      dialog.close();
    };
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      field.value = "";
      asking = null;
      if (key === null) reject(new Error("This server wants a key; load the page again to give it."));
      else resolve();
    };
    dialog.showModal();
  });
  return asking;
}
