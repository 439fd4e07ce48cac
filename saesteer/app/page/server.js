// What the app is asked: JSON there, JSON or a stream of events back.

export async function ask(what, body, signal) {
  const sent = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const reply = await fetch(`api/${what}`, sent).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("the app does not answer; start saesteer app again.");
  });
  if (!reply.ok) throw new Error((await reply.json()).error);
  return reply;
}

export const asked = async (what, body, signal) => (await ask(what, body, signal)).json();

export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    left += value;
    const parts = left.split("\n\n");
    left = parts.pop();
    for (const part of parts) yield JSON.parse(part.replace(/^data: /, ""));
  }
}
