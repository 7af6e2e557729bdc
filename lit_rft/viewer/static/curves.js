// All curves, by the first part of their name, with a search and a slider for smoothing.

const collator = new Intl.Collator("en", { numeric: true });

// Those that are looked at first come first.
const FIRST = ["reward", "score", "success_rate", "average", "loss"];

function byImportance(a, b) {
  const rank = (name) => FIRST.indexOf(name.split("/").slice(1).join("/")) + 1 || FIRST.length + 1;
  return rank(a) - rank(b) || collator.compare(a, b);
}

function curvesView(state) {
  const { index } = state;
  const names = [...new Set(index.runs.flatMap((run) => Object.keys(run.curves)))].sort(byImportance);
  if (!names.length) return { element: h("p", { class: "note" }, "These runs have no curves: no TensorBoard or CSV files were found."), update() {} };
  const charts = names.map((name) => {
    const series = index.runs.flatMap((run, number) => name in run.curves
      ? [{ run: number, name: run.name, steps: run.curves[name][0], values: run.curves[name][1] }] : []);
    return new Chart(name, series, (step) => state.openStep(name, step));
  });
  const weight = h("output", {}, "0.6");
  const slider = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0.6, oninput: () => { weight.value = slider.value; draw(); } });
  const search = h("input", { type: "search", placeholder: "loss reward …", oninput: filter, "aria-label": "Search curves" });
  const count = h("span", { class: "count", role: "status" });
  const sections = new Map();
  for (const chart of charts) {
    const prefix = chart.name.includes("/") ? chart.name.split("/")[0] : "other";
    if (!sections.has(prefix)) sections.set(prefix, []);
    sections.get(prefix).push(chart);
  }
  const order = ["train", "val", "test", "online"];
  const rank = (name) => (order.indexOf(name) + 1 || order.length + 1);
  const blocks = [...sections].sort(([a], [b]) => rank(a) - rank(b) || collator.compare(a, b)).map(([prefix, members]) => ({
    members, element: h("section", {}, h("h2", {}, prefix), h("div", { class: "charts" }, members.map((chart) => chart.element))),
  }));

  // Charts are drawn when they come into view.
  const stale = new Set(charts);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) drawOne(charts.find((chart) => chart.element === entry.target));
  }, { rootMargin: "400px" });
  charts.forEach((chart) => seen.observe(chart.element));
  function drawOne(chart) { if (stale.delete(chart)) chart.draw(Number(slider.value), state.visible); }
  function draw() {
    for (const chart of charts) { stale.add(chart); seen.unobserve(chart.element); seen.observe(chart.element); }
  }
  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let number = 0;
    for (const { members, element } of blocks) {
      const hits = members.filter((chart) => words.every((word) => chart.name.toLowerCase().includes(word)));
      for (const chart of members) chart.element.parentNode && chart.element.toggleAttribute("hidden", !hits.includes(chart));
      element.toggleAttribute("hidden", !hits.length);
      number += hits.length;
    }
    count.textContent = number === names.length ? `${number} curves` : `${number} of ${names.length} curves`;
  }
  filter();
  const element = h("div", { class: "curves" },
    h("div", { class: "bar" }, h("label", {}, "Search", search), h("label", {}, "Smoothing", slider, weight), count),
    blocks.map((block) => block.element));
  return { element, update: draw };
}
