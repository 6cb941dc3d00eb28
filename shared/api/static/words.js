// Numbers and times as the page writes them.

const whole = new Intl.NumberFormat("en");
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

export const NONE = "–";

export const count = (n) => whole.format(n ?? 0);

export const counted = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export const perSecond = (n) => (n == null ? NONE : n >= 100 ? whole.format(Math.round(n)) : tenth.format(n));

export function share(x) {
  if (x == null || !Number.isFinite(x)) return NONE;
  const percent = 100 * x;
  if (percent && percent < 1) return `${percent.toPrecision(2)}%`;
  return `${percent.toFixed(1)}%`;
}

export const probability = (p) => (p == null ? NONE : p && p < 0.001 ? p.toExponential(1) : p.toFixed(3));

/** A time span in the two units that matter. */
export function span(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return NONE;
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** How long ago, in one unit. */
export function ago(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 2) return "now";
  if (s < 90) return `${s} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  if (s < 129_600) return `${Math.round(s / 3600)} h ago`;
  return `${Math.round(s / 86_400)} d ago`;
}

export const time = (unix) => clock.format(unix * 1000);

/** With the day, unless that is the one of `now`. */
export function moment(unix, now) {
  const sameDay = day.format(unix * 1000) === day.format(now * 1000);
  return sameDay ? time(unix) : `${day.format(unix * 1000)} ${time(unix)}`;
}

export const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);

/** A long id by its two ends. */
export const brief = (text, ends = 8) =>
  text.length > 2 * ends + 1 ? `${text.slice(0, ends)}…${text.slice(-ends)}` : text;
