/* Starts the dashboard: refreshes it while it is visible, follows jobs, and sets up Swagger UI. */

import { authorizationHeader } from "./api.js";
import { byId, note } from "./dom.js";
import { isLocked, setUpKey } from "./key.js";
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
    byId(`${id}-trouble`).replaceChildren(...(error.status === 401 ? [] : [note(error.message, "bad")]));
  }
}

async function refreshAll() {
  if (document.hidden) return;
  await Promise.all([refreshStatus(), ...(isLocked() ? [] : Object.entries(panels).map(refreshPanel))]);
}

async function keepFresh() {
  await refreshAll();
  setTimeout(keepFresh, REFRESH_MS);
}

function setUpSwagger() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const applyTheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
  dark.addEventListener("change", applyTheme);
  applyTheme();
  window.SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger",
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    validatorUrl: null,
    requestInterceptor: (request) => ({ ...request, headers: { ...request.headers, ...authorizationHeader() } }),
  });
}

onJobEnd(refreshAll);
document.addEventListener("visibilitychange", () => (document.hidden ? stopFollowing() : refreshAll()));
addEventListener("pagehide", stopFollowing);
setUpKey(() => {
  stopFollowing();
  refreshAll();
});
setUpAsk();
keepFresh();
setUpSwagger();
