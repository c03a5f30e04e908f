// Node.js's own EventSource: prints every event as a line of JSON, and ends when the source is closed for good.
const waiting = setInterval(() => {}, 1000); // Node.js does not wait for one that will connect again
const source = new EventSource(process.argv[2]);
for (const name of ["open", "token", "complete", "done", "stream_reset", "error"]) {
  source.addEventListener(name, (event) => {
    console.log(JSON.stringify({ name, data: event.data ?? null, id: event.lastEventId ?? "", state: source.readyState }));
    if (source.readyState === EventSource.CLOSED) clearInterval(waiting);
  });
}
