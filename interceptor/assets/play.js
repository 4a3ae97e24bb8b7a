// Starts the terminal player on what the page names.
"use strict";
const place = document.querySelector("[data-cast]");
if (place && window.AsciinemaPlayer) {
  window.AsciinemaPlayer.create(place.dataset.cast, place, {
    idleTimeLimit: 3,
    fit: "width",
    preload: true,
    terminalFontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace",
    theme: "asciinema",
  });
}
