/* Starts the dashboard: the panels above, and Swagger UI below them. */

import { addressOf, authorizationHeader } from "../shared/api.js";
import { html, render, useState } from "../shared/html.js";
import { ForgetKey, KeyForm, useKey } from "../shared/key.js";
import { Status } from "../shared/status.js";
import { Indexes, Jobs, Workers } from "./panels.js";

function Board() {
  const [version, setVersion] = useState(0);
  const [message, replaceKey] = useKey(() => setVersion((last) => last + 1));
  if (message !== null) return html`<${KeyForm} message=${message} onKey=${replaceKey} /><${ForgetKey} onKey=${replaceKey} />`;
  return html`<div class="board" key=${version} role="region" aria-label="Dashboard">
    <${Jobs} /><${Workers} /><${Indexes} />
  </div><${ForgetKey} onKey=${replaceKey} />`;
}

function setUpSwagger() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const applyTheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
  dark.addEventListener("change", applyTheme);
  applyTheme();
  window.SwaggerUIBundle({
    url: addressOf("openapi.json"),
    dom_id: "#swagger",
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    validatorUrl: null,
    requestInterceptor: (request) => ({ ...request, headers: { ...request.headers, ...authorizationHeader() } }),
  });
}

render(html`<${Status} />`, document.getElementById("head-status"));
render(html`<${Board} />`, document.getElementById("board"));
setUpSwagger();
