// Settings and environment of the runs, and the settings in which they differ.

function pairs(content, prefix = "") {
  return Object.entries(content).flatMap(([name, value]) => (value && typeof value === "object" && !Array.isArray(value)
    ? pairs(value, `${prefix}${name}: `) : [[`${prefix}${name}`, Array.isArray(value) ? value.join(", ") : String(value)]]));
}

function runView(state) {
  const { runs, differences, version } = state.index;
  const keys = Object.keys(differences);
  const table = keys.length ? h("section", {}, h("h2", {}, "Settings that differ"), h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "setting"), runs.map((run, k) => h("th", { scope: "col" }, dot(k), ` ${run.name}`)))),
    h("tbody", {}, keys.map((key) => h("tr", {}, h("th", { scope: "row" }, key), differences[key].map((value) => h("td", {}, value || "–"))))))) : null;
  const search = h("input", { type: "search", "aria-label": "Search configurations", placeholder: "learning_rate", oninput: find });
  const texts = [];
  const sections = runs.map((run, k) => {
    const config = h("pre", { tabindex: "0", "aria-label": `Configuration of ${run.name}` }, run.config || "There is no config.yaml.");
    texts.push([config, run.config]);
    const rows = pairs(run.environment);
    return h("section", {}, h("h2", {}, dot(k), run.name), h("p", {}, run.folder),
      h("h2", {}, "Environment"),
      rows.length ? h("table", {}, h("tbody", {}, rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value))))) : h("p", {}, "There is no environment.json."),
      h("h2", {}, "Configuration"), config);
  });

  // Lines with the searched text are marked, and the first one comes into view.
  function find() {
    const word = search.value.toLowerCase();
    for (const [config, text] of texts) {
      const lines = text.split("\n").map((line) => (word && line.toLowerCase().includes(word) ? h("mark", {}, line) : line));
      config.replaceChildren(...lines.flatMap((line) => [line, "\n"]));
      const first = config.querySelector("mark");
      if (first) config.scrollTop = first.offsetTop - config.offsetTop - 40;
    }
  }
  const element = h("div", { class: "about" }, h("div", { class: "bar" }, h("label", {}, "Search", search), h("span", { class: "count" }, `written by lit-rft ${version}`)), table, sections);
  return { element, update() {} };
}
