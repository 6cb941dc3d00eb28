// Server-sent events over fetch: EventSource can't send an Authorization header.

// The server says something at least every 15 seconds.
const SILENCE_MS = 40_000;

/** An answer that was no stream: `status`, and why. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Yields [event, data] for each event of `url`, until the stream ends; throws if it breaks. */
export async function* events(url, token) {
  const quiet = new AbortController();
  let timer = 0;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => quiet.abort(), SILENCE_MS);
  };
  heard();
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch(url, { headers, signal: quiet.signal, cache: "no-store" });
    if (!answer.ok) throw new Refused(answer.status, await reason(answer));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
    }
  } finally {
    clearTimeout(timer);
    quiet.abort();
  }
}

function parsed(block) {
  let event = "message";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) event = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  return data && [event, JSON.parse(data)];
}

async function reason(answer) {
  try {
    return String((await answer.json()).detail);
  } catch {
    return `HTTP ${answer.status}`;
  }
}
