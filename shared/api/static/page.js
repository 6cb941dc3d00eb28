// The live page: follows the node's events and shows what they tell.
//
//   stream.js    events from the API       view.js   the first glance
//   sections.js  what is below that        dom.js    text into elements
//   charts.js    the two charts            words.js  numbers and times in words
//
// What callers of the node wrote reaches the page as text only: nothing here makes markup.

import { rounds } from "./sections.js";
import { Refused, asked, events } from "./stream.js";
import { announce, draw, link, lost } from "./view.js";
import { time } from "./words.js";

const TOKEN = "poc-token";
const ROUNDS = 10;
const LONGEST_PAUSE_MS = 10_000;

const byId = (id) => document.getElementById(id);
const ask = byId("ask");
const forget = byId("forget");

/** The newest overview, and when it came by this browser's clocks. */
let overview = null;
let cameAt = 0;
let lastSeen = 0;
let token = sessionStorage.getItem(TOKEN) ?? "";
let wake = () => {};
/** What the list of rounds was made for. */
let listed = null;
let kept = null;

const now = () => overview.at + (performance.now() - cameAt) / 1000;

function show() {
  if (!overview) return;
  draw(overview, now());
  if (kept) rounds(kept, overview.node, now());
}

/** The list of rounds, when another one has begun or this one changed its state. */
async function list() {
  const key = `${overview.node.round_id} ${overview.node.state}`;
  if (key === listed) return;
  listed = key;
  try {
    kept = (await asked(`api/v1/pow/rounds?newest=${ROUNDS}`, token)).rounds;
    show();
  } catch {
    // With the next event again.
    listed = null;
  }
}

function heard(event, data) {
  if (event === "problem") {
    away(data.detail);
    return;
  }
  overview = event === "changes" ? { ...overview, ...data } : data;
  cameAt = performance.now();
  lastSeen = Date.now() / 1000;
  lost("");
  link("ok", "live");
  show();
  list();
}

function away(why) {
  link("bad", "not connected");
  const since = lastSeen ? ` Last seen ${time(lastSeen)}.` : "";
  lost(`${why.replace(/\.$/, "")}.${since} This page tries again by itself.`);
}

async function follow() {
  for (let failures = 0; ; failures++) {
    try {
      for await (const [event, data] of events("api/v1/pow/events", token)) {
        failures = 0;
        heard(event, data);
      }
      away("The connection was closed");
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        await newToken();
        failures = 0;
        continue;
      }
      away(error instanceof Refused ? `The API refuses: ${error.message}` : "Connection lost");
    }
    // Not all pages at once, when the API is there again.
    const pause = Math.min(LONGEST_PAUSE_MS, 500 * 2 ** failures) * (0.5 + Math.random());
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, pause);
    });
  }
}

// The token.

function keep(new_) {
  token = new_;
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

/** Ask for a token until there is one. */
function newToken() {
  byId("wrong").textContent = token ? "That is none of the node's tokens." : "";
  byId("token").value = "";
  link("wait", "token wanted");
  forget.textContent = "Enter token";
  forget.hidden = false;
  ask.showModal();
  return new Promise((resolve) => {
    byId("ask-form").onsubmit = (submitted) => {
      submitted.preventDefault();
      keep(byId("token").value.trim());
      ask.close();
      forget.textContent = "Forget token";
      link("wait", "connecting");
      resolve();
    };
  });
}

forget.hidden = !token;
forget.onclick = () => {
  if (forget.textContent === "Enter token") {
    ask.showModal();
  } else {
    keep("");
    location.reload();
  }
};

// A page that was put aside has perhaps slept through its connection.
document.addEventListener("visibilitychange", () => document.hidden || wake());
window.addEventListener("online", () => wake());

// Ages grow while the node has nothing new to say.
setInterval(() => document.body.dataset.link === "ok" && show(), 1000);

announce();
follow();
