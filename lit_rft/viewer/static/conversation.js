// A rollout as text: conversations with coloured tokens, and the steps of an episode with their subgoals.

const RED = "214 69 65", BLUE = "43 108 214", GREEN = "31 150 96", VIOLET = "130 80 210";
const ink = (color, strength) => (strength > 0.02 ? `rgb(${color} / ${Math.min(1, strength) * 0.6})` : "");
const signed = (value, up, down) => ink(value < 0 ? down : up, Math.abs(value));

// What tokens can be coloured by. `of` returns the value of each token, or null; `color` its background.
const COLORINGS = {
  probability: {
    label: "Probability",
    of: (c) => (c.sampled_log_probs ?? c.log_probs)?.map(Math.exp) ?? null,
    color: (value) => ink(RED, (1 - value) ** 1.5), legend: [0, 0.25, 0.5, 0.75, 1],
  },
  ratio: {
    label: "Ratio",
    of: (c) => { const old = c.old_log_probs ?? c.sampled_log_probs; return c.log_probs && old ? c.log_probs.map((value, k) => Math.exp(value - old[k])) : null; },
    color: (value) => signed(Math.log(value) / 0.4, RED, BLUE), legend: [0.67, 0.82, 1, 1.22, 1.5],
  },
  advantage: {
    label: "Advantage",
    of: (c, rollout) => c.advantages ?? (rollout.advantage ? Array(tokensOf(c)).fill(rollout.advantage) : null),
    color: (value, scale) => signed(value / scale, GREEN, RED), legend: [-1, -0.5, 0, 0.5, 1], scaled: true,
  },
  entropy: {
    label: "Entropy",
    of: (c) => c.entropy ?? null,
    color: (value, scale) => ink(VIOLET, value / scale), legend: [0, 0.25, 0.5, 0.75, 1], scaled: true,
  },
};

const tokensOf = (conversation) => conversation.turns.reduce((sum, turn) => sum + (turn.tokens?.length ?? 0), 0);

function scaleOf(coloring, rollouts) {
  let scale = 0;
  for (const rollout of rollouts) for (const conversation of rollout.conversations ?? []) {
    for (const value of coloring.of(conversation, rollout) ?? []) scale = Math.max(scale, Math.abs(value));
  }
  return scale || 1;
}

// Which colourings any of the rollouts has values for.
const available = (rollouts) => Object.keys(COLORINGS).filter((name) => rollouts.some((rollout) =>
  (rollout.conversations ?? []).some((conversation) => COLORINGS[name].of(conversation, rollout)?.length)));

function legend(name, scale) {
  if (!COLORINGS[name]) return null;
  const { color, legend: marks, scaled } = COLORINGS[name];
  const value = (mark) => (scaled ? mark * scale : mark);
  return h("span", { class: "legend", role: "img", "aria-label": `Colours from ${show(value(marks[0]))} to ${show(value(marks.at(-1)))}` },
    show(value(marks[0]), 2), marks.map((mark) => {
      const swatch = h("i", {});
      swatch.style.backgroundColor = color(value(mark), scale);
      return swatch;
    }), show(value(marks.at(-1)), 2));
}

// Text with chat markup such as <|im_end|> set apart.
function marked(text) {
  return text.split(/(<\|[^|<>]{1,40}\|>)/).map((part, k) => (k % 2 ? h("span", { class: "markup" }, part) : part));
}

