/* Start the dashboard: refresh while somebody looks, follow jobs, set up Swagger UI. */

import { byId, note } from "./dom.js";
import { onJobEnd, refreshJobs, stopFollowing } from "./jobs.js";
import { refreshIndexes, refreshStatus, refreshWorkers } from "./overview.js";
import { setUpAsk } from "./ask.js";

const REFRESH_MS = 5000;
const panels = { workers: refreshWorkers, indexes: refreshIndexes, jobs: refreshJobs };

async function refreshPanel([id, refresh]) {
  try {
    await refresh();
    byId(`${id}-trouble`).replaceChildren();
  } catch (error) {
    byId(`${id}-trouble`).replaceChildren(note(error.message, "bad"));
  }
}

async function refreshAll() {
  if (document.hidden) return;
  await Promise.all([refreshStatus(), ...Object.entries(panels).map(refreshPanel)]);
}

async function keepFresh() {
  await refreshAll();
  setTimeout(keepFresh, REFRESH_MS);
}

function setUpSwagger() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
  dark.addEventListener("change", apply);
  apply();
  window.SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger",
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    validatorUrl: null,
  });
}

onJobEnd(refreshAll);
document.addEventListener("visibilitychange", () => (document.hidden ? stopFollowing() : refreshAll()));
addEventListener("pagehide", stopFollowing);
setUpAsk();
keepFresh();
setUpSwagger();
