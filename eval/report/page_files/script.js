"use strict";
// The numbers of a plot's mark under the pointer, the focus or a finger.
const hint = document.getElementById("hint");

function show(point) {
  hint.textContent = point.dataset.hint;
  hint.hidden = false;
  point.classList.add("lit");
  const mark = point.querySelector("circle").getBoundingClientRect();
  const box = hint.getBoundingClientRect();
  const room = document.documentElement.clientWidth - box.width - 8;
  const above = mark.top - box.height - 8;
  hint.style.left = `${Math.max(8, Math.min(room, mark.left + mark.width / 2 - box.width / 2)) + scrollX}px`;
  hint.style.top = `${(above > 0 ? above : mark.bottom + 8) + scrollY}px`;
}

function hide(point) {
  hint.hidden = true;
  point.classList.remove("lit");
}

for (const point of document.querySelectorAll(".point")) {
  point.addEventListener("pointerenter", () => show(point));
  point.addEventListener("pointerleave", () => hide(point));
  point.addEventListener("focus", () => show(point));
  point.addEventListener("blur", () => hide(point));
}
