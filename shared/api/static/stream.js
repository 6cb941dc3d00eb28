// What the API tells. Server-sent events come over fetch, since EventSource can't send a token.

// The server says something at least every 15 seconds.
const SILENCE_MS = 40_000;

/** An answer that tells nothing: `status`, and why. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

const bearer = (token) => (token ? { Authorization: `Bearer ${token}` } : {});

/** The JSON at `url`; throws what is refused. */
export async function asked(url, token) {
  const answer = await fetch(url, { headers: bearer(token), cache: "no-store" });
  if (!answer.ok) throw new Refused(answer.status, await reason(answer));
  return answer.json();
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
    const headers = bearer(token);
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
