/* Starts the page once its head has been painted: scripts that arrive earlier would hold up the first paint. */

const START_MS = 200; // A page in a hidden tab is painted only once it is shown, and is to be ready then.
let isStarted = false;

function start() {
  if (isStarted) return;
  isStarted = true;
  document.head.append(document.getElementById("scripts").content);
}

requestAnimationFrame(() => setTimeout(start));
setTimeout(start, START_MS);
