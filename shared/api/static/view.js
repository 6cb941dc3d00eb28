// An overview into the page. Whatever it holds becomes text, never markup.

import { distanceChart, rateChart } from "./charts.js";
import {
  NONE,
  ago,
  brief,
  count,
  counted,
  gib,
  moment,
  perSecond,
  probability,
  share,
  span,
  time,
} from "./words.js";

// Seconds after which what happened is no longer news, a heartbeat is late, a callback waits long.
const NEWS_S = 86_400;
const LATE_S = 15;
const LONG_S = 60;

const byId = (id) => document.getElementById(id);

function write(node, text, level = "") {
  if (node.textContent !== text) node.textContent = text;
  if ((node.dataset.level ?? "") !== level) node.dataset.level = level;
}

/** As many children as there are `items`: those that are there are filled again, not replaced. */
function fill(parent, tag, items, each) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(document.createElement(tag));
  items.forEach((item, i) => each(parent.children[i], item));
}

const cell = (value) => (value && typeof value === "object" ? value : { text: String(value) });

/** Rows of cells, a text or {text, level} each; `none` is said where there are no rows. */
function table(id, columns, rows, none) {
  const element = byId(id);
  if (!element.tHead) {
    // Roles, since a narrow page lays rows out as cards, and then they would lose them.
    element.setAttribute("role", "table");
    const head = element.createTHead();
    head.setAttribute("role", "rowgroup");
    const line = head.insertRow();
    line.setAttribute("role", "row");
    for (const name of columns) {
      const title = document.createElement("th");
      title.scope = "col";
      title.setAttribute("role", "columnheader");
      title.textContent = name;
      line.append(title);
    }
    element.createTBody().setAttribute("role", "rowgroup");
    const empty = document.createElement("p");
    empty.className = "empty";
    element.after(empty);
  }
  element.hidden = rows.length === 0;
  write(element.nextElementSibling, rows.length ? "" : none);
  fill(element.tBodies[0], "tr", rows, (row, cells) => {
    row.setAttribute("role", "row");
    fill(row, "td", cells.map(cell), (td, { text, level }) => write(td, text, level));
    [...row.cells].forEach((td, i) => {
      td.setAttribute("role", "cell");
      td.dataset.label = columns[i];
    });
  });
}

/** Terms and what is true of them: [term, text, level?]. */
function facts(id, pairs) {
  fill(byId(id), "div", pairs, (div, [term, text, level]) => {
    if (!div.children.length) {
      div.append(document.createElement("dt"), document.createElement("dd"));
    }
    write(div.children[0], term);
    write(div.children[1], text, level);
  });
}

// Whether there is a connection.

export function link(level, text) {
  document.body.dataset.link = level;
  write(byId("link"), text, level);
  announce();
}

export function lost(text) {
  const notice = byId("lost");
  notice.hidden = !text;
  write(notice, text);
}

/** Tell those who listen what the state is, when it has changed. */
export function announce() {
  write(byId("announce"), `${byId("state").textContent}. ${byId("link").textContent}.`);
}

// The sections.

/** Show `all`, an Overview, at `now`, a Unix time by Redis' clock. */
export function draw(all, now) {
  const node = all.node;
  const state = stateOf(node);
  write(byId("namespace"), all.namespace);
  write(byId("state"), state.text, state.level);
  write(byId("round"), roundOf(node));
  goal(node);
  concerns(all, now);
  answers(all, now);
  course(all);
  distances(all);
  workers(node, now);
  incidents(node, now);
  callbacks(all);
  totals(all);
  validations(all, now);
  const rate = node.state === "GENERATING" ? `${perSecond(node.recent_rate_per_second)}/s · ` : "";
  document.title = `${state.text} · ${rate}${all.namespace}`;
  announce();
}

