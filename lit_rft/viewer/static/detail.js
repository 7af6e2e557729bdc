// One rollout with its group: facts, members, conversation, steps, and all members side by side.

class Detail {
  constructor(state) {
    this.state = state; this.coloring = "probability"; this.tab = ""; this.opened = 0;
    this.element = h("section", { class: "detail", "aria-label": "Rollout", tabindex: "-1" },
      h("p", { class: "note" }, "Choose a rollout: click a row, or move with the arrow keys."));
  }

  async open(row) {
    const { index } = this.state, { rollouts } = index, turn = ++this.opened;
    const group = await groupOf(index, rollouts.group[row]);
    if (turn !== this.opened) return; // another row was chosen while this one was read
    this.group = group; this.row = row; this.number = rollouts.group[row]; this.member = rollouts.member[row];
    this.draw();
  }

  // The first row of the group in the table of all rollouts.
  firstRow() { return this.row - this.member; }

  tabs(rollout) {
    const tabs = rollout.episode ? [["steps", "Steps"]] : [];
    const levels = new Map();
    (rollout.conversations ?? []).forEach(({ level }) => levels.set(level, (levels.get(level) ?? 0) + 1));
    for (const level of levels.keys()) tabs.push([`level ${level}`, rollout.episode ? `Conversation: ${level}` : "Completion"]);
    if (this.group.length > 1) tabs.push(["group", `Group of ${this.group.length}`]);
    return tabs;
  }

  draw() {
    const rollout = this.group[this.member], tabs = this.tabs(rollout);
    if (!tabs.some(([name]) => name === this.tab)) this.tab = tabs[0]?.[0] ?? "";
    const shown = this.tab === "group" ? this.group : [rollout];
    const colorings = this.tab === "steps" ? [] : available(shown);
    const name = colorings.includes(this.coloring) ? this.coloring : "";
    const coloring = COLORINGS[name], scale = coloring?.scaled ? scaleOf(coloring, this.group) : 1;
    const info = h("div", { class: this.tab === "steps" ? "info hidden" : "info", "aria-live": "polite" }, "Point at a token, or move through tokens with the arrow keys.");
    const inform = (...about) => info.replaceChildren(...describe(...about));
    const options = { coloring, scale, inform };
    const colors = colorings.length ? choice("Colour", [["none", "none"], ...colorings.map((key) => [key, COLORINGS[key].label])], (value) => { this.coloring = value; this.draw(); this.focusOn("select"); }, null) : null;
    if (colors) colors.select.value = name || "none";
    const body = h("div", { class: "scroll" }, this.body(rollout, options));
    this.element.replaceChildren(
      h("div", { class: "top" }, this.title(rollout), this.facts(rollout), this.members(),
        h("div", { class: "tools" },
          h("div", { class: "tabs", role: "group", "aria-label": "Show" }, tabs.map(([key, label]) => h("button", { "aria-pressed": String(key === this.tab), onclick: () => { this.tab = key; this.draw(); this.focusOn(".tabs [aria-pressed=true]"); } }, label))),
          colors?.element, legend(name, scale))),
      body, info);
  }

  focusOn(selector) { this.element.querySelector(selector)?.focus(); }

  title(rollout) {
    const [run, split, step, task] = this.state.index.groups[this.number];
    return h("div", { class: "title" }, h("h2", {}, rollout.id || task || "Rollout"),
      this.state.index.runs.length > 1 ? h("span", {}, dot(run), ` ${this.state.index.runs[run].name}`) : null,
      h("span", {}, `${split}, step ${step}${task ? `, ${task}` : ""}`));
  }

  facts(rollout) {
    const { rollouts } = this.state.index;
    const fact = (label, value) => (value == null ? null : h("span", {}, `${label} `, h("b", {}, value)));
    return h("div", { class: "facts" },
      rollout.imitated ? null : fact("reward", show(rollout.reward)), Object.entries(rollout.reward_parts ?? {}).map(([name, value]) => fact(name, show(value))),
      fact("advantage", rollout.advantage == null ? null : show(rollout.advantage)), fact("tokens", String(rollouts.tokens[this.row])),
      rollout.ground_truth ? fact("reference answer", rollout.ground_truth) : null,
      rollout.imitated ? null : h("span", { class: `tag ${rollouts.success[this.row] ? "good" : "bad"}` }, rollouts.success[this.row] ? "success" : "no success"),
      rollouts.truncated[this.row] ? h("span", { class: "tag bad" }, "truncated") : null, rollout.trace ? h("span", { class: "tag" }, rollout.imitated ? "imitated trace" : "trace") : null);
  }

  members() {
    if (this.group.length < 2) return null;
    return h("div", { class: "members", role: "group", "aria-label": "Members of the group" }, h("span", { class: "caption" }, "Group"),
      this.group.map((rollout, k) => h("button", {
        "aria-current": k === this.member ? "true" : null, "aria-label": rollout.imitated ? `Member ${k + 1}, imitated trace` : `Member ${k + 1}, reward ${show(rollout.reward)}${rollout.trace ? ", trace" : ""}`,
        onclick: () => { this.state.openRow(this.firstRow() + k); },
      }, rollout.imitated ? "imitated trace" : rollout.trace ? "trace " : "", rollout.imitated ? null : h("span", { class: this.state.index.rollouts.success[this.firstRow() + k] ? "good" : "bad" }, show(rollout.reward)))));
  }

  body(rollout, options) {
    if (this.tab === "group") return this.compare(options);
    if (this.tab === "steps") return stepsView(rollout.episode);
    const level = this.tab.slice("level ".length);
    return (rollout.conversations ?? []).filter((conversation) => conversation.level === level).map((conversation) => conversationView(conversation, { ...options, rollout }));
  }

  compare(options) {
    const prompts = new Set(this.group.map((rollout) => (rollout.episode ? rollout.episode.task_description : rollout.conversations?.[0]?.turns[0]?.prompt ?? "")));
    const common = prompts.size === 1 ? [...prompts][0] : "";
    const columns = this.group.map((rollout, k) => h("section", { class: rollout.trace ? "trace" : "", "aria-label": `Member ${k + 1}` },
      h("div", { class: "facts" }, h("b", {}, rollout.imitated ? "Imitated trace" : rollout.trace ? "Trace" : `Sample ${k + 1}`),
        rollout.imitated ? null : [h("span", {}, "reward ", h("b", {}, show(rollout.reward))),
          h("span", {}, "advantage ", h("b", {}, show(rollout.advantage ?? 0)))]),
      (rollout.conversations ?? []).map((conversation) => [
        rollout.conversations.length > 1 ? h("h3", {}, conversation.level) : null,
        conversationView(conversation, { ...options, rollout, prompts: false })]),
      !rollout.conversations?.length && rollout.episode ? stepsView(rollout.episode) : null));
    return [common ? h("div", { class: "turn read common" }, h("div", { class: "who" }, "read"), h("div", { class: "what", tabindex: "0" }, marked(common))) : null,
      h("div", { class: "compare" }, columns)];
  }
}