// Tokens of one utterance. `first` is the index of its first token in the conversation.
function tokenSpans(conversation, turn, first, options) {
  const { coloring, scale, rollout, inform } = options;
  const values = coloring && coloring.of(conversation, rollout);
  const clipped = new Set(conversation.clipped ?? []);
  const spans = turn.tokens.map((text, k) => {
    const span = h("span", { class: clipped.has(first + k) && "clipped" }, text);
    if (values) span.style.backgroundColor = coloring.color(values[first + k], scale);
    return span;
  });
  let at = -1;
  const go = (place) => {
    spans[at]?.classList.remove("at");
    at = place;
    spans[at]?.classList.add("at");
    spans[at]?.scrollIntoView({ block: "nearest" });
    inform(conversation, first + at, turn.tokens[at], rollout);
  };
  return h("div", {
    class: "what tokens", tabindex: "0", role: "group", "aria-label": "Tokens; arrow keys move between them",
    onpointerover: (event) => { const k = spans.indexOf(event.target); if (k >= 0) inform(conversation, first + k, turn.tokens[k], rollout); },
    onkeydown: (event) => {
      const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
      if (next == null || !(next >= 0 && next < spans.length)) return;
      event.preventDefault();
      go(next);
    },
    onblur: () => { spans[at]?.classList.remove("at"); at = -1; },
  }, spans);
}

function conversationView(conversation, options) {
  let first = 0;
  const turns = conversation.turns.flatMap((turn) => {
    const read = options.prompts !== false && turn.prompt
      ? h("div", { class: "turn read" }, h("div", { class: "who" }, "read"), h("div", { class: "what", tabindex: "0" }, marked(turn.prompt))) : null;
    if (!turn.tokens?.length) return [read];
    const body = tokenSpans(conversation, turn, first, options);
    first += turn.tokens.length;
    return [read, h("div", { class: "turn wrote" }, h("div", { class: "who" }, options.rollout.trace ? "trace" : "wrote", ` · ${turn.tokens.length} tokens`), body)];
  });
  return h("div", { class: "talk" }, turns);
}

// The steps of an episode under their subgoals.
function stepsView(episode) {
  const starts = new Map((episode.subgoals ?? []).map((subgoal) => [subgoal.start, subgoal]));
  const body = h("div", { class: "talk" },
    h("div", { class: "turn read" }, h("div", { class: "who" }, "task"), h("div", { class: "what" }, episode.task_description)),
    h("div", { class: "turn read" }, h("div", { class: "who" }, "first observation"), h("div", { class: "what" }, episode.initial_observation)));
  let into = body;
  episode.steps.forEach((step, k) => {
    const subgoal = starts.get(k);
    if (subgoal) {
      into = h("section", { class: `subgoal${subgoal.completed ? "" : " open"}` },
        h("h3", {}, subgoal.goal, " ", h("span", { class: `tag ${subgoal.completed ? "good" : "bad"}` }, subgoal.completed ? "reached" : "given up")));
      body.append(into);
    }
    into.append(h("div", { class: "step" }, h("span", { class: "index" }, String(k + 1)),
      h("code", {}, step.action || "(nothing)", step.valid ? "" : h("span", { class: "tag bad" }, "invalid")),
      h("span", { class: "number" }, `${step.reward > 0 ? "+" : ""}${show(step.reward)} → ${show(step.score)}`),
      h("div", { class: "seen" }, step.observation)));
  });
  const { outcome } = episode;
  body.append(h("p", {}, `Ended: ${outcome.reason}, score ${show(outcome.score)}, `, h("b", { class: outcome.success ? "good" : "bad" }, outcome.success ? "solved" : "not solved")));
  return body;
}

// One line about a token.
function describe(conversation, k, text, rollout) {
  const fact = (label, values, change = (value) => value) => (values?.[k] == null ? null : `${label} ${show(change(values[k]))}`);
  const ratio = COLORINGS.ratio.of(conversation, rollout), probability = COLORINGS.probability.of(conversation, rollout);
  return [
    h("b", {}, JSON.stringify(text)), `token ${k + 1}`, fact("probability", probability), fact("sampled log-prob", conversation.sampled_log_probs),
    fact("old log-prob", conversation.old_log_probs), fact("log-prob in the update", conversation.log_probs), fact("ratio", ratio),
    conversation.advantages ? fact("advantage", conversation.advantages) : null, fact("entropy", conversation.entropy),
    (conversation.clipped ?? []).includes(k) ? "clipped: no gradient" : null,
  ].filter(Boolean).map((part) => (typeof part === "string" ? h("span", {}, part) : part));
}
