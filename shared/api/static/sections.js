// The sections below the first glance: charts, tables and facts.

import { distanceChart, rateChart } from "./charts.js";
import { byId, facts, table, write } from "./dom.js";
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

// Seconds after which a callback waits long.
export const LONG_S = 60;
// Degrees Celsius above which a GPU is hot, as an alert has it.
export const HOT_C = 85;
// Batches that a point of the first chart has at least, unless they take long.
const FEW = 4;

// Whether a heartbeat is late: half of the time has gone after which the worker counts as gone.
export const isLate = (worker, all, now) => now - worker.heartbeat_at > all.worker_lives_s / 2;

export const isHot = (gpu) => gpu.temperature_celsius > HOT_C;

let rates = null;

export function course(all) {
  const node = all.node;
  rates ??= rateChart(
    byId("rate-chart"),
    (i) => `${time(rates.data[0][i])}: ${perSecond(rates.data[1][i])}/s`,
  );
  const xs = [];
  const ys = [];
  let last = { at: node.started_at, checked: 0 };
  for (const sample of all.history) {
    // A batch counts as it ends: over less than a few of them a rate says nothing.
    const few = sample.checked - last.checked < FEW * node.batch_size;
    if (sample.at <= last.at || (few && sample.at - last.at < LONG_S)) continue;
    xs.push(sample.at);
    ys.push((sample.checked - last.checked) / (sample.at - last.at));
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

export function distances(all) {
  const node = all.node;
  byId("distance-chart").hidden = !all.has_distances;
  write(byId("distances-title"), all.has_distances ? "Distances" : "Claims of others");
  if (!all.has_distances) {
    write(byId("distance-text"), claims(all.outcomes));
    return;
  }
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

/** How far claims of others lay from what this node computed, where every nonce counts. */
function claims(outcomes) {
  const compared = outcomes.filter((each) => each.apart_mean != null);
  if (!compared.length) return "Every nonce counts. No claims of others were judged yet.";
  const nonces = compared.reduce((n, each) => n + each.nonces, 0);
  const mean = compared.reduce((sum, each) => sum + each.apart_mean * each.nonces, 0) / nonces;
  const most = Math.max(...compared.map((each) => each.apart_max));
  return (
    `Every nonce counts. ${counted(nonces, "claim")} of the last ` +
    `${counted(compared.length, "validation")} lay ${mean.toPrecision(2)} (L2) from what this node ` +
    `computed, on average, and ${most.toPrecision(2)} at most.`
  );
}

/** Only what has changed is drawn again. */
function setData(plot, data) {
  const key = JSON.stringify([data, plot.target]);
  if (plot.key === key) return;
  plot.key = key;
  plot.setData(data);
}

export function workers(all, now) {
  const rows = all.node.workers.map((each) => [
    each.name,
    { text: each.state, level: each.state === "idle" ? "" : "ok" },
    `${perSecond(each.rate_per_second)}/s`,
    share(each.busy),
    String(each.tile || NONE),
    {
      text: ago(now - each.heartbeat_at),
      level: isLate(each, all, now) ? "warn" : "",
    },
    each.checked_at ? `passed ${ago(now - each.checked_at)}` : NONE,
    [each.device, each.model].filter(Boolean).join("\n"),
    {
      text: each.gpus.map(gpuOf).join("\n") || (each.device === "cpu" ? "none: on the CPU" : NONE),
      level: each.gpus.some(isHot) ? "warn" : "",
    },
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
    ...told(gpu.utilization, (x) => `${Math.round(100 * x)}% utilised`),
    ...told(gpu.memory_used_bytes, (x) =>
      gpu.memory_total_bytes ? `${gib(x)} of ${gib(gpu.memory_total_bytes)} GiB` : `${gib(x)} GiB`,
    ),
    ...told(gpu.temperature_celsius, (x) => `${Math.round(x)} °C`),
    ...told(gpu.power_watts, (x) => `${Math.round(x)} W`),
  ];
  return [gpu.name, numbers.join(" · ")].filter(Boolean).join("\n");
}

export function incidents(node, now) {
  const rows = node.incidents.map((each) => [
    moment(each.at, now),
    each.host ? `${each.worker}\n${each.host}` : each.worker,
    { text: each.reason, level: "bad" },
    each.in_doubt ? counted(each.in_doubt, "nonce") : NONE,
  ]);
  table("incident-table", ["When", "Worker", "Why", "In doubt"], rows, "No worker had to end.");
}

export function callbacks(all) {
  const { node, totals: whole } = all;
  const error = all.outbox_error;
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

export function totals(all) {
  const whole = all.totals;
  facts("total-facts", [
    ["Rounds before this one", count(whole.rounds)],
    ["Checked", count(whole.checked)],
    ["Valid", count(whole.valid)],
    ["Failed", count(whole.failed), whole.failed ? "warn" : ""],
    ["Batches taken over from dead workers", count(whole.taken_over)],
    ["Workers that had to end", count(whole.incidents)],
    ["Commands that wait", count(all.queue_length)],
  ]);
}

export function validations(all, now) {
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
    each.apart_mean == null ? NONE : each.apart_mean.toPrecision(2),
    verdict(each),
  ]);
  table(
    "outcome-table",
    ["When", "Submitter", "Block", "Nonces", "Invalid", "p-value", "Apart", "Verdict"],
    rows,
    "No validation has ended yet.",
  );
}

function verdict(outcome) {
  if (outcome.error) return { text: `none: ${outcome.error}`, level: "warn" };
  if (outcome.probability_honest == null) return { text: "none: nothing was claimed", level: "" };
  return outcome.fraud_detected ? { text: "fraud", level: "bad" } : { text: "honest", level: "ok" };
}

/** The rounds that are `kept`: as the API listed them, but the current one as `node` has it. */
export function rounds(kept, node, now) {
  const newest = kept.map((each) => (each.round_id === node.round_id ? { ...each, ...node } : each));
  const rows = newest.map((each) => [
    each.round_id,
    moment(each.started_at, now),
    each.state === "STOPPED" ? moment(each.updated_at, now) : NONE,
    `${brief(each.block_hash)} at ${count(each.block_height)}`,
    each.state.toLowerCase(),
    count(each.total_checked),
    count(each.total_valid),
    `${perSecond(each.rate_per_second)}/s`,
    each.kept_until ? moment(each.kept_until, now) : "the current one",
  ]);
  table(
    "round-table",
    ["Round", "Begun", "Ended", "Block", "State", "Checked", "Valid", "Rate", "Kept until"],
    rows,
    "No round yet.",
  );
}
