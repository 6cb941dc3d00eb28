// An overview into the page: the first glance here, all else in sections.js.

import { byId, fill, write } from "./dom.js";
import {
  HOT_C,
  isHot,
  isLate,
  LONG_S,
  callbacks,
  course,
  distances,
  incidents,
  totals,
  validations,
  workers,
} from "./sections.js";
import { NONE, ago, brief, count, counted, perSecond, share, span, time } from "./words.js";

// Seconds after which what happened is no longer news.
const NEWS_S = 86_400;

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

/** Show `all`, an Overview, at `now`, a Unix time by Redis' clock. */
export function draw(all, now) {
  const node = all.node;
  const state = stateOf(node);
  write(byId("namespace"), all.namespace);
  write(byId("state"), state.text, state.level);
  write(byId("round"), roundOf(node));
  goal(all);
  concerns(all, now);
  answers(all, now);
  course(all);
  distances(all);
  workers(all, now);
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
  const block = `Block ${brief(node.block_hash, 10)} at height ${count(node.block_height)}`;
  return `${block} · round ${node.round_id} · key ${brief(node.public_key, 12)}${part}`;
}

/** How far the round is, if it is to end by itself. */
function goal({ node, seconds_left: left }) {
  const timed = node.ends_at > node.started_at;
  byId("goal").hidden = !(node.until_valid || timed);
  if (byId("goal").hidden) return;
  const ofCount = node.until_valid ? node.total_valid / node.until_valid : 0;
  const seconds = node.ends_at - node.started_at;
  const ofTime = timed ? (node.updated_at - node.started_at) / seconds : 0;
  const done = Math.min(1, Math.max(ofCount, ofTime));
  byId("progress").value = done;
  const aims = [];
  if (node.until_valid) aims.push(counted(node.until_valid, "valid nonce"));
  if (timed) aims.push(`the end at ${time(node.ends_at)}`);
  const eta = left == null ? "" : `: ${span(left)} to go`;
  write(byId("eta"), `${share(done)} of the way to ${aims.join(" or ")}${eta}`);
}

function concerns(all, now) {
  const node = all.node;
  const found = [];
  const say = (level, text) => found.push({ level, text });
  if (!node.workers.length) say("bad", "No worker is there: poc worker starts one.");
  if (node.error) say("bad", node.error);
  const ended = node.incidents.filter((each) => now - each.at < NEWS_S);
  if (ended.length) say("bad", `${counted(ended.length, "worker")} had to end in the last day.`);
  const late = node.workers.filter((each) => isLate(each, all, now));
  if (late.length === 1) {
    const [{ name, heartbeat_at: at }] = late;
    say("warn", `${brief(name, 24)} was last heard ${ago(now - at)}.`);
  } else if (late.length) {
    say("warn", `${counted(late.length, "worker")} not heard for long.`);
  }
  const hot = node.workers.flatMap((each) => each.gpus).filter(isHot);
  if (hot.length) say("warn", `${counted(hot.length, "GPU")} hot: above ${HOT_C} °C.`);
  const which = noneOrAll(all);
  if (which) say("warn", `r_target does not suit the model: ${which} of the nonces will be valid.`);
  if (node.total_failed) say("warn", `${counted(node.total_failed, "nonce")} failed in this round.`);
  if (all.outbox_length && all.outbox_oldest_seconds > LONG_S) {
    say("warn", `Callbacks wait long${all.outbox_error ? `: ${all.outbox_error}` : ""}.`);
  }
  if (node.callbacks_refused) {
    say("warn", `${counted(node.callbacks_refused, "callback")} of this round not delivered.`);
  }
  if (!found.length) say("ok", "All is well.");
  const frauds = all.outcomes.filter((each) => each.fraud_detected && now - each.at < NEWS_S);
  if (frauds.length) {
    const many = counted(frauds.length, "validation");
    say("warn", `This node found fraud in ${many} of the last day.`);
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
  values["valid-more"] = [
    !all.has_distances
      ? "every nonce counts"
      : node.total_checked
      ? `${share(node.total_valid / node.total_checked)}${expectation(all)}`
      : NONE,
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

/** "none" or "all" if a round generates with an r_target that leaves nothing to find, else "". */
function noneOrAll({ expected_share: p, node }) {
  if (p == null || node.state !== "GENERATING") return "";
  return p < 1e-6 ? "none" : p > 0.999 ? "all" : "";
}

/** What share of valid nonces to expect, and by how much chance alone moves it (95% of times). */
function expectation({ expected_share: p, node }) {
  if (p == null) return "";
  const chance = 2 * Math.sqrt((p * (1 - p)) / node.total_checked);
  return ` (${share(p)} ± ${share(chance)} expected)`;
}

const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);
