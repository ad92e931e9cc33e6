// Lines can be switched off and brought forward by their name in the legend. Everything can be read without this.
const root = document.documentElement;
root.classList.add("scripts");
const boxes = Array.from(document.querySelectorAll(".legend input"));
for (const box of boxes) {
  box.addEventListener("change", () => {
    const series = box.dataset.series;
    root.classList.toggle("hide-" + series, !box.checked);
    for (const twin of boxes) if (twin.dataset.series === series) twin.checked = box.checked;
  });
}
for (const label of document.querySelectorAll(".legend label")) {
  const name = "hot-" + label.dataset.series;
  for (const event of ["pointerenter", "focusin"]) label.addEventListener(event, () => root.classList.add("hot", name));
  for (const event of ["pointerleave", "focusout"]) label.addEventListener(event, () => root.classList.remove("hot", name));
}
// Paper shows all: what is folded is opened first.
window.addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
