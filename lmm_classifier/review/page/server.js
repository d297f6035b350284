// Asking the server, which may be gone for a while: nothing is given up, and nothing is said twice.

const AGAIN_MS = 1000; // between two attempts while nobody answers

export class Refused extends Error {
  constructor(status, { detail, code }) {
    super(detail ?? `status ${status}`);
    Object.assign(this, { status, code });
  }
}

let heard = () => {}; // is told whether the server answers

export function onHeard(told) {
  heard = told;
}

export const ask = (path, signal) => asked(path, { signal });

export function tell(path, body) { // the id makes an answer that was stored unheard count once
  const id = crypto.randomUUID().replaceAll("-", "");
  const headers = { "content-type": "application/json" };
  return asked(path, { method: "POST", headers, body: JSON.stringify({ id, ...body }) });
}

export const query = (values) => new URLSearchParams(
  Object.entries(values).filter(([, value]) => value !== null && value !== undefined));

async function asked(path, options) {
  for (;;) {
    try {
      const answer = await fetch(path, options);
      const body = await answer.json(); // cut off where the server goes meanwhile
      heard(true);
      if (answer.ok) return body;
      throw new Refused(answer.status, body);
    } catch (error) {
      if (error instanceof Refused || error.name === "AbortError") throw error;
      heard(false);
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}
