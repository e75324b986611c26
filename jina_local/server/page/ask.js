// Requests to this server. If it wants a key, the page asks for it once and keeps it for this tab.
import { byId } from "./dom.js";

const STORED = "jina_local key";
let asking = null; // one dialog for all requests that wait for a key

/** Whether a key is kept. */
export const hasKey = () => sessionStorage.getItem(STORED) !== null;

/** Forget the key. */
export const forgetKey = () => sessionStorage.removeItem(STORED);

/** The answer of a path, as JSON or as text; with a body it is a POST. Throws an Error with the server's words. */
export async function ask(path, body, signal) {
  const key = sessionStorage.getItem(STORED);
  const headers = key === null ? {} : { authorization: `Bearer ${key}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await send(path, {
    method: body === undefined ? "GET" : "POST",
    body: body === undefined ? undefined : JSON.stringify(body),
    headers, signal, cache: "no-store",
  });
  if (answer.status === 401) {
    if (sessionStorage.getItem(STORED) === key) await newKey(key !== null);
    return ask(path, body, signal);
  }
  const isJson = (answer.headers.get("content-type") ?? "").startsWith("application/json");
  const found = await (isJson ? answer.json() : answer.text());
  if (!answer.ok) throw Object.assign(new Error(words(answer, found)), { status: answer.status });
  return found;
}

async function send(path, request) {
  try {
    return await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
}

function words(answer, found) {
  const error = found.error ?? { message: `status ${answer.status}` };
  const wait = answer.headers.get("retry-after");
  return `${error.param ? `${error.param} ` : ""}${error.message}${wait ? ` Try again in ${wait} s.` : ""}`;
}

/** Ask for a key. Throws if none is given. */
function newKey(wasWrong) {
  asking ??= new Promise((resolve, reject) => {
    const [dialog, form, field] = [byId("key-dialog"), byId("key-form"), byId("key")];
    if (wasWrong) byId("key-said").textContent = "This key is not valid here.";
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(STORED, field.value.trim());
      dialog.close();
    };
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      const given = field.value !== "" && hasKey();
      field.value = "";
      asking = null;
      if (given) resolve();
      else reject(new Error("This needs the server's key."));
    };
    forgetKey();
    dialog.showModal();
  });
  return asking;
}