function stateOf(node) {
  if (!node.round_id) {
    return node.workers.length
      ? { text: "Ready: no round yet", level: "wait" }
      : { text: "No worker, no round", level: "bad" };
  }
  if (node.state === "GENERATING") {
    return node.workers.length
      ? { text: "Generating", level: "ok" }
      : { text: "Generating, but no worker is there", level: "bad" };
  }
  const words = { IDLE: "Round begun, not generating", VALIDATING: "Validating", STOPPED: "Stopped" };
  return { text: words[node.state] ?? node.state, level: "wait" };
}

function roundOf(node) {
  if (!node.round_id) return "A controller begins a round, or: poc generate";
  const part = node.node_count > 1 ? ` · node ${node.node_id} of ${node.node_count}` : "";
  const block = `Block ${brief(node.block_hash, 10)} at ${count(node.block_height)}`;
  return `${block} · round ${node.round_id} · key ${brief(node.public_key, 12)}${part}`;
}

/** How far the round is, if it ends by itself. */
function goal(node) {
  const wanted = node.until_valid || 0;
  const seconds = node.until_s || 0;
  byId("goal").hidden = !node.round_id || !(wanted || seconds);
  if (byId("goal").hidden) return;
  const parts = [];
  const lefts = [];
  if (wanted) {
    parts.push(node.total_valid / wanted);
    const rate = node.total_valid / node.generating_seconds;
    lefts.push(node.total_valid >= wanted ? 0 : rate ? (wanted - node.total_valid) / rate : Infinity);
  }
  if (seconds) {
    parts.push(node.generating_seconds / seconds);
    lefts.push(seconds - node.generating_seconds);
  }
  const done = Math.min(1, Math.max(...parts));
  const left = Math.max(0, Math.min(...lefts));
  byId("progress").value = done;
  const aims = [wanted && counted(wanted, "valid nonce"), seconds && span(seconds)].filter(Boolean);
  const eta =
    node.state !== "GENERATING" ? "" : left === Infinity ? ", no end in sight" : `, ${span(left)} to go`;
  write(byId("eta"), `${share(done)} of ${aims.join(" or ")}${eta}`);
}

function concerns(all, now) {
  const node = all.node;
  const found = [];
  const say = (level, text) => found.push({ level, text });
  if (!node.workers.length) say("bad", "No worker is there: poc worker starts one.");
  if (node.error) say("bad", node.error);
  const ended = node.incidents.filter((each) => now - each.at < NEWS_S);
  if (ended.length) say("bad", `${counted(ended.length, "worker")} had to end in the last day.`);
  const late = node.workers.filter((each) => now - each.heartbeat_at > LATE_S);
  if (late.length) say("warn", `${counted(late.length, "heartbeat")} late.`);
  if (node.total_failed) say("warn", `${counted(node.total_failed, "nonce")} failed in this round.`);
  if (all.outbox_length && all.outbox_oldest_seconds > LONG_S) say("warn", "Callbacks wait long.");
  if (node.callbacks_refused) {
    say("warn", `${counted(node.callbacks_refused, "callback")} of this round not delivered.`);
  }
  if (!found.length) say("ok", "All is well.");
  const frauds = all.outcomes.filter((each) => each.fraud_detected && now - each.at < NEWS_S);
  if (frauds.length) {
    say("warn", `Cheating was found in ${counted(frauds.length, "validation")} of the last day.`);
  }
  fill(byId("concerns"), "li", found, (li, { text, level }) => write(li, text, level));
}

