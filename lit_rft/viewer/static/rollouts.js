// The table of rollouts with its filters, beside the chosen rollout.

function rolloutsView(state) {
  const { groups, rollouts, runs, left_out: leftOut } = state.index;
  const total = rollouts.group.length;
  if (!total) return { element: h("p", { class: "note" }, "These runs have no rollouts: there is no folder rollouts/ in them (docs/viewing.md)."), update() {} };
  const of = (column) => (row) => groups[rollouts.group[row]][column];
  const columns = [
    { name: "run", label: runs.length > 1 ? "Run" : "", key: of(0), cell: (row) => (runs.length > 1 ? dot(of(0)(row)) : "") },
    { name: "step", label: "Step", number: true, key: of(2), cell: (row) => show(of(2)(row)) },
    { name: "split", label: "Split", key: of(1), cell: (row) => (of(1)(row) === "validation" ? "val" : of(1)(row)) },
    { name: "task", label: "Task", key: of(3), cell: (row) => of(3)(row) || "–" },
    { name: "reward", label: "Reward", number: true, key: (row) => rollouts.reward[row], cell: (row) => show(rollouts.reward[row]), class: (row) => (rollouts.success[row] ? "good" : "") },
    { name: "advantage", label: "Advantage", number: true, key: (row) => rollouts.advantage[row], cell: (row) => (rollouts.advantage[row] ? show(rollouts.advantage[row]) : "–") },
    { name: "tokens", label: "Tokens", number: true, key: (row) => rollouts.tokens[row], cell: (row) => show(rollouts.tokens[row]), class: (row) => (rollouts.truncated[row] ? "bad" : "") },
    { name: "text", label: "Text", key: (row) => rollouts.text[row], class: () => "text", cell: (row) => [rollouts.trace[row] ? h("span", { class: "tag" }, "trace") : "", rollouts.trace[row] ? " " : "", rollouts.text[row]] },
  ];
  const detail = new Detail(state);
  const list = new VirtualList("Rollouts; arrow keys choose one", columns, (row) => state.openRow(row));
  const filters = filterBar(state, update);
  const element = h("div", { class: "rollouts" }, filters.element, h("div", { class: "split" }, list.element, detail.element));

  function update() {
    const rows = [];
    for (let row = 0; row < total; row++) if (filters.admits(row)) rows.push(row);
    list.set(rows);
    const note = leftOut ? `; ${show(leftOut)} more are not in this page` : "";
    filters.count.textContent = (rows.length === total ? `${total} rollouts` : `${rows.length} of ${total} rollouts`) + note;
  }

  // Shows a row that the address or a click has chosen.
  async function open(row) {
    if (!(row >= 0 && row < total)) return;
    const place = list.rows.indexOf(row);
    if (place !== list.at) { if (place >= 0) list.select(place, false); else { list.at = -1; list.render(); } }
    await detail.open(row);
  }
  return { element, update, open, filters };
}
