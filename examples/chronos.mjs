// chronos, a specialist in Node.js: it knows what time it is elsewhere.   echo "Tokyo" | nc localhost 45100
// In the configuration, with a path from the folder of that file:   [specialists.chronos]   command = ["node", "chronos.mjs"]
import net from "node:net";
import readline from "node:readline";

const { CHORUS_NAME: component = "chronos", CHORUS_AI_ID: ai_id = "chronos-ci", LISTEN_FDS = "0" } = process.env;
const cities = Intl.supportedValuesOf("timeZone"), model = "clock", { pid } = process, instance = crypto.randomUUID();
function answer(question) {
  const asked = question.trim().toLowerCase().replaceAll(" ", "_");
  const zone = cities.find((city) => city.toLowerCase().split("/").at(-1) === asked);
  if (!zone) return `I know the time in ${cities.length} places, and "${question.trim()}" is not among them.`;
  return new Date().toLocaleString("en-GB", { timeZone: zone, dateStyle: "full", timeStyle: "short" });
}
function* replies(message) {
  const { type = "chat", content = message.message, stream, timestamp } = message;
  if (type === "ping") yield { type: "pong", status: "ok", pid, instance, timestamp };
  else if (type === "health") yield { type: "health_response", pid, instance, component, model };
  else if (type !== "chat") yield { type: "error", code: "unknown_type", error: `no ${type} here: chat, health, ping`, partial: "" };
  else if (typeof content !== "string") yield { type: "error", code: "bad_request", error: "content: expected text", partial: "" };
  else {
    const end = { content: answer(content), response: answer(content), model, context: message.context ?? {}, done_reason: "stop", timing: { queued_ms: 0, total_ms: 0 }, latency: 0 };
    if (!stream) return yield { type: "chat_response", ...end };
    yield { type: "stream_start", model };
    for (const [chunk_index, word] of end.content.split(/(?<= )/).entries()) yield { type: "stream_chunk", chunk_index, content: word };
    yield { type: "stream_end", ...end, metadata: {} };
  }
}
function converse(socket) {
  const say = (reply, request_id) => socket.write(JSON.stringify({ request_id, ai_id, ...reply }) + "\n");
  readline.createInterface({ input: socket }).on("line", (line) => {
    if (!line.startsWith("{")) return void socket.setTimeout(1000, () => socket.end()).write(answer(line) + "\n");
    try {
      const message = JSON.parse(line);
      for (const reply of replies(message)) say(reply, message.request_id);
      if (message.close || !message.request_id) socket.end();
    } catch (wrong) { say({ type: "error", code: "bad_json", error: wrong.message, partial: "" }); }
  }).on("close", () => socket.end()).on("error", () => socket.destroy());
  socket.on("error", () => socket.destroy()); // whoever goes away in the middle of an answer takes nobody along
}
// The sockets are open already, from descriptor 3 on (sd_listen_fds(3)): connections that came while we started are waiting.
const servers = Array.from({ length: +LISTEN_FDS }, (_, at) => net.createServer({ allowHalfOpen: true }, converse).listen({ fd: 3 + at }));
process.on("SIGTERM", () => { servers.forEach((server) => server.close()); setTimeout(() => process.exit(0), 500); });