function answers(all, now) {
  const node = all.node;
  const values = {};
  values.rate = [
    node.state === "GENERATING" ? `${perSecond(node.recent_rate_per_second)}/s` : NONE,
  ];
  values["rate-more"] = [`${perSecond(node.rate_per_second)}/s over the round`];
  values.checked = [count(node.total_checked)];
  values["checked-more"] = [node.round_id ? `in ${span(node.elapsed_seconds)}` : "no round yet"];
  values.valid = [count(node.total_valid)];
  const expected = all.expected_share == null ? "" : ` (${share(all.expected_share)} expected)`;
  values["valid-more"] = [
    node.total_checked ? `${share(node.total_valid / node.total_checked)}${expected}` : NONE,
  ];
  const many = node.workers.length;
  values.workers = [count(many), many ? "" : "bad"];
  const oldest = Math.min(...node.workers.map((each) => each.heartbeat_at));
  values["workers-more"] = [many ? `heard ${ago(now - oldest)}` : "none is there"];
  values.callbacks = [`${count(all.outbox_length)} waiting`];
  const refused = sum(all.totals.refused);
  values["callbacks-more"] = [
    `${count(all.totals.delivered)} delivered, ${count(refused)} refused`,
    refused ? "warn" : "",
  ];
  const frauds = all.totals.validations.fraud ?? 0;
  values.verdicts = [frauds ? counted(frauds, "fraud") : "no fraud", frauds ? "bad" : ""];
  values["verdicts-more"] = [`in ${counted(sum(all.totals.validations), "validation")}`];
  for (const [name, [text, level]] of Object.entries(values)) {
    write(document.querySelector(`[data-is="${name}"]`), text, level);
  }
}

const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

let rates = null;

function course(all) {
  const node = all.node;
  rates ??= rateChart(
    byId("rate-chart"),
    (i) => `${time(rates.data[0][i])}: ${perSecond(rates.data[1][i])}/s`,
  );
  const xs = [];
  const ys = [];
  let last = { at: node.started_at, checked: 0 };
  for (const sample of all.history) {
    if (sample.at > last.at) {
      xs.push(sample.at);
      ys.push((sample.checked - last.checked) / (sample.at - last.at));
    }
    last = sample;
  }
  if (node.state === "GENERATING" && node.updated_at > last.at + 1) {
    xs.push(node.updated_at);
    ys.push(node.recent_rate_per_second);
  }
  setData(rates, [xs, ys]);
  const text = !ys.length
    ? "Nothing has been computed yet."
    : `Nonces a second: ${perSecond(ys.at(-1))} at last, ${perSecond(node.rate_per_second)} over ` +
      `the round; from ${perSecond(Math.min(...ys))} to ${perSecond(Math.max(...ys))}.`;
  write(byId("rate-text"), text);
}

let spread = null;

function distances(all) {
  const node = all.node;
  spread ??= distanceChart(byId("distance-chart"), (i) => {
    const nonces = spread.data[1][i] ?? spread.data[2][i];
    return `about ${spread.data[0][i].toFixed(4)}: ${counted(nonces, "nonce")}`;
  });
  const middles = all.histogram.map((bin) => (bin.low + bin.high) / 2);
  const below = (bin, middle) => middle < all.valid_below;
  spread.target = node.round_id ? all.valid_below : NaN;
  setData(spread, [
    middles,
    all.histogram.map((bin, i) => (below(bin, middles[i]) ? bin.nonces : null)),
    all.histogram.map((bin, i) => (below(bin, middles[i]) ? null : bin.nonces)),
  ]);
  if (!all.histogram.length) {
    write(byId("distance-text"), "No distances yet.");
    return;
  }
  const target = node.submit_margin ? `r_target less ${node.submit_margin}` : "r_target";
  const expected = all.expected_share == null ? "" : `; about ${share(all.expected_share)} expected`;
  write(
    byId("distance-text"),
    `${share(node.total_valid / node.total_checked)} of ${counted(node.total_checked, "nonce")} lie ` +
      `below ${all.valid_below.toFixed(4)}, ${target}${expected}.`,
  );
}

/** Only what has changed is drawn again. */
function setData(plot, data) {
  const key = JSON.stringify([data, plot.target]);
  if (plot.key === key) return;
  plot.key = key;
  plot.setData(data);
}

