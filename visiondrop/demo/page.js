// The stage slider, the link and the code panel; delegated, because results are replaced as a whole.
(() => {
  const query = () => new URLSearchParams(location.search);
  const keep = (found) => {
    const theme = query().get("__theme");
    if (theme) found.set("__theme", theme);
    history.replaceState(null, "", location.pathname + "?" + found.toString());
  };
  document.addEventListener("input", (event) => {
    const range = event.target;
    if (!range.matches || !range.matches(".vd-range")) return;
    const section = range.closest(".vd-results");
    const name = range.dataset.names.split("|")[range.value];
    section.querySelector(".vd-slider output").textContent = name;
    range.setAttribute("aria-valuetext", name);
    section.querySelectorAll(".vd-stages").forEach((stages) => {
      const shown = Number(stages.dataset.map.split(",")[range.value]);
      [...stages.children].forEach((figure, i) => { figure.hidden = i !== shown; });
    });
    const found = query();
    found.set("stage", range.value);
    keep(found);
  });
  const said = (button, words) => {
    const before = button.dataset.words || button.textContent;
    button.dataset.words = before;
    button.textContent = words;
    setTimeout(() => { button.textContent = before; }, 2000);
  };
  const copy = async (text) => {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest && event.target.closest("button");
    if (!button) return;
    if (button.matches(".vd-copy-link")) {
      await copy(location.href);
      said(button, "Link copied");
    } else if (button.matches(".vd-copy")) {
      await copy(button.nextElementSibling.textContent);
      said(button, "Copied");
    } else if (button.matches(".vd-show-code")) {
      const code = button.closest(".vd-results").querySelector(".vd-code");
      code.hidden = !code.hidden;
      button.setAttribute("aria-expanded", String(!code.hidden));
    }
  });
  // New results: the address becomes their link.
  new MutationObserver(() => {
    const section = document.querySelector(".vd-results[data-query]");
    if (!section || section.dataset.seen) return;
    section.dataset.seen = "1";
    keep(new URLSearchParams(section.dataset.query));
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
