// Filters of the table of rollouts.

const YES_NO = [["1", "yes"], ["0", "no"]];

function filterBar(state, onchange) {
  const { groups, rollouts } = state.index;
  const values = {};
  const distinct = (column) => [...new Set(groups.map((group) => group[column]))].sort(collator.compare).map((value) => [value, value || "–"]);
  const set = (name) => (value) => { values[name] = value; onchange(); };
  const number = (name, label, placeholder) => {
    const input = h("input", { type: "number", step: "any", placeholder, "aria-label": label, oninput: () => set(name)(input.value) });
    return input;
  };
  const controls = {
    split: choice("Split", distinct(1), set("split")),
    task: choice("Task", distinct(3), set("task")),
    kind: choice("Kind", [["0", "sampled"], ["1", "trace"]], set("kind")),
    success: choice("Success", YES_NO, set("success")),
    truncated: choice("Truncated", YES_NO, set("truncated")),
    level: choice("Level", [...new Set(rollouts.levels.flat())].sort().map((level) => [level, level]), set("level")),
  };
  const inputs = {
    rewardMin: number("rewardMin", "Lowest reward", "min"), rewardMax: number("rewardMax", "Highest reward", "max"),
    stepMin: number("stepMin", "First step", "first"), stepMax: number("stepMax", "Last step", "last"),
  };
  const search = h("input", { type: "search", placeholder: "text or id", "aria-label": "Search rollouts", oninput: () => set("text")(search.value.toLowerCase()) });
  const clear = h("button", { onclick: () => { assign({}); } }, "Clear");
  const count = h("span", { class: "count", role: "status" });

  // Sets all filters at once; those that are not given are cleared.
  function assign(chosen) {
    for (const key of Object.keys(values)) delete values[key];
    Object.assign(values, chosen);
    for (const [name, { select }] of Object.entries(controls)) select.value = values[name] ?? "";
    for (const [name, input] of Object.entries(inputs)) input.value = values[name] ?? "";
    search.value = values.text ?? "";
    onchange();
  }

  function admits(row) {
    const [run, split, step, task] = groups[rollouts.group[row]];
    const given = (name) => values[name] != null && values[name] !== "";
    return state.visible.has(run)
      && !(given("split") && split !== values.split)
      && !(given("task") && task !== values.task)
      && !(given("kind") && rollouts.trace[row] !== Number(values.kind))
      && !(given("success") && rollouts.success[row] !== Number(values.success))
      && !(given("truncated") && rollouts.truncated[row] !== Number(values.truncated))
      && !(given("level") && !rollouts.levels[row].includes(values.level))
      && !(given("rewardMin") && rollouts.reward[row] < Number(values.rewardMin))
      && !(given("rewardMax") && rollouts.reward[row] > Number(values.rewardMax))
      && !(given("stepMin") && step < Number(values.stepMin))
      && !(given("stepMax") && step > Number(values.stepMax))
      && !(given("text") && !`${rollouts.text[row]}\n${rollouts.id[row]}`.toLowerCase().includes(values.text));
  }

  const element = h("div", { class: "bar", role: "search", "aria-label": "Filters" },
    Object.values(controls).map((control) => control.element),
    h("label", {}, "Reward", inputs.rewardMin, inputs.rewardMax), h("label", {}, "Step", inputs.stepMin, inputs.stepMax),
    search, clear, count);
  return { element, admits, assign, count };
}
