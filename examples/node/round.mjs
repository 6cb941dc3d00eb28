// Runs a round until it has 20 valid nonces, and prints how it ended. Needs a worker that lives.
//
//   npm ci && POC_REDIS_URL=redis://127.0.0.1:6379/0 node round.mjs
import { createClient } from "celery-node";

const url = process.env.POC_REDIS_URL ?? "redis://127.0.0.1:6379/0";
const namespace = process.env.POC_NAMESPACE ?? "default";
const client = createClient(url, url, `poc.${namespace}`);

const config = { block_hash: "ab12", block_height: 7, public_key: "me", r_target: 1.4, seq_len: 64 };
const ticket = client.sendTask("poc.generate", [], { config, replace: true, until_valid: 20 });

try {
  // Looks each half second, for a minute. Its status is PROGRESS meanwhile: `await ticket.status()`.
  const ended = await ticket.get(60_000);
  console.log(`${ended.state}: ${ended.total_checked} checked, ${ended.total_valid} valid`);
  // Nonces go up to 2^63 - 1, and numbers here are exact up to 2^53: beyond that parse them as text.
  console.log(`the first: ${ended.valid_nonces[0]} with distance ${ended.valid_distances[0]}`);
} catch (error) {
  // TIMEOUT, or FAILURE with the error's class and message.
  console.error(error.message, error.exc_type ?? "", error.exc_message ?? "");
  process.exitCode = 1;
} finally {
  await client.disconnect();
}
