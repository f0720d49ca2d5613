// The picture's field: choose, drop, paste, or an example.  A file travels inside the request and is written nowhere.
const drop = element.querySelector(".vd-drop");
const file = element.querySelector("input[type=file]");
const image = element.querySelector(".vd-preview img");
const video = element.querySelector(".vd-preview video");
const hint = element.querySelector(".vd-hint");
const said = element.querySelector(".vd-said");
const most = Number(drop.dataset.most);

const say = (words) => { said.textContent = words; said.hidden = !words; };
const show = (value) => {
  const thumb = value.example && [...element.querySelectorAll(".vd-thumb")].find((t) => t.dataset.name === value.example);
  const source = value.data || (thumb && thumb.firstElementChild.src) || "";
  const moving = source.startsWith("data:video/");
  image.hidden = !source || moving;
  video.hidden = !moving;
  hint.hidden = !!source;
  if (moving) video.src = source; else if (source) image.src = source;
  element.querySelectorAll(".vd-thumb").forEach((t) => t.setAttribute("aria-pressed", String(t === thumb)));
};
const set = (value) => {
  say("");
  props.value = JSON.stringify(value);
  show(value);
  trigger("change");
};
const take = (chosen) => {
  if (!chosen) return;
  if (chosen.size > most) {
    say(`${chosen.name} has ${(chosen.size / 1048576).toFixed(1)} MB; this page takes up to ${most / 1048576} MB: give a smaller one.`);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => set({ data: reader.result, name: chosen.name || "pasted.png" });
  reader.onerror = () => say(`${chosen.name} could not be read.`);
  reader.readAsDataURL(chosen);
};
image.addEventListener("error", () => {
  if (!image.hidden) say("The browser cannot show this file; Compare says whether the model can read it.");
});
drop.addEventListener("click", () => file.click());
drop.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); file.click(); }
});
file.addEventListener("change", () => { take(file.files[0]); file.value = ""; });
["dragover", "dragenter"].forEach((name) => drop.addEventListener(name, (event) => {
  event.preventDefault();
  drop.classList.add("vd-over");
}));
drop.addEventListener("dragleave", () => drop.classList.remove("vd-over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("vd-over");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const found = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
  if (found) { event.preventDefault(); take(found); }
});
element.querySelectorAll(".vd-thumb").forEach((thumb) => thumb.addEventListener("click", () => set({ example: thumb.dataset.name })));
const given = () => { try { return JSON.parse(props.value || "{}") || {}; } catch { return {}; } };
watch("value", () => show(given()));
show(given());
