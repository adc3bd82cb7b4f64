// Looks for news every five seconds while the page is seen; the page works without it.
"use strict";
(() => {
  const button = document.querySelector("[data-refresh]");
  if (!button) return;
  let paused = sessionStorage.getItem("paused") === "1";
  const show = () => {
    button.hidden = false;
    button.textContent = paused ? "Resume updates" : "Pause updates";
    button.setAttribute("aria-pressed", String(paused));
  };
  button.addEventListener("click", () => {
    paused = !paused;
    sessionStorage.setItem("paused", paused ? "1" : "0");
    show();
  });
  const look = async () => {
    const busy = document.activeElement && document.activeElement.matches("input, select, textarea");
    if (paused || busy || document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { "X-Tocsin-Refresh": "1" } });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of ["[data-live=cards]", "[data-live=chart]", "[data-live=list]"]) {
        const [here, there] = [document.querySelector(part), fresh.querySelector(part)];
        if (!here !== !there) return location.reload(); // the first error, or the last filter
        const isUsed = here && here.contains(document.activeElement);
        if (here && there && !isUsed) here.replaceWith(document.importNode(there, true));
      }
    } catch {
      // The server is away; the next look may find it.
    }
  };
  show();
  setInterval(look, 5000);
})();
