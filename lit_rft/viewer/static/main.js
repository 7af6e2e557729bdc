// Views by the address's fragment: #curves, #rollouts, #rollouts/<row>, #run.

const VIEWS = [["curves", "Curves"], ["rollouts", "Rollouts"], ["run", "Run"]];

function start(index) {
  const main = document.getElementById("view"), made = new Map();
  const state = {
    index, visible: new Set(index.runs.keys()),
    openRow(row) { location.hash = `rollouts/${row}`; },
    // Rollouts behind a point of a curve. Curves of training count the optimiser steps of the batch, whose rollouts
    // were sampled before them; evaluations come after.
    openStep(name, step) {
      const split = { train: "train", perf: "train", val: "validation" }[name.split("/")[0]];
      const steps = [...new Set(index.groups.filter((group) => group[1] === split).map((group) => group[2]))].sort((a, b) => a - b);
      if (!steps.length) return;
      const before = steps.filter((other) => (split === "train" ? other < step : other <= step));
      const nearest = String(before.at(-1) ?? steps[0]);
      location.hash = "rollouts";
      view("rollouts").filters.assign({ split, stepMin: nearest, stepMax: nearest });
    },
  };
  const makers = { curves: curvesView, rollouts: rolloutsView, run: runView };
  function view(name) {
    if (!made.has(name)) { made.set(name, makers[name](state)); made.get(name).update(); }
    return made.get(name);
  }
  const links = VIEWS.map(([name, label]) => h("a", { href: `#${name}` }, label));
  document.getElementById("nav").replaceChildren(...links);
  document.title = `${index.runs.map((run) => run.name).join(", ")} · lit-rft`;
  document.getElementById("runs").replaceChildren(...index.runs.map((run, k) => h("label", {},
    index.runs.length > 1 ? h("input", { type: "checkbox", checked: true, onchange: (event) => {
      if (event.target.checked) state.visible.add(k); else state.visible.delete(k);
      for (const shown of made.values()) shown.update();
    } }) : null, dot(k), run.name)));
  document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });

  function route() {
    const empty = !Object.keys(index.runs[0].curves).length && index.rollouts.group.length;
    const [name, row] = (location.hash.slice(1) || (empty ? "rollouts" : "curves")).split("/");
    if (!makers[name]) return;
    VIEWS.forEach(([other], k) => (other === name ? links[k].setAttribute("aria-current", "page") : links[k].removeAttribute("aria-current")));
    const shown = view(name);
    if (main.firstChild !== shown.element) main.replaceChildren(shown.element);
    if (row !== undefined) shown.open?.(Number(row)).catch(fail);
  }
  addEventListener("hashchange", route);
  route();
}

function fail(error) {
  document.getElementById("view").replaceChildren(h("p", { class: "note", role: "alert" }, `This page could not be read: ${error.message}`));
}

if (typeof DecompressionStream === "undefined") fail(new Error("it needs a browser with DecompressionStream (since 2023)"));
else decode("index").then(start).catch(fail);