function workers(node, now) {
  const rows = node.workers.map((each) => [
    each.name,
    { text: each.state, level: each.state === "idle" ? "" : "ok" },
    `${perSecond(each.rate_per_second)}/s`,
    share(each.busy),
    String(each.tile || NONE),
    {
      text: ago(now - each.heartbeat_at),
      level: now - each.heartbeat_at > LATE_S ? "warn" : "",
    },
    each.checked_at ? `passed ${ago(now - each.checked_at)}` : NONE,
    [each.device, each.model].filter(Boolean).join("\n"),
    each.gpus.map(gpuOf).join("\n") || NONE,
  ]);
  table(
    "worker-table",
    ["Worker", "State", "Rate", "Busy", "Tile", "Heartbeat", "Functional check", "Device and model", "GPU"],
    rows,
    "No worker is there. Start one: poc worker",
  );
}

function gpuOf(gpu) {
  const told = (value, text) => (value == null ? [] : [text(value)]);
  const numbers = [
    ...told(gpu.utilization, (x) => `${Math.round(100 * x)}% used`),
    ...told(gpu.memory_used_bytes, (x) =>
      gpu.memory_total_bytes ? `${gib(x)} of ${gib(gpu.memory_total_bytes)} GiB` : `${gib(x)} GiB`,
    ),
    ...told(gpu.temperature_celsius, (x) => `${Math.round(x)} °C`),
    ...told(gpu.power_watts, (x) => `${Math.round(x)} W`),
  ];
  return [gpu.name, numbers.join(" · ")].filter(Boolean).join("\n");
}

function incidents(node, now) {
  const rows = node.incidents.map((each) => [
    moment(each.at, now),
    each.host ? `${each.worker}\n${each.host}` : each.worker,
    { text: each.reason, level: "bad" },
    each.in_doubt ? counted(each.in_doubt, "nonce") : NONE,
  ]);
  table("incident-table", ["When", "Worker", "Why", "In doubt"], rows, "No worker had to end.");
}

function callbacks(all) {
  const { node, totals: whole } = all;
  const error = node.callback_error || node.validation_callbacks.callback_error;
  const reasons = Object.entries(whole.refused).map(([reason, n]) => `${count(n)} ${reason}`);
  facts("callback-facts", [
    ["Waiting", count(all.outbox_length)],
    [
      "Oldest waits",
      all.outbox_length ? span(all.outbox_oldest_seconds) : NONE,
      all.outbox_oldest_seconds > LONG_S ? "warn" : "",
    ],
    ["Delivered", count(whole.delivered)],
    ["Refused", reasons.join("\n") || "0", reasons.length ? "warn" : ""],
    ["Last failure", error || "none", error ? "warn" : ""],
  ]);
}

function totals(all) {
  const whole = all.totals;
  facts("total-facts", [
    ["Rounds before this one", count(whole.rounds)],
    ["Checked", count(whole.checked)],
    ["Valid", count(whole.valid)],
    ["Failed", count(whole.failed), whole.failed ? "warn" : ""],
    ["Taken over from dead workers", count(whole.taken_over)],
    ["Workers that had to end", count(whole.incidents)],
    ["Commands that wait", count(all.queue_length)],
  ]);
}

function validations(all, now) {
  const open = Object.entries(all.node.validations).map(([id, { done, total }]) => [
    id,
    `${count(done)} of ${count(total)}`,
    share(done / total),
  ]);
  table("open-table", ["Task", "Nonces", "Done"], open, "");
  const rows = all.outcomes.map((each) => [
    moment(each.at, now),
    brief(each.public_key, 12) || NONE,
    each.block_hash ? `${brief(each.block_hash)} at ${count(each.block_height)}` : NONE,
    count(each.nonces),
    count(each.n_invalid),
    probability(each.probability_honest),
    verdict(each),
  ]);
  table(
    "outcome-table",
    ["When", "Submitter", "Block", "Nonces", "Invalid", "p-value", "Verdict"],
    rows,
    "No validation has ended yet.",
  );
}

function verdict(outcome) {
  if (outcome.error) return { text: `none: ${outcome.error}`, level: "warn" };
  return outcome.fraud_detected ? { text: "fraud", level: "bad" } : { text: "honest", level: "ok" };
}
